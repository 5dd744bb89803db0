// Where a feature vector lies in the permutohedral lattice (Adams, Baek, Davis: "Fast High-Dimensional Filtering Using
// the Permutohedral Lattice", 2010). The one definition of this maths: the CPU build calls it with a vector of points
// for `F`, a CUDA kernel with `float`.
//
// A vertex exists or it does not, so one different rounding here changes a result by a finite amount. Operations and
// their order are those of Krähenbühl's code, and files that call locate_simplex, barycentric_weights or
// weights_backward are compiled with -ffp-contract=off (nvcc: -fmad=false); tests/build/test_layers.py holds the build
// to it.
#pragma once

#if defined(__CUDACC__)
#define DEEPLAB_FAST_HD __host__ __device__ inline
#else
#define DEEPLAB_FAST_HD inline __attribute__((always_inline))
#endif

namespace deeplab_fast {

// Beyond this pydensecrf's 16-bit keys wrap around; we refuse instead.
constexpr int kMaxKey = 32767;
constexpr int kMaxDimensions = kMaxKey / 4;  // with more, hardly a feature fits the range of keys
constexpr int kMaxDeviceDimensions = 64;     // on a GPU, where a thread's arrays have a fixed size

// Diagonal of the embedding E (p. 5), times the standard deviation of the blur in lattice units (p. 6).
inline float embedding_scale(int axis, int dimensions) {
  const float blur_std = static_cast<float>(__builtin_sqrt(2.0 / 3.0) * (dimensions + 1));
  return static_cast<float>(1.0 / __builtin_sqrt(static_cast<double>((axis + 2) * (axis + 1))) * blur_std);
}

// Amplitude lost by splat, blur and slice together (Krähenbühl's alpha).
inline float slice_scale(int dimensions) {
  return 1.0f / (1.0f + __builtin_powf(2.0f, -dimensions));
}

// Nearest integer, halves to even, for |x| < 2^22: in the default rounding mode, on any instruction set.
template <class F>
DEEPLAB_FAST_HD F round_half_even(F x) {
  return (x + 12582912.0f) - 12582912.0f;
}

// 1 where a < b, else 0; and the like.
template <class F>
DEEPLAB_FAST_HD F is_less(F a, F b) {
  return (a < b) ? (F{} + 1.0f) : F{};
}
template <class F>
DEEPLAB_FAST_HD F is_at_least(F a, F b) {
  return (a >= b) ? (F{} + 1.0f) : F{};
}

// Elevates the feature into the hyperplane sum(x) = 0 and finds its simplex.
//   feature[D], scale[D] (embedding_scale)  ->
//   cell[D+1]   coordinates of the simplex's remainder-0 vertex, divided by D+1 (integers)
//   rank[D+1]   place of each coordinate's difference in descending order: a permutation of 0..D (integers)
//   delta[D+1]  difference of the point to that vertex, divided by D+1
//   elevated[D+1]  scratch
// D is a template argument where it is common, so that the loops unroll; 0 means `dimensions`.
template <int kD, class F>
DEEPLAB_FAST_HD void locate_simplex(const F* feature, const float* scale, int dimensions, F* cell, F* rank, F* delta,
                                    F* elevated) {
  const int D = kD > 0 ? kD : dimensions;
  F sum = F{};
  for (int j = D; j > 0; --j) {
    const F scaled = feature[j - 1] * scale[j - 1];
    elevated[j] = sum - static_cast<float>(j) * scaled;
    sum = sum + scaled;
  }
  elevated[0] = sum;

  const float down = 1.0f / static_cast<float>(D + 1);
  const float up = static_cast<float>(D + 1);
  F excess = F{};  // how far the rounded point is off the hyperplane, in units of D+1
  for (int i = 0; i <= D; ++i) {
    cell[i] = round_half_even(down * elevated[i]);
    delta[i] = elevated[i] - cell[i] * up;
    rank[i] = F{};
    excess = excess + cell[i];
  }
  for (int i = 0; i < D; ++i) {
    for (int j = i + 1; j <= D; ++j) {
      const F before = is_less(delta[i], delta[j]);  // ties leave the lower index first
      rank[i] = rank[i] + before;
      rank[j] = rank[j] + (1.0f - before);
    }
  }
  for (int i = 0; i <= D; ++i) {
    rank[i] = rank[i] + excess;
    const F wrap = is_less(rank[i], F{}) - is_at_least(rank[i], F{} + up);
    rank[i] = rank[i] + wrap * up;
    cell[i] = cell[i] + wrap;
    delta[i] = (elevated[i] - cell[i] * up) * down;
  }
}

// Barycentric coordinates (p. 10) of the vertices of remainder 0..D, from the differences ordered by rank.
template <class F>
DEEPLAB_FAST_HD void barycentric_weights(const F* by_rank, int dimensions, F* weight) {
  weight[0] = by_rank[dimensions] + (1.0f - by_rank[0]);
  for (int k = 1; k <= dimensions; ++k) weight[k] = by_rank[dimensions - k] - by_rank[dimensions - k + 1];
}

// From a gradient to the weights of a point's vertices, weight_grad[D+1], to one to its features, feature_grad[D].
// Within a simplex the weights are linear in the features: the steps of barycentric_weights and locate_simplex in
// reverse.
//   rank[D+1] (locate_simplex), scale[D] (embedding_scale); scratch[D+1]
template <class Rank>
DEEPLAB_FAST_HD void weights_backward(const float* weight_grad, const Rank* rank, const float* scale, int D,
                                      float* scratch, float* feature_grad, long stride) {
  const float down = 1.0f / static_cast<float>(D + 1);
  for (int i = 0; i <= D; ++i) {
    const int r = static_cast<int>(rank[i]);
    scratch[i] = (weight_grad[D - r] - weight_grad[r == 0 ? 0 : D - r + 1]) * down;
  }
  float sum = 0.0f;
  for (int j = 1; j <= D; ++j) {
    sum += scratch[j - 1];
    feature_grad[(j - 1) * stride] = scale[j - 1] * (sum - static_cast<float>(j) * scratch[j]);
  }
}

// How a vertex becomes an integer, see vertex_key.h.
// Field f of the vertex with remainder 0 in the given cell (coordinates divided by D+1):
//   D = 1: x_0;  else (x_0 + x_1 - 2 x_2) / (D+1), (x_0 - x_1) / (D+1), x_2, (x_f - x_2) / (D+1) for f > 2.
template <class T>
DEEPLAB_FAST_HD T field_of_cell(int f, int D, const T* cell, long stride) {
  if (D == 1) return cell[0] + cell[0];
  if (f == 0) return cell[0] + cell[stride] - cell[2 * stride] - cell[2 * stride];
  if (f == 1) return cell[0] - cell[stride];
  if (f == 2) return cell[2 * stride] * static_cast<float>(D + 1);
  return cell[f * stride] - cell[2 * stride];
}

}  // namespace deeplab_fast
