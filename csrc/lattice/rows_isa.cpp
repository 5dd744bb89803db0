// Splat, blur and slice of rows of labels. Compiled per instruction set.
#include "isa/isa.h"
#include "lattice/rows.h"
#include "lattice/simplex_rows.h"

namespace deeplab_fast {
namespace DEEPLAB_FAST_ISA_NAME {
namespace {

struct Splat {
  const LatticeView& view;
  const PointBlock& block;
  const float* source;
  float* rows;
  template <int kLanes>
  DEEPLAB_FAST_INLINE void run(int first, int64_t lanes) const {
    const float *from = source + first, *before = view.before != nullptr ? view.before + block.begin : nullptr;
    by_corners(view.corners, [&](auto corners) {
      splat_lanes<kLanes, corners.value>(view, block, rows + first, lanes, [=](int64_t place, int lane, auto value) {
        value = value.from(from + place * lanes + lane);
        if (before != nullptr) value.multiply(before[place]);
        return value;
      });
    });
  }
};

struct Slice {
  const LatticeView& view;
  const PointBlock& block;
  const float* rows;
  float* out;
  template <int kLanes>
  DEEPLAB_FAST_INLINE void run(int first, int64_t lanes) const {
    const float scale = view.scale, *after = view.after != nullptr ? view.after + block.begin : nullptr;
    float* to = out + first;
    by_corners(view.corners, [&](auto corners) {
      slice_lanes<kLanes, corners.value>(view, block, rows + first, lanes, [=](int64_t place, int lane, auto sum) {
        sum.multiply(scaled_factor(scale, after, place));
        sum.to(to + place * lanes + lane);
      });
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
    constexpr int64_t kAhead = 40;
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
      const float* from = v == row.none ? kZeros : base + v * row.in_stride + lane;
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

struct AddWeightGradient {
  const LatticeView& view;
  const PointBlock& block;
  int64_t lanes;
  const WeightGradient& gradient;
  template <int W, int N>
  DEEPLAB_FAST_INLINE void run(int lane) const {
    SimplexWalk<int32_t> walk(view, block, view.vertex, view.corners);
    float* out = gradient.weight_grad + block.begin * view.corners;
    for (; walk.size < walk.size_end; walk.next()) {
      for (int left = *walk.size; left > 0; --left, ++walk.place, out += view.corners) {
        const int64_t offset = *walk.place * lanes + lane;
        const Block<W, N> sliced = Block<W, N>::from(gradient.sliced + offset);
        const Block<W, N> splatted = Block<W, N>::from(gradient.splatted + offset);
        for (int j = 0; j < view.corners; ++j) {
          const Block<W, N> blurred = Block<W, N>::from(row_at(gradient.blurred + lane, walk.row[j], lanes));
          const Block<W, N> back = Block<W, N>::from(row_at(gradient.back + lane, walk.row[j], lanes));
          typename Vec<W>::type product = broadcast<W>(0.0f);
          for (int n = 0; n < N; ++n) product = product + sliced.v[n] * blurred.v[n] + splatted.v[n] * back.v[n];
          out[j] += gradient.scale * reduce<W>(product, Add());
        }
      }
    }
  }
};

}  // namespace

void splat(const LatticeView& view, const PointBlock& block, int lanes, const float* source, float* rows) {
  if (lanes > 1) return for_walks(lanes, Splat{view, block, source, rows});
  if (view.before == nullptr) return splat_one(view, block, source, rows);
  float scaled[kMostInBlock];
  for (int p = 0; p < block.count(); ++p) scaled[p] = view.before[block.begin + p] * source[p];
  splat_one(view, block, scaled, rows);
}
void slice(const LatticeView& view, const PointBlock& block, int lanes, const float* rows, float* out) {
  if (lanes > 1) return for_walks(lanes, Slice{view, block, rows, out});
  slice_one(view, block, rows, out);
  const float* after = view.after != nullptr ? view.after + block.begin : nullptr;
  for (int p = 0; p < block.count(); ++p) out[p] *= scaled_factor(view.scale, after, p);
}
void blur(const int32_t* chain, int64_t count, int lanes, int64_t stride, float* rows) {
  if (count > 0) for_lane_blocks(lanes, Blur{chain, count, stride, rows});
}
void blur_row(const BlurRow& row) {
  for_lane_blocks(row.lanes, BlurRowOf{row});
}
void blur_values(const int32_t* previous, const int32_t* next, int64_t begin, int64_t end, const float* in,
                 float* out) {
  for (int64_t v = begin; v < end; ++v) out[v] = in[v] + 0.5f * (in[previous[v]] + in[next[v]]);
}
void fold(const int32_t* target, int64_t begin, int64_t end, int64_t first, int lanes, float* rows) {
  if (begin < end) for_lane_blocks(lanes, Fold{target, begin, end, first, lanes, rows});
}
void add_weight_gradient(const LatticeView& view, const PointBlock& block, int lanes, const WeightGradient& gradient) {
  for_lane_blocks(lanes, AddWeightGradient{view, block, lanes, gradient});
}

extern const RowKernels row_kernels;
const RowKernels row_kernels{
    DEEPLAB_FAST_SET,
    DEEPLAB_FAST_KERNEL(splat),
    DEEPLAB_FAST_KERNEL(slice),
    DEEPLAB_FAST_KERNEL(blur),
    DEEPLAB_FAST_KERNEL(blur_row),
    DEEPLAB_FAST_KERNEL(blur_values),
    DEEPLAB_FAST_KERNEL(fold),
    DEEPLAB_FAST_KERNEL(add_weight_gradient),
};

}  // namespace DEEPLAB_FAST_ISA_NAME
}  // namespace deeplab_fast
