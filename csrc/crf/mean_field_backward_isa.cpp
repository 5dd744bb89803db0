// Rows of labels in the backward pass of mean-field inference. Compiled per instruction set.
#include "crf/mean_field_kernels.h"
#include "isa/isa.h"
#include "lattice/rows.h"

namespace deeplab_fast {
namespace DEEPLAB_FAST_ISA_NAME {
namespace {

struct RowProducts {
  int count;
  int64_t lanes;
  float scale;
  const float *a, *b;
  float* sums;
  template <int W, int N>
  DEEPLAB_FAST_INLINE void run(int lane) const {
    for (int p = 0; p < count; ++p) {
      const Block<W, N> left = Block<W, N>::from(a + p * lanes + lane), right = Block<W, N>::from(b + p * lanes + lane);
      typename Vec<W>::type product = left.v[0] * right.v[0];
      for (int n = 1; n < N; ++n) product = product + left.v[n] * right.v[n];
      sums[p] += scale * reduce<W>(product, Add());
    }
  }
};

struct SoftmaxBackward {
  int count;
  int64_t lanes;
  const float *q, *grad, *mean;
  float* energy_grad;
  template <int W, int N>
  DEEPLAB_FAST_INLINE void run(int lane) const {
    for (int p = 0; p < count; ++p) {
      const Block<W, N> belief = Block<W, N>::from(q + p * lanes + lane);
      Block<W, N> out = Block<W, N>::from(grad + p * lanes + lane);
      for (int n = 0; n < N; ++n) out.v[n] = belief.v[n] * (mean[p] - out.v[n]);
      out.to(energy_grad + p * lanes + lane);
    }
  }
};

struct ScaleRows {
  int count;
  int64_t lanes;
  const float *factor, *from;
  bool add;
  float* to;
  template <int W, int N>
  DEEPLAB_FAST_INLINE void run(int lane) const {
    for (int p = 0; p < count; ++p) {
      Block<W, N> row = add ? Block<W, N>::from(to + p * lanes + lane) : Block<W, N>::zero();
      row.add_scaled(factor == nullptr ? 1.0f : factor[p], from + p * lanes + lane);
      row.to(to + p * lanes + lane);
    }
  }
};

struct TransformRows {
  int count, labels;
  int64_t lanes;
  const float *matrix, *from;
  float* to;
  template <int W, int N>
  DEEPLAB_FAST_INLINE void run(int lane) const {
    for (int p = 0; p < count; ++p) {
      Block<W, N> row = Block<W, N>::zero();
      if (labels == 0) {
        row = Block<W, N>::from(from + p * lanes + lane);
        const Block<W, N> diagonal = Block<W, N>::from(matrix + lane);
        for (int n = 0; n < N; ++n) row.v[n] = row.v[n] * diagonal.v[n];
      }
      for (int l = 0; l < labels; ++l) row.add_scaled(from[p * lanes + l], matrix + l * lanes + lane);
      row.to(to + p * lanes + lane);
    }
  }
};

struct LaneProducts {
  int count;
  int64_t lanes;
  const float *a, *b;
  float* sums;
  template <int W, int N>
  DEEPLAB_FAST_INLINE void run(int lane) const {
    Block<W, N> sum = Block<W, N>::zero();
    for (int p = 0; p < count; ++p) {
      const Block<W, N> left = Block<W, N>::from(a + p * lanes + lane), right = Block<W, N>::from(b + p * lanes + lane);
      for (int n = 0; n < N; ++n) sum.v[n] = sum.v[n] + left.v[n] * right.v[n];
    }
    sum.to(sums + lane);
  }
};

struct OuterProducts {
  int count, labels;
  int64_t lanes;
  const float *a, *b;
  float* sums;
  template <int W, int N>
  DEEPLAB_FAST_INLINE void run(int lane) const {
    for (int l = 0; l < labels; ++l) {
      Block<W, N> sum = Block<W, N>::zero();
      for (int p = 0; p < count; ++p) sum.add_scaled(a[p * lanes + l], b + p * lanes + lane);
      sum.to(sums + l * lanes + lane);
    }
  }
};

}  // namespace

void row_products(int count, int lanes, float scale, const float* a, const float* b, float* sums) {
  for_lane_blocks(lanes, RowProducts{count, lanes, scale, a, b, sums});
}
void softmax_backward(int count, int lanes, const float* q, const float* grad, float* energy_grad) {
  float mean[VisitOrder::kMostInBlock] = {};
  row_products(count, lanes, 1.0f, q, grad, mean);
  for_lane_blocks(lanes, SoftmaxBackward{count, lanes, q, grad, mean, energy_grad});
}
void scale_rows(int count, int lanes, const float* factor, const float* from, bool add, float* to) {
  for_lane_blocks(lanes, ScaleRows{count, lanes, factor, from, add, to});
}
void transform_rows(int count, int labels, int lanes, const float* matrix, const float* from, float* to) {
  for_lane_blocks(lanes, TransformRows{count, labels, lanes, matrix, from, to});
}
void lane_products(int count, int lanes, const float* a, const float* b, float* sums) {
  for_lane_blocks(lanes, LaneProducts{count, lanes, a, b, sums});
}
void outer_products(int count, int labels, int lanes, const float* a, const float* b, float* sums) {
  for_lane_blocks(lanes, OuterProducts{count, labels, lanes, a, b, sums});
}

extern const MeanFieldBackwardKernels mean_field_backward_kernels;
const MeanFieldBackwardKernels mean_field_backward_kernels{
    DEEPLAB_FAST_SET,
    DEEPLAB_FAST_KERNEL(softmax_backward),
    DEEPLAB_FAST_KERNEL(scale_rows),
    DEEPLAB_FAST_KERNEL(transform_rows),
    DEEPLAB_FAST_KERNEL(row_products),
    DEEPLAB_FAST_KERNEL(lane_products),
    DEEPLAB_FAST_KERNEL(outer_products),
};

}  // namespace DEEPLAB_FAST_ISA_NAME
}  // namespace deeplab_fast
