// Stable parallel sort of (key, slot) pairs by a key of `bits` bits: least significant digit first.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "base/buffer.h"
#include "base/parallel.h"

namespace deeplab_fast {

struct KeySlot {
  uint64_t key;
  int64_t slot;
};

// Sorts `items`; `scratch` has the same size and unspecified content afterwards.
inline void radix_sort(Buffer<KeySlot>& items, Buffer<KeySlot>& scratch, int bits, Parallel& parallel) {
  constexpr int kDigitBits = 11, kDigits = 1 << kDigitBits;
  constexpr int64_t kParts = 8;
  std::vector<std::array<int64_t, kDigits>> offsets(kParts);
  for (int shift = 0; shift < bits; shift += kDigitBits) {
    const auto digit = [shift](const KeySlot& item) { return (item.key >> shift) & (kDigits - 1); };
    parallel_for(parallel, kParts, [&](int64_t part) {
      const Range range = part_of(items.size(), kParts, part);
      offsets[part].fill(0);
      for (int64_t i = range.begin; i < range.end; ++i) ++offsets[part][digit(items[i])];
    });
    int64_t total = 0;
    for (int d = 0; d < kDigits; ++d)
      for (auto& part : offsets) total += std::exchange(part[d], total);
    parallel_for(parallel, kParts, [&](int64_t part) {
      const Range range = part_of(items.size(), kParts, part);
      auto& next = offsets[part];
      for (int64_t i = range.begin; i < range.end; ++i) scratch[next[digit(items[i])]++] = items[i];
    });
    std::swap(items, scratch);
  }
}

}  // namespace deeplab_fast
