#include "isa/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace deeplab_fast {
namespace {

struct InstructionSet {
  const char* name;
  bool supported;
};

#define HAS(feature) __builtin_cpu_supports(#feature)
#define DEEPLAB_FAST_SET_ENTRY(set, supported, ...) {#set, static_cast<bool>(supported)},

int choose(const InstructionSet* sets, int count) {
  const char* forced = std::getenv("DEEPLAB_FAST_ISA");
  const bool any = forced == nullptr || *forced == '\0';
  std::string names;
  for (int i = 0; i < count; ++i) {
    if (any ? sets[i].supported : sets[i].name == std::string(forced)) {
      if (sets[i].supported) return i;
      throw std::invalid_argument("DEEPLAB_FAST_ISA=" + std::string(forced) + ": this processor does not have it");
    }
    // As sentences list them: a, b or c.
    names = sets[i].name + (i == 0 ? "" : (i == 1 ? " or " : ", ") + names);
  }
  throw std::invalid_argument("DEEPLAB_FAST_ISA=" + std::string(forced) + ": unknown, should be " + names);
}

const InstructionSet& chosen(int* number) {
  static const InstructionSet sets[] = {DEEPLAB_FAST_INSTRUCTION_SETS(DEEPLAB_FAST_SET_ENTRY, )};
  static const int best = choose(sets, sizeof(sets) / sizeof(sets[0]));
  *number = best;
  return sets[best];
}

}  // namespace

int instruction_set() {
  int number;
  chosen(&number);
  return number;
}

const char* instruction_set_name() {
  int number;
  return chosen(&number).name;
}

}  // namespace deeplab_fast
