// Splat, blur and slice of rows of labels. Compiled per instruction set.
#include "rows.h"

namespace deeplab_fast {
namespace DEEPLAB_FAST_ISA_NAME {
namespace {

struct Splat {
  const Taps& taps;
  PointTile tile;
  int64_t lanes;
  const float* source;
  float* rows;
  template <int W, int N>
  DEEPLAB_FAST_INLINE void run(int lane) const {
    by_shape(taps, [&](auto constant_count, auto scattered) {
      const int count = constant_count.value > 0 ? constant_count.value : taps.count;
      for (int p = 0; p < tile.count; ++p) {
        const int64_t point = tile.first + p;
        const int32_t* target = taps.row + point * count;
        const float* weight = taps.weight + point * count;
        Block<W, N> value = Block<W, N>::from(source + p * lanes + lane);
        if (taps.before != nullptr)
          for (int n = 0; n < N; ++n) value.v[n] = value.v[n] * taps.before[point];
        for (int j = 0; j < count; ++j)
          add_to_row<W, N, scattered.value != 0>(target[j], weight[j], value, rows + lane, lanes);
      }
    });
  }
};

struct Slice {
  const Taps& taps;
  PointTile tile;
  int64_t lanes;
  const float* rows;
  float* out;
  template <int W, int N>
  DEEPLAB_FAST_INLINE void run(int lane) const {
    by_shape(taps, [&](auto constant_count, auto) {
      const int count = constant_count.value > 0 ? constant_count.value : taps.count;
      for (int p = 0; p < tile.count; ++p) {
        const int64_t point = tile.first + p;
        Block<W, N> value =
            slice_rows<W, N>(count, taps.vertex + point * count, taps.weight + point * count, rows + lane, lanes);
        const float factor = taps.scale * (taps.after != nullptr ? taps.after[point] : 1.0f);
        for (int n = 0; n < N; ++n) value.v[n] = value.v[n] * factor;
        value.to(out + p * lanes + lane);
      }
    });
  }
};

// new = old + (previous old + next old) / 2. Whether a neighbour is of the same chain is a mask, not a branch: chains
// are a few vertices long, and a wrong guess at each end would cost more than the arithmetic. Nor a factor of 0, which
// would let a NaN into another chain.
struct Blur {
  const int32_t* chain;
  int64_t count, stride;
  float* rows;
  template <int W, int N>
  DEEPLAB_FAST_INLINE void run(int lane) const {
    constexpr int64_t kAhead = 12;
    Block<W, N> previous = Block<W, N>::zero();
    const auto row_of = [&](int64_t i) { return rows + (chain[i] < 0 ? ~chain[i] : chain[i]) * stride + lane; };
    float* row = row_of(0);
    Block<W, N> current = Block<W, N>::from(row);
    for (int64_t i = 0; i < count; ++i) {
      const bool last = i + 1 == count;
      const uint32_t has_previous = chain[i] < 0 ? 0 : ~uint32_t{0};
      const uint32_t has_next = last || chain[i + 1] < 0 ? 0 : ~uint32_t{0};
      float* next_row = row_of(last ? i : i + 1);
      prefetch_row(row_of(i + kAhead < count ? i + kAhead : i), W * N);
      const Block<W, N> next = Block<W, N>::from(next_row);
      Block<W, N> sum = current;
      sum.add_scaled_if(has_previous, 0.5f, previous);
      sum.add_scaled_if(has_next, 0.5f, next);
      sum.to(row);
      previous = current, current = next, row = next_row;
    }
  }
};

struct BlurRowOf {
  const BlurRow& row;
  template <int W, int N>
  DEEPLAB_FAST_INLINE void run(int lane) const {
    const auto neighbour = [&](const float* base, int32_t v) {
      const float* from = v < 0 ? kZeros : base + v * row.in_stride + lane;
      asm("" : "+r"(from));  // as in row_at
      return from;
    };
    const float* centre = row.centre_base + row.begin * row.in_stride + lane;
    float* out = row.out_base + row.begin * row.out_stride + lane;
    for (int64_t v = row.begin; v < row.end; ++v, centre += row.in_stride, out += row.out_stride) {
      Block<W, N> sum = Block<W, N>::from(neighbour(row.previous_base, row.previous[v]));
      sum.add(neighbour(row.next_base, row.next[v]));
      Block<W, N> result = Block<W, N>::from(centre);
      result.add_scaled(0.5f, sum);
      result.to(out);
    }
  }
};

struct Fold {
  const int32_t* target;
  int64_t begin, end, first, lanes;
  float* rows;
  template <int W, int N>
  DEEPLAB_FAST_INLINE void run(int lane) const {
    for (int64_t i = begin; i < end; ++i) {
      float* row = rows + target[i] * lanes + lane;
      Block<W, N> sum = Block<W, N>::from(row);
      sum.add(rows + (first + i) * lanes + lane);
      sum.to(row);
    }
  }
};

}  // namespace

void splat(const Taps& taps, PointTile tile, int lanes, const float* source, float* rows) {
  for_lane_blocks(lanes, Splat{taps, tile, lanes, source, rows});
}
void slice(const Taps& taps, PointTile tile, int lanes, const float* rows, float* out) {
  for_lane_blocks(lanes, Slice{taps, tile, lanes, rows, out});
}
void blur(const int32_t* chain, int64_t count, int lanes, int64_t stride, float* rows) {
  if (count > 0) for_lane_blocks(lanes, Blur{chain, count, stride, rows});
}
void blur_row(const BlurRow& row) {
  for_lane_blocks(row.lanes, BlurRowOf{row});
}
void fold(const int32_t* target, int64_t begin, int64_t end, int64_t first, int lanes, float* rows) {
  if (begin < end) for_lane_blocks(lanes, Fold{target, begin, end, first, lanes, rows});
}

}  // namespace DEEPLAB_FAST_ISA_NAME
}  // namespace deeplab_fast
