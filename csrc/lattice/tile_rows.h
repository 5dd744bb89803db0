// Maps, a channel after the other, as rows of the points of a tile, and back.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lattice/visit_order.h"

namespace deeplab_fast {

// Channels that are filtered at once: as many as a few vectors hold.
constexpr int kMostLanes = 32;

// values[c * points + i] for c < channels -> rows[tile.count][lanes], zero beyond the channels.
inline void gather_tile(const float* values, int64_t points, PointTile tile, int channels, int lanes, float* rows) {
  if (channels < lanes) std::fill_n(rows, int64_t{tile.count} * lanes, 0.0f);
  for (int c = 0; c < channels; ++c)
    for (int i = 0; i < tile.count; ++i) rows[i * lanes + c] = values[c * points + tile.first + i];
}
inline void scatter_tile(const float* rows, int64_t points, PointTile tile, int channels, int lanes, float* values) {
  for (int c = 0; c < channels; ++c)
    for (int i = 0; i < tile.count; ++i) values[c * points + tile.first + i] = rows[i * lanes + c];
}

}  // namespace deeplab_fast
