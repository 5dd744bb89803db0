// Maps, a channel after the other, as rows of the points of a block, and back.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lattice/row_kernels.h"
#include "lattice/visit_order.h"

namespace deeplab_fast {

// Channels that are filtered at once: as many as a few vectors hold.
constexpr int kMostLanes = 32;
inline int lanes_of(int64_t channels) {
  return row_lanes(static_cast<int>(std::min<int64_t>(channels, kMostLanes)));
}

// values[c * points + i] for c < channels -> rows[block.count()][lanes], zero beyond the channels.
inline void gather_block(const float* values, int64_t points, const PointBlock& block, int channels, int lanes,
                         float* rows) {
  if (channels < lanes) std::fill_n(rows, int64_t{block.count()} * lanes, 0.0f);
  for (int c = 0; c < channels; ++c)
    block.each_line([&](int32_t place, int64_t point, int32_t count) {
      const float* from = values + c * points + point;
      float* to = rows + int64_t{place} * lanes + c;
      for (int32_t i = 0; i < count; ++i) to[i * lanes] = from[i];
    });
}
inline void scatter_block(const float* rows, int64_t points, const PointBlock& block, int channels, int lanes,
                          float* values) {
  for (int c = 0; c < channels; ++c)
    block.each_line([&](int32_t place, int64_t point, int32_t count) {
      const float* from = rows + int64_t{place} * lanes + c;
      float* to = values + c * points + point;
      for (int32_t i = 0; i < count; ++i) to[i] = from[i * lanes];
    });
}

}  // namespace deeplab_fast
