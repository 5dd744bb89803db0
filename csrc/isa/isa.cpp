#include "isa/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace deeplab_fast {

namespace baseline {
extern const Isa table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Isa table;
}
namespace avx512 {
extern const Isa table;
}
#endif

namespace {

const Isa& choose() {
  struct Candidate {
    const Isa* table;
    bool supported;
  };
  const Candidate candidates[] = {
#if defined(__x86_64__)
      {&avx512::table, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                           __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
      {&avx2::table, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
      {&baseline::table, true},
  };
  const char* forced = std::getenv("DEEPLAB_FAST_ISA");
  for (const Candidate& candidate : candidates) {
    if (forced == nullptr || *forced == '\0') {
      if (candidate.supported) return *candidate.table;
    } else if (std::string(forced) == candidate.table->name) {
      if (candidate.supported) return *candidate.table;
      throw std::invalid_argument("DEEPLAB_FAST_ISA=" + std::string(forced) + ": this processor does not have it");
    }
  }
  throw std::invalid_argument("DEEPLAB_FAST_ISA=" + std::string(forced) +
                              ": unknown, should be baseline, avx2 or avx512");
}

}  // namespace

const Isa& isa() {
  static const Isa& chosen = choose();
  return chosen;
}

}  // namespace deeplab_fast
