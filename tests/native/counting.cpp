// The calls that g++ makes at every access with -fsanitize=thread, answered here instead of by the sanitizer's library.
// To be compiled without it.
#include "counting.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace counting {

unsigned lane;
int64_t flops;

namespace {

constexpr uintptr_t kSector = 32;

std::map<uintptr_t, uintptr_t> watched;  // end -> begin
std::vector<Counts> launches;
bool counts = false;
std::unordered_set<uintptr_t> read_in_warp, read_in_launch, written_in_launch;
std::unordered_map<const void*, std::array<int32_t, 32>> times;  // that each lane has come by an instruction
std::set<std::tuple<const void*, int32_t, uintptr_t>> written_in_warp;

void note(const void* memory, uintptr_t size, bool write, const void* instruction) {
  if (!counts) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory);
  const auto range = watched.upper_bound(begin);
  if (range == watched.end() || begin < range->second) return;
  const int32_t time = write ? times[instruction][lane]++ : 0;
  for (uintptr_t sector = begin / kSector; sector * kSector < begin + size; ++sector) {
    Counts& launch = launches.back();
    if (write) {
      launch.written += written_in_warp.insert({instruction, time, sector}).second * kSector;
      launch.written_once += written_in_launch.insert(sector).second * kSector;
    } else {
      launch.read += read_in_warp.insert(sector).second * kSector;
      launch.read_once += read_in_launch.insert(sector).second * kSector;
    }
  }
}

}  // namespace

void watch(const void* memory, int64_t size) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory);
  if (size > 0) watched[begin + size] = begin;
}
void forget(const void* memory, int64_t size) {
  watched.erase(reinterpret_cast<uintptr_t>(memory) + size);
}
void begin_launch(int64_t threads) {
  launches.push_back({threads, 0, 0, 0, 0, 0});
  flops = 0;
  read_in_launch.clear(), written_in_launch.clear();
  counts = true;
}
void begin_warp() {
  read_in_warp.clear(), written_in_warp.clear(), times.clear();
}
void end_launch() {
  counts = false;
  launches.back().flops = flops;
}

}  // namespace counting

extern "C" {

// The counts since the last call, as far as there is room; how many launches there were.
int64_t take_counts(counting::Counts* out, int64_t room) {
  const int64_t count = static_cast<int64_t>(counting::launches.size());
  std::copy_n(counting::launches.begin(), std::min(count, room), out);
  counting::launches.clear(), counting::watched.clear();
  return count;
}
void watch(const void* memory, int64_t size) {
  counting::watch(memory, size);
}

#define ACCESS(name, size, write)                                     \
  void name(void* memory) {                                           \
    counting::note(memory, size, write, __builtin_return_address(0)); \
  }
#define ACCESSES(size)                             \
  ACCESS(__tsan_read##size, size, false)           \
  ACCESS(__tsan_write##size, size, true)           \
  ACCESS(__tsan_unaligned_read##size, size, false) \
  ACCESS(__tsan_unaligned_write##size, size, true)
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* memory, unsigned long size) {
  counting::note(memory, size, false, __builtin_return_address(0));
}
void __tsan_write_range(void* memory, unsigned long size) {
  counting::note(memory, size, true, __builtin_return_address(0));
}
// Of shared pointers, on the host.
int __tsan_atomic32_fetch_add(volatile int* at, int value, int) {
  return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
