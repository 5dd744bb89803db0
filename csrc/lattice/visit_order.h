// In which order, and by which task, points are visited.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace deeplab_fast {

// A few consecutive points.
struct PointTile {
  int64_t first;
  int32_t count;
};

// Points are cut into chunks, one task each, and chunks into tiles. The cut depends on the size only, not on the number
// of threads. An image (`width` > 0) is cut between its rows and walked in strips, top to bottom within a chunk: the
// pixel above touches much the same vertices as this one, and a strip's rows stay in the second-level cache.
struct VisitOrder {
  static constexpr int kTile = 64;
  static constexpr int64_t kStrip = 8 * kTile;
  static constexpr int64_t kChunkPoints = 22000, kMostChunks = 16;

  int64_t points;
  std::vector<PointTile> tiles;
  std::vector<int64_t> first_tile;  // of each chunk; and the end

  explicit VisitOrder(int64_t point_count, int64_t width = 0) : points(point_count) {
    const int64_t row = width > 0 ? width : std::max<int64_t>(points, 1), rows = points / row;
    const int64_t count = std::min(std::max<int64_t>(points / kChunkPoints, 1), kMostChunks);
    for (int64_t chunk = 0; chunk < count; ++chunk) {
      first_tile.push_back(static_cast<int64_t>(tiles.size()));
      // An image is cut between its rows, where it has enough of them.
      const bool by_rows = rows >= count;
      const int64_t begin = by_rows ? rows * chunk / count * row : points * chunk / count;
      const int64_t end = by_rows ? rows * (chunk + 1) / count * row : points * (chunk + 1) / count;
      if (by_rows) {
        for (int64_t x = 0; x < row; x += kStrip)
          for (int64_t y = begin; y < end; y += row) add(y + x, y + std::min(x + kStrip, row));
      } else {
        add(begin, end);
      }
    }
    first_tile.push_back(static_cast<int64_t>(tiles.size()));
  }

  int64_t chunks() const { return static_cast<int64_t>(first_tile.size()) - 1; }
  const PointTile* begin(int64_t chunk) const { return tiles.data() + first_tile[chunk]; }
  const PointTile* end(int64_t chunk) const { return tiles.data() + first_tile[chunk + 1]; }

 private:
  void add(int64_t from, int64_t to) {
    for (; from < to; from += kTile) tiles.push_back({from, static_cast<int32_t>(std::min<int64_t>(kTile, to - from))});
  }
};

}  // namespace deeplab_fast
