// Splat and slice of the points of a block, simplex by simplex. Included only by *_isa.cpp files.
//
// With several labels a lane is a label: the rows of a simplex's corners are loaded into registers once, each of its
// points is then a few multiply-adds with its weights; a splat sums in registers and adds to the rows once.
// With a single one a lane is a corner, and a point is one multiply-add of a vector.
#pragma once

#include "lattice/rows.h"

namespace deeplab_fast {
namespace DEEPLAB_FAST_ISA_NAME {

constexpr int kMostInBlock = VisitOrder::kMostInBlock;
// Simplices by which rows are fetched ahead.
constexpr int kSimplicesAhead = 32;
// Floats by which weights are: they are read from memory once a pass, in stretches too short for the processor to
// notice.
constexpr int kWeightsAhead = 1024;

// Lanes that a walk over the simplices takes at once: 4, 8, 16, 24 or 32, in parts whose rows stay in registers.
constexpr int kMostWalked = 32;

// Calls body(Block(), first_lane) for the parts of kLanes lanes.
template <int kLanes, int kFirst = 0, class Body>
DEEPLAB_FAST_INLINE void for_parts(Body&& body) {
  constexpr int kLeft = kLanes - kFirst;
  constexpr int kPart = kLeft >= kRegisterLanes ? kRegisterLanes : kLeft;
  if constexpr (kLeft == 0) {
    return;
  } else if constexpr (kPart == 24) {
    body(Block<16, 1, true>(), kFirst);
  } else {
    constexpr int W = kPart < kWidest ? kPart : kWidest;
    body(Block<W, kPart / W>(), kFirst);
  }
  if constexpr (kLeft > kPart) for_parts<kLanes, kFirst + kPart>(body);
}

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// Calls body.template run<kLanes>(first_lane, lanes) for walks that cover `lanes` (4, or a multiple of 8). With one
// walk the number of lanes is a constant there.
template <class Body>
DEEPLAB_FAST_INLINE void for_walks(int lanes, Body&& body) {
  const auto walk = [&](auto count, int lane) {
    constexpr int kLanes = decltype(count)::value;
    if (lanes == kLanes) return body.template run<kLanes>(0, kLanes);
    body.template run<kLanes>(lane, lanes);
  };
  int lane = 0;
  for (; lane + kMostWalked <= lanes; lane += kMostWalked) walk(Constant<kMostWalked>(), lane);
  switch (lanes - lane) {
    case 4:
      return walk(Constant<4>(), lane);
    case 8:
      return walk(Constant<8>(), lane);
    case 16:
      return walk(Constant<16>(), lane);
    case 24:
      return walk(Constant<24>(), lane);
    default:
      return;
  }
}

// Calls body(count) with a constant where the rows of that many corners fit the registers, else with 0, which stands
// for view.corners.
template <class Body>
DEEPLAB_FAST_INLINE void by_corners(int corners, Body&& body) {
  switch (corners) {
    case 3:
      return body(Constant<3>());
    case 4:
      return body(Constant<4>());
    case 5:
      return body(Constant<5>());
    case 6:
      return body(Constant<6>());
    default:
      return body(Constant<0>());
  }
}

// A block's simplices and their points, one after another. `row` has something of each corner of the simplex: a row, or
// a number among the block's vertices.
template <class Row>
struct SimplexWalk {
  const uint16_t *size, *size_end;
  const Row* row;
  const uint16_t* place;
  const float* weight;
  int corners;

  DEEPLAB_FAST_INLINE SimplexWalk(const LatticeView& view, const PointBlock& block, const Row* rows, int corner_count)
      : size(view.size + view.first_simplex[block.number]),
        size_end(view.size + view.first_simplex[block.number + 1]),
        row(rows + view.first_simplex[block.number] * corner_count),
        place(view.place + block.begin),
        weight(view.weight + block.begin * corner_count),
        corners(corner_count) {}

  // To the next simplex: from behind the points of this one, or over them.
  DEEPLAB_FAST_INLINE void next() { ++size, row += corners; }
  DEEPLAB_FAST_INLINE void skip() {
    place += *size, weight += *size * corners;
    next();
  }
};

DEEPLAB_FAST_INLINE int32_t row_number(int32_t row) {
  return row ^ row >> 31;
}

DEEPLAB_FAST_INLINE void fetch_ahead(const SimplexWalk<int32_t>& walk, const float* rows, int64_t lanes, int width) {
  if (walk.size + kSimplicesAhead >= walk.size_end) return;
  const int32_t* later = walk.row + kSimplicesAhead * walk.corners;
  for (int j = 0; j < walk.corners; ++j) prefetch_row(row_at(rows, row_number(later[j]), lanes), width);
}

// use(place, lane, block of sums over corners of weight * row), for every point of the block and all parts of the
// lanes.
template <int kLanes, int kCorners, class Use>
DEEPLAB_FAST_INLINE void slice_lanes(const LatticeView& view, const PointBlock& block, const float* rows, int64_t lanes,
                                     Use&& use) {
  const int corners = kCorners > 0 ? kCorners : view.corners;
  SimplexWalk<int32_t> walk(view, block, view.vertex, corners);
  for (; walk.size < walk.size_end; walk.skip()) {
    if (view.scattered) fetch_ahead(walk, rows, lanes, kLanes);
    for_parts<kLanes>([&](auto part, int lane) {
      using B = decltype(part);
      const float* weight = walk.weight;
      B row[kCorners > 0 ? kCorners : 1];
      for (int j = 0; j < kCorners; ++j) row[j] = B::from(row_at(rows, walk.row[j], lanes) + lane);
      for (int p = 0; p < *walk.size; ++p, weight += corners) {
        if (lane == 0) __builtin_prefetch(weight + kWeightsAhead);
        B sum = B::zero();
        if constexpr (kCorners > 0) {
          sum = row[0];
          sum.multiply(weight[0]);
          for (int j = 1; j < kCorners; ++j) sum.add_scaled(weight[j], row[j]);
        } else {
          for (int j = 0; j < corners; ++j) sum.add_scaled(weight[j], row_at(rows, walk.row[j], lanes) + lane);
        }
        use(walk.place[p], lane, sum);
      }
    });
  }
}

// The row, or zeros, without a jump: first splats are too irregular to be predicted.
DEEPLAB_FAST_INLINE const float* zeros_if(bool first, const float* row) {
  const auto mask = -static_cast<uintptr_t>(first);
  return reinterpret_cast<const float*>((reinterpret_cast<uintptr_t>(row) & ~mask) |
                                        (reinterpret_cast<uintptr_t>(kZeros) & mask));
}

// Adds get(place, lane, Block()) of every point of the block to the rows of its corners, times the weight. At the first
// splat into a row it sets the row, so that rows need no clearing.
template <int kLanes, int kCorners, class Get>
DEEPLAB_FAST_INLINE void splat_lanes(const LatticeView& view, const PointBlock& block, float* rows, int64_t lanes,
                                     Get&& get) {
  const int corners = kCorners > 0 ? kCorners : view.corners;
  SimplexWalk<int32_t> walk(view, block, view.row, corners);
  for (; walk.size < walk.size_end; walk.skip()) {
    if (view.scattered) fetch_ahead(walk, rows, lanes, kLanes);
    for_parts<kLanes>([&](auto part, int lane) {
      using B = decltype(part);
      const auto add_to_row = [&](int j, B sum) {
        float* row = row_at(rows, row_number(walk.row[j]), lanes) + lane;
        sum.add(zeros_if(walk.row[j] < 0, row));
        sum.to(row);
      };
      const float* weight = walk.weight;
      if constexpr (kCorners > 0) {
        B sum[kCorners];
        const B first = get(walk.place[0], lane, B());
        for (int j = 0; j < kCorners; ++j) sum[j] = first, sum[j].multiply(weight[j]);
        for (int p = 1; p < *walk.size; ++p) {
          weight += corners;
          const B value = get(walk.place[p], lane, B());
          for (int j = 0; j < kCorners; ++j) sum[j].add_scaled(weight[j], value);
        }
        for (int j = 0; j < kCorners; ++j) add_to_row(j, sum[j]);
      } else {
        for (int j = 0; j < corners; ++j) {
          B sum = B::zero();
          for (int p = 0; p < *walk.size; ++p)
            sum.add_scaled(weight[int64_t{p} * corners + j], get(walk.place[p], lane, B()));
          add_to_row(j, sum);
        }
      }
    });
  }
}

// What a sliced value is multiplied by (`after` null: its factors are 1).
DEEPLAB_FAST_INLINE float scaled_factor(float scale, const float* after, int64_t place) {
  return after != nullptr ? scale * after[place] : scale;
}

// --- One label ---------------------------------------------------------------------------------------------------

// The rows of a simplex's corners as vectors, one number a corner; 0 in the lanes beyond, whose weights are of another
// point.
template <int kLanes, int W>
struct CornerVectors {
  typename Vec<W>::type v[kLanes / W];

  template <class Row>
  DEEPLAB_FAST_INLINE CornerVectors(int corners, Row&& row) {
    float one[kLanes];
    for (int j = 0; j < kLanes; ++j) one[j] = j < corners ? row(j) : 0.0f;
    for (int n = 0; n < kLanes / W; ++n) {
      if constexpr (W == 4)
        v[n] = typename Vec<W>::type{one[n * W], one[n * W + 1], one[n * W + 2], one[n * W + 3]};
      else
        v[n] = typename Vec<W>::type{one[0], one[1], one[2], one[3], one[4], one[5], one[6], one[7]};
    }
  }
};

// Any number of corners, without vectors.
DEEPLAB_FAST_INLINE void slice_one_of_any(const LatticeView& view, const PointBlock& block, const float* rows,
                                          float* sliced) {
  SimplexWalk<int32_t> walk(view, block, view.vertex, view.corners);
  for (; walk.size < walk.size_end; walk.next()) {
    for (int left = *walk.size; left > 0; --left, ++walk.place, walk.weight += view.corners) {
      float sum = 0.0f;
      for (int j = 0; j < view.corners; ++j) sum += walk.weight[j] * rows[walk.row[j]];
      sliced[*walk.place] = sum;
    }
  }
}
DEEPLAB_FAST_INLINE void splat_one_of_any(const LatticeView& view, const PointBlock& block, const float* value,
                                          float* rows) {
  SimplexWalk<int32_t> walk(view, block, view.row, view.corners);
  for (; walk.size < walk.size_end; walk.skip()) {
    for (int j = 0; j < view.corners; ++j) {
      float sum = 0.0f;
      for (int p = 0; p < *walk.size; ++p) sum += walk.weight[int64_t{p} * view.corners + j] * value[walk.place[p]];
      rows[row_number(walk.row[j])] += sum;
    }
  }
}

// Few corners: their number, or 0 for view.corners; kLanes: that many or a few more. The values of the block's vertices
// are copied to where they lie close together, and its sums made there.
constexpr int kMostValues = kMostNumberedCorners * kMostInBlock;
template <int kLanes, int kCorners>
DEEPLAB_FAST_INLINE void slice_one_of(const LatticeView& view, const PointBlock& block, const float* rows,
                                      float* sliced) {
  constexpr int W = kLanes < kWidest ? kLanes : kWidest < 8 ? kWidest : 8;
  const int corners = kCorners > 0 ? kCorners : view.corners, count = block.count();
  alignas(64) float value[kMostValues], product[(kMostInBlock + W) * W], sum[kMostInBlock + W];
  SimplexWalk<uint16_t> walk(view, block, view.corner, corners);
  const int64_t first = view.first_of_block[block.number], vertices = view.first_of_block[block.number + 1] - first;
  for (int64_t i = 0; i < vertices; ++i) value[i] = rows[view.block_vertex[first + i]];
  float* to = product;
  for (; walk.size < walk.size_end; walk.next()) {
    const CornerVectors<kLanes, W> row(corners, [&](int j) { return value[walk.row[j]]; });
    for (int left = *walk.size; left > 0; --left, to += W, walk.weight += corners) {
      __builtin_prefetch(walk.weight + kWeightsAhead);
      typename Vec<W>::type one = load<W>(walk.weight) * row.v[0];
      for (int n = 1; n < kLanes / W; ++n) one = one + load<W>(walk.weight + n * W) * row.v[n];
      store<W>(to, one);
    }
  }
  for (int p = 0; p < count; p += W) {
    typename Vec<W>::type products[W];
    for (int i = 0; i < W; ++i) products[i] = load<W>(product + (p + i) * W);
    reduce_rows<W>(products, Add(), sum + p);
  }
  for (int p = 0; p < count; ++p) sliced[walk.place[p]] = sum[p];
}

template <int kLanes, int kCorners>
DEEPLAB_FAST_INLINE void splat_one_of(const LatticeView& view, const PointBlock& block, const float* value,
                                      float* rows) {
  constexpr int W = kLanes < kWidest ? kLanes : kWidest < 8 ? kWidest : 8;
  const int corners = kCorners > 0 ? kCorners : view.corners;
  alignas(64) float total[kMostValues];
  SimplexWalk<uint16_t> walk(view, block, view.corner, corners);
  const int64_t first = view.first_of_block[block.number], vertices = view.first_of_block[block.number + 1] - first;
  for (int64_t i = 0; i < vertices; ++i) total[i] = 0.0f;
  for (; walk.size < walk.size_end; walk.next()) {
    typename Vec<W>::type sum[kLanes / W];
    for (int n = 0; n < kLanes / W; ++n) sum[n] = broadcast<W>(0.0f);
    for (int left = *walk.size; left > 0; --left, ++walk.place, walk.weight += corners) {
      const float one = value[*walk.place];
      for (int n = 0; n < kLanes / W; ++n) sum[n] = sum[n] + load<W>(walk.weight + n * W) * one;
    }
    for (int j = 0; j < corners; ++j) total[walk.row[j]] += sum[j / W][j % W];
  }
  for (int64_t i = 0; i < vertices; ++i) rows[row_number(view.block_row[first + i])] += total[i];
}

// sliced[place] = sum over corners of weight * rows[vertex].
DEEPLAB_FAST_INLINE void slice_one(const LatticeView& view, const PointBlock& block, const float* rows, float* sliced) {
  if (view.corners > kMostNumberedCorners) return slice_one_of_any(view, block, rows, sliced);
  if (view.corners == 3) return slice_one_of<4, 3>(view, block, rows, sliced);
  if (view.corners == 6) return slice_one_of<8, 6>(view, block, rows, sliced);
  if (view.corners <= 4) return slice_one_of<4, 0>(view, block, rows, sliced);
  slice_one_of<8, 0>(view, block, rows, sliced);
}
// rows[row] += weight * value[place].
DEEPLAB_FAST_INLINE void splat_one(const LatticeView& view, const PointBlock& block, const float* value, float* rows) {
  if (view.corners > kMostNumberedCorners) return splat_one_of_any(view, block, value, rows);
  if (view.corners == 3) return splat_one_of<4, 3>(view, block, value, rows);
  if (view.corners == 6) return splat_one_of<8, 6>(view, block, value, rows);
  if (view.corners <= 4) return splat_one_of<4, 0>(view, block, value, rows);
  splat_one_of<8, 0>(view, block, value, rows);
}

}  // namespace DEEPLAB_FAST_ISA_NAME
}  // namespace deeplab_fast
