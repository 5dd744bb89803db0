// A point's share of splat and slice, on a block of N vectors of W labels that stay in registers.
// Included only by *_isa.cpp files.
#pragma once

#include "isa.h"
#include "simd.h"

namespace deeplab_fast {
namespace DEEPLAB_FAST_ISA_NAME {

#if defined(__AVX512F__)
constexpr int kWidest = 16;
#else
constexpr int kWidest = 8;
#endif

// Calls body.template run<W, N>(first_lane) for blocks that cover `lanes` (1, 4, or a multiple of 8).
template <class Body>
DEEPLAB_FAST_INLINE void for_lane_blocks(int lanes, Body&& body) {
  int lane = 0;
  for (; lane + 32 <= lanes; lane += 32) body.template run<kWidest, 32 / kWidest>(lane);
  switch (lanes - lane) {
    case 0:
      return;
    case 1:
      return body.template run<1, 1>(lane);
    case 4:
      return body.template run<4, 1>(lane);
    case 8:
      return body.template run<8, 1>(lane);
    case 16:
      return body.template run<kWidest, 16 / kWidest>(lane);
    default:
      return body.template run<8, 3>(lane);
  }
}

template <int W, int N>
struct Block {
  typename Vec<W>::type v[N];

  static DEEPLAB_FAST_INLINE Block zero() {
    Block block;
    for (int n = 0; n < N; ++n) block.v[n] = broadcast<W>(0.0f);
    return block;
  }
  static DEEPLAB_FAST_INLINE Block from(const float* memory) {
    Block block;
    for (int n = 0; n < N; ++n) block.v[n] = load<W>(memory + n * W);
    return block;
  }
  DEEPLAB_FAST_INLINE void to(float* memory) const {
    for (int n = 0; n < N; ++n) store<W>(memory + n * W, v[n]);
  }
  DEEPLAB_FAST_INLINE void add(const float* memory) {
    for (int n = 0; n < N; ++n) v[n] = v[n] + load<W>(memory + n * W);
  }
  DEEPLAB_FAST_INLINE void add_scaled(float scale, const float* memory) {
    for (int n = 0; n < N; ++n) v[n] = v[n] + scale * load<W>(memory + n * W);
  }
  DEEPLAB_FAST_INLINE void add_scaled(float scale, const Block& other) {
    for (int n = 0; n < N; ++n) v[n] = v[n] + scale * other.v[n];
  }
  DEEPLAB_FAST_INLINE void add_scaled_if(uint32_t keep, float scale, const Block& other) {
    for (int n = 0; n < N; ++n) v[n] = v[n] + scale * keep_or_zero<W>(other.v[n], keep);
  }
};

// Calls body(count, scattered) with constants for the kernels of images (2 and 5 dimensions), so that loops over taps
// unroll; else with a count of 0, which stands for taps.count.
template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};
template <class Body>
DEEPLAB_FAST_INLINE void by_shape(const Taps& taps, Body&& body) {
  if (taps.count == 6 && taps.scattered) return body(Constant<6>(), Constant<1>());
  if (taps.count == 6) return body(Constant<6>(), Constant<0>());
  if (taps.count == 3 && taps.scattered) return body(Constant<3>(), Constant<1>());
  if (taps.count == 3) return body(Constant<3>(), Constant<0>());
  body(Constant<0>(), Constant<1>());
}

// rows + index * stride, kept as one pointer: the compiler would else keep one per vector of the row, and run out of
// registers.
template <class Float>
DEEPLAB_FAST_INLINE Float* row_at(Float* rows, int64_t index, int64_t stride) {
  Float* row = rows + index * stride;
  asm("" : "+r"(row));
  return row;
}

// Sum of rows of vertices, weighted.
template <int W, int N>
DEEPLAB_FAST_INLINE Block<W, N> slice_rows(int count, const int32_t* vertex, const float* weight, const float* rows,
                                           int64_t stride) {
  Block<W, N> sum = Block<W, N>::zero();
  for (int j = 0; j < count; ++j) sum.add_scaled(weight[j], row_at(rows, vertex[j], stride));
  return sum;
}
// 256 bytes of zeros, more than a block.
alignas(64) inline constexpr float kZeros[64] = {};

// row += weight * value; or, at the first splat into the row (a complemented number), row = weight * value, so that
// rows need no clearing. kScattered: first splats are frequent, a jump would be mispredicted; read zeros from
// elsewhere.
template <int W, int N, bool kScattered>
DEEPLAB_FAST_INLINE void add_to_row(int32_t target, float weight, const Block<W, N>& value, float* rows,
                                    int64_t stride) {
  if (kScattered) {
    float* row = row_at(rows, target ^ target >> 31, stride);
    Block<W, N> sum = Block<W, N>::from(target < 0 ? kZeros : row);
    sum.add_scaled(weight, value);
    sum.to(row);
  } else if (__builtin_expect(target >= 0, 1)) {
    float* row = row_at(rows, target, stride);
    Block<W, N> sum = Block<W, N>::from(row);
    sum.add_scaled(weight, value);
    sum.to(row);
  } else {
    Block<W, N> sum = Block<W, N>::zero();
    sum.add_scaled(weight, value);
    sum.to(row_at(rows, ~target, stride));
  }
}

}  // namespace DEEPLAB_FAST_ISA_NAME
}  // namespace deeplab_fast
