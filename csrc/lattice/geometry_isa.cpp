// Simplex of each point, a vector of points at a time. Compiled per instruction set, always with -ffp-contract=off.
#include "isa/isa.h"
#include "isa/simd.h"
#include "lattice/geometry.h"
#include "lattice/geometry_kernels.h"

namespace deeplab_fast {
namespace DEEPLAB_FAST_ISA_NAME {
namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
static_assert(kWidth <= SimplexBlock::kLocateLanes);
using V = Vec<kWidth>::type;
using I = Vec<kWidth>::mask;

// The vectors of one point of each lane: on the stack, or for any number of dimensions in scratch memory.
template <int kD>
struct Simplices {
  V feature[kD], cell[kD + 1], rank[kD + 1], delta[kD + 1], elevated[kD + 1], by_rank[kD + 1], weight[kD + 1];
  Simplices(int, float*) {}
};
template <>
struct Simplices<0> {
  V *feature, *cell, *rank, *delta, *elevated, *by_rank, *weight;
  Simplices(int D, float* scratch)
      : feature(reinterpret_cast<V*>(scratch)),
        cell(feature + D + 1),
        rank(cell + D + 1),
        delta(rank + D + 1),
        elevated(delta + D + 1),
        by_rank(elevated + D + 1),
        weight(by_rank + D + 1) {}
};

typedef int64_t I64 __attribute__((vector_size(kWidth * 8)));
typedef uint64_t U64 __attribute__((vector_size(kWidth * 8)));

template <class Simplices>
DEEPLAB_FAST_INLINE void find_weights(int D, Simplices& lanes) {
  for (int r = 0; r <= D; ++r) {
    lanes.by_rank[r] = V{};
    for (int i = 0; i <= D; ++i)
      lanes.by_rank[r] = (lanes.rank[i] == static_cast<float>(r)) ? lanes.delta[i] : lanes.by_rank[r];
  }
  barycentric_weights(lanes.by_rank, D, lanes.weight);
}

template <int kD>
void locate_points(int dimensions, const float* features, int64_t stride, int64_t begin, int count, const float* scale,
                   const OneWordKey* key, SimplexBlock out) {
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
    find_weights(D, lanes);
    U64 ranks{};
    for (int i = 0; i <= D; ++i) {
      const I cells = __builtin_convertvector(lanes.cell[i], I), of_axis = __builtin_convertvector(lanes.rank[i], I);
      ranks = ranks << 4 | __builtin_convertvector(of_axis, U64);
      __builtin_memcpy(out.cell + i * kPointBlock + first, &cells, sizeof(cells));
      __builtin_memcpy(out.rank + i * kPointBlock + first, &of_axis, sizeof(of_axis));
      __builtin_memcpy(out.weight + i * kPointBlock + first, &lanes.weight[i], sizeof(lanes.weight[i]));
    }
    __builtin_memcpy(out.ranks + first, &ranks, sizeof(ranks));
    if (key == nullptr) continue;
    I64 packed{};
    for (int f = 0; f < D; ++f) {
      const V field = field_of_cell(f, D, lanes.cell, 1);  // integers, exact
      packed = packed + ((__builtin_convertvector(__builtin_convertvector(field, I), I64) - key->low[f])
                         << static_cast<int64_t>(key->shift[f]));
    }
    __builtin_memcpy(out.key + first, &packed, sizeof(packed));
  }
}

}  // namespace

void locate(int dimensions, const float* features, int64_t stride, int64_t begin, int count, const float* scale,
            const OneWordKey* key, SimplexBlock out) {
  switch (dimensions) {
    case 1:
      return locate_points<1>(1, features, stride, begin, count, scale, key, out);
    case 2:
      return locate_points<2>(2, features, stride, begin, count, scale, key, out);
    case 3:
      return locate_points<3>(3, features, stride, begin, count, scale, key, out);
    case 5:
      return locate_points<5>(5, features, stride, begin, count, scale, key, out);
    case 6:
      return locate_points<6>(6, features, stride, begin, count, scale, key, out);
    default:
      return locate_points<0>(dimensions, features, stride, begin, count, scale, key, out);
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
