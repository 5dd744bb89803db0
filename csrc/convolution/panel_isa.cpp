// The inner product of the convolution kernels. Compiled per instruction set.
#include "convolution/panel.h"
#include "isa/isa.h"
#include "isa/simd.h"

namespace deeplab_fast {
namespace DEEPLAB_FAST_ISA_NAME {
namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
constexpr PanelShape kShape = {16, {0, 12, 12, 8}};
#elif defined(__AVX2__)
constexpr int kWidth = 8;
constexpr PanelShape kShape = {8, {0, 8, 6, 4}};
#else
constexpr int kWidth = 4;
constexpr PanelShape kShape = {4, {0, 8, 6, 4}};
#endif

// M rows by N registers: all M * N sums stay in registers.
template <int M, int N>
void multiply(const PanelProduct& product) {
  using V = typename Vec<kWidth>::type;
  V sum[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) sum[m][n] = V{};
  const float* const* rows = product.rows;
  for (int64_t s = 0; s < product.segments; ++s, rows += M) {
    const float* row[M];
    for (int m = 0; m < M; ++m) row[m] = rows[m];
    const float* panel = product.panels[s];
#pragma GCC unroll 2
    for (int64_t r = 0; r < product.length; ++r, panel += N * kWidth) {
      V lanes[N];
      for (int n = 0; n < N; ++n) lanes[n] = load<kWidth>(panel + n * kWidth);
      for (int m = 0; m < M; ++m) {
        const V factor = broadcast<kWidth>(row[m][r]);
        for (int n = 0; n < N; ++n) sum[m][n] += factor * lanes[n];
      }
    }
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) {
      float* to = product.out[m] + n * kWidth;
      store<kWidth>(to, product.add ? load<kWidth>(to) + sum[m][n] : sum[m][n]);
    }
}

template <int M, int N>
void multiply_rows(const PanelProduct& product) {
  if constexpr (M > 0) {
    if (product.count == M)
      multiply<M, N>(product);
    else
      multiply_rows<M - 1, N>(product);
  }
}

// M pixels by K classes.
template <int M, int K>
void dot(const DotProduct& product) {
  using V = typename Vec<kWidth>::type;
  V sum[M][K];
  const float* x[M];
  for (int m = 0; m < M; ++m) {
    x[m] = product.x[m];
    for (int k = 0; k < K; ++k) sum[m][k] = V{};
  }
  const float* weights = product.weights;
#pragma GCC unroll 2
  for (int64_t c = 0; c < product.length; c += kWidth, weights += K * kWidth) {
    V weight[K];
    for (int k = 0; k < K; ++k) weight[k] = load<kWidth>(weights + k * kWidth);
    for (int m = 0; m < M; ++m) {
      const V value = load<kWidth>(x[m] + c);
      for (int k = 0; k < K; ++k) sum[m][k] += value * weight[k];
    }
  }
  for (int m = 0; m < M; ++m)
    for (int k = 0; k < K; ++k) {
      float* to = product.sums[m] + k * kWidth;
      store<kWidth>(to, product.add ? load<kWidth>(to) + sum[m][k] : sum[m][k]);
    }
}

template <int M, int K>
void dot_rows(const DotProduct& product) {
  if constexpr (M > 0) {
    if (product.count == M)
      dot<M, K>(product);
    else
      dot_rows<M - 1, K>(product);
  }
}

}  // namespace

void dot_product(const DotProduct& product) {
  switch (product.classes) {
    case 1:
      return dot_rows<kShape.rows[1], 1>(product);
    case 2:
      return dot_rows<kShape.rows[2], 2>(product);
    default:
      return dot_rows<kShape.rows[3], 3>(product);
  }
}

// out[i] = sum over lanes of sums[i][lane]
void add_lanes(const float* sums, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = reduce<kWidth>(load<kWidth>(sums + i * kWidth), Add{});
}

void panel_product(const PanelProduct& product) {
  switch (product.lanes / kWidth) {
    case 1:
      return multiply_rows<kShape.rows[1], 1>(product);
    case 2:
      return multiply_rows<kShape.rows[2], 2>(product);
    default:
      return multiply_rows<kShape.rows[3], 3>(product);
  }
}

extern const PanelKernels panel_kernels;
const PanelKernels panel_kernels{
    DEEPLAB_FAST_SET,
    .shape = kShape,
    DEEPLAB_FAST_KERNEL(panel_product),
    DEEPLAB_FAST_KERNEL(dot_product),
    DEEPLAB_FAST_KERNEL(add_lanes),
};

}  // namespace DEEPLAB_FAST_ISA_NAME
}  // namespace deeplab_fast
