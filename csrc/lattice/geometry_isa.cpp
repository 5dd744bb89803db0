// Simplex of each point, a vector of points at a time. Compiled per instruction set, always with -ffp-contract=off.
#include "isa/isa.h"
#include "isa/simd.h"
#include "lattice/geometry.h"
#include "lattice/geometry_kernels.h"

namespace deeplab_fast {
namespace DEEPLAB_FAST_ISA_NAME {
namespace {

constexpr int kWidth = SimplexBlock::kLocateLanes;
using V = Vec<kWidth>::type;
using I = Vec<kWidth>::mask;

// The vectors of one point of each lane: on the stack, or for any number of dimensions in scratch memory.
template <int kD>
struct Simplices {
  V feature[kD], cell[kD + 1], rank[kD + 1], delta[kD + 1], elevated[kD + 1];
  Simplices(int, float*) {}
};
template <>
struct Simplices<0> {
  V *feature, *cell, *rank, *delta, *elevated;
  Simplices(int D, float* scratch)
      : feature(reinterpret_cast<V*>(scratch)),
        cell(feature + D + 1),
        rank(cell + D + 1),
        delta(rank + D + 1),
        elevated(delta + D + 1) {}
};

template <int kD>
void locate_points(int dimensions, const float* features, int64_t stride, int64_t begin, int count, const float* scale,
                   SimplexBlock out) {
  const int D = kD > 0 ? kD : dimensions;
  Simplices<kD> lanes(D, out.scratch);
  for (int first = 0; first < count; first += kWidth) {
    for (int d = 0; d < D; ++d) {
      const float* from = features + d * stride + begin + first;
      if (first + kWidth <= count) {
        lanes.feature[d] = load<kWidth>(from);
      } else {
        float padded[kWidth] = {};
        for (int i = 0; first + i < count; ++i) padded[i] = from[i];
        lanes.feature[d] = load<kWidth>(padded);
      }
    }
    locate_simplex<kD, V>(lanes.feature, scale, D, lanes.cell, lanes.rank, lanes.delta, lanes.elevated);
    for (int i = 0; i <= D; ++i) {
      const I cells = __builtin_convertvector(lanes.cell[i], I), ranks = __builtin_convertvector(lanes.rank[i], I);
      __builtin_memcpy(out.cell + i * kPointBlock + first, &cells, sizeof(cells));
      __builtin_memcpy(out.rank + i * kPointBlock + first, &ranks, sizeof(ranks));
      __builtin_memcpy(out.delta + i * kPointBlock + first, &lanes.delta[i], sizeof(lanes.delta[i]));
    }
  }
}

}  // namespace

void locate(int dimensions, const float* features, int64_t stride, int64_t begin, int count, const float* scale,
            SimplexBlock out) {
  switch (dimensions) {
    case 1:
      return locate_points<1>(1, features, stride, begin, count, scale, out);
    case 2:
      return locate_points<2>(2, features, stride, begin, count, scale, out);
    case 3:
      return locate_points<3>(3, features, stride, begin, count, scale, out);
    case 5:
      return locate_points<5>(5, features, stride, begin, count, scale, out);
    case 6:
      return locate_points<6>(6, features, stride, begin, count, scale, out);
    default:
      return locate_points<0>(dimensions, features, stride, begin, count, scale, out);
  }
}

FeatureRange feature_range(const float* values, int64_t count) {
  V low = broadcast<kWidth>(__builtin_inff()), high = broadcast<kWidth>(-__builtin_inff());
  V zero_if_finite = V{};  // x * 0 is NaN for NaN and infinities
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    const V x = load<kWidth>(values + i);
    low = (x < low) ? x : low;
    high = (x > high) ? x : high;
    zero_if_finite = zero_if_finite + x * 0.0f;
  }
  FeatureRange range{-reduce<kWidth>(-low, Max()), reduce<kWidth>(high, Max()),
                     reduce<kWidth>(zero_if_finite, Add()) == 0.0f};
  for (; i < count; ++i) {
    range.low = values[i] < range.low ? values[i] : range.low;
    range.high = values[i] > range.high ? values[i] : range.high;
    range.finite = range.finite && values[i] * 0.0f == 0.0f;
  }
  return range;
}

extern const GeometryKernels geometry_kernels;
const GeometryKernels geometry_kernels{
    DEEPLAB_FAST_SET,
    DEEPLAB_FAST_KERNEL(locate),
    DEEPLAB_FAST_KERNEL(feature_range),
};

}  // namespace DEEPLAB_FAST_ISA_NAME
}  // namespace deeplab_fast
