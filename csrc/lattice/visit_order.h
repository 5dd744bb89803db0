// In which order, and by which task, points are visited.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace deeplab_fast {

// Points that are taken together: a rectangle of an image, or a stretch of a list. A point's place in its block counts
// along the lines. Per-point data "in visiting order" lie at `begin` + place.
struct PointBlock {
  int64_t number;         // of the block, in visiting order
  int64_t begin;          // points of all blocks before it
  int64_t first;          // its first point
  int32_t width, height;  // `height` lines of `width` consecutive points ...
  int64_t stride;         // ... that begin so many points apart

  int32_t count() const { return width * height; }
  int64_t point(int32_t place) const { return first + place / width * stride + place % width; }
  // Calls body(place, point, count) for stretches of at most `most` consecutive points.
  template <class Body>
  void each_stretch(int32_t most, Body&& body) const {
    for (int32_t y = 0; y < height; ++y)
      for (int32_t x = 0; x < width; x += most) body(y * width + x, first + y * stride + x, std::min(most, width - x));
  }
  template <class Body>
  void each_line(Body&& body) const {
    each_stretch(width, body);
  }
};

// Points are cut into chunks, one task each, and chunks into blocks. The cut depends on the size only, not on the
// number of threads. An image (`width` > 0) is cut between its lines, and a chunk of it into nearly square blocks:
// pixels of one lattice simplex lie beside and below each other, and what a block needs stays in the second-level
// cache.
struct VisitOrder {
  static constexpr int kMostInBlock = 1024;
  static constexpr int64_t kChunkPoints = 22000, kMostChunks = 16;

  int64_t points, width;
  std::vector<PointBlock> blocks;
  std::vector<int64_t> first_block;  // of each chunk; and the end

  explicit VisitOrder(int64_t point_count, int64_t image_width = 0) : points(point_count), width(image_width) {
    const int64_t row = width > 0 ? width : std::max<int64_t>(points, 1), rows = points / row;
    const int64_t count = std::min(std::max<int64_t>(points / kChunkPoints, 1), kMostChunks);
    for (int64_t chunk = 0; chunk < count; ++chunk) {
      first_block.push_back(static_cast<int64_t>(blocks.size()));
      if (rows >= count && width > 0) {
        add_lines(row, rows * chunk / count, rows * (chunk + 1) / count);
      } else {
        add_stretches(points * chunk / count, points * (chunk + 1) / count);
      }
    }
    first_block.push_back(static_cast<int64_t>(blocks.size()));
  }

  int64_t chunks() const { return static_cast<int64_t>(first_block.size()) - 1; }
  const PointBlock* begin(int64_t chunk) const { return blocks.data() + first_block[chunk]; }
  const PointBlock* end(int64_t chunk) const { return blocks.data() + first_block[chunk + 1]; }
  bool same_as(const VisitOrder& other) const { return points == other.points && width == other.width; }

 private:
  static int64_t parts_of(int64_t size, int64_t most) { return std::max<int64_t>((size + most - 1) / most, 1); }

  // Lines [from, to) of an image, in blocks of nearly equal sides.
  void add_lines(int64_t row, int64_t from, int64_t to) {
    constexpr int64_t kSide = 32;
    static_assert(kSide * kSide == kMostInBlock);
    const int64_t down = parts_of(to - from, row < kSide ? kMostInBlock / row : kSide);
    for (int64_t i = 0; i < down; ++i) {
      const int64_t top = from + (to - from) * i / down, bottom = from + (to - from) * (i + 1) / down;
      if (top == bottom) continue;
      const int64_t across = parts_of(row, kMostInBlock / (bottom - top));
      for (int64_t j = 0; j < across; ++j) {
        const int64_t left = row * j / across, right = row * (j + 1) / across;
        add(top * row + left, right - left, bottom - top, row);
      }
    }
  }
  void add_stretches(int64_t from, int64_t to) {
    for (; from < to; from += kMostInBlock) add(from, std::min<int64_t>(kMostInBlock, to - from), 1, 0);
  }
  void add(int64_t first, int64_t columns, int64_t lines, int64_t stride) {
    const int64_t begin = blocks.empty() ? 0 : blocks.back().begin + blocks.back().count();
    blocks.push_back({static_cast<int64_t>(blocks.size()), begin, first, static_cast<int32_t>(columns),
                      static_cast<int32_t>(lines), stride});
  }
};

}  // namespace deeplab_fast
