// Vectors of floats in GCC's and Clang's own vector language: one source for SSE, AVX2, AVX-512 and NEON.
//
// Included only by the *_isa.cpp files, inside their instruction set's namespace (DEEPLAB_FAST_ISA_NAME), so that code
// compiled for one processor can never be picked by the linker for another. For the same reason: no std here.
#pragma once

#include <cstdint>

#define DEEPLAB_FAST_INLINE inline __attribute__((always_inline))

namespace deeplab_fast {
namespace DEEPLAB_FAST_ISA_NAME {

// W floats; memory needs no alignment. `typename Vec<W>::type` is used as plain arithmetic type.
template <int W>
struct Vec {
  typedef float type __attribute__((vector_size(W * 4)));
  typedef int32_t mask __attribute__((vector_size(W * 4)));
  typedef uint32_t bits __attribute__((vector_size(W * 4)));
  typedef float unaligned __attribute__((vector_size(W * 4), aligned(4), may_alias));
};
template <>
struct Vec<1> {
  typedef float type;
  typedef int32_t mask;
  typedef uint32_t bits;
  typedef float unaligned;
};

template <int W>
DEEPLAB_FAST_INLINE typename Vec<W>::type load(const float* from) {
  return *reinterpret_cast<const typename Vec<W>::unaligned*>(from);
}
template <int W>
DEEPLAB_FAST_INLINE void store(float* to, typename Vec<W>::type value) {
  *reinterpret_cast<typename Vec<W>::unaligned*>(to) = value;
}
template <int W>
DEEPLAB_FAST_INLINE typename Vec<W>::type broadcast(float value) {
  return value - typename Vec<W>::type{};  // not 0 + value: -0 must stay, so that would be an addition
}

// value where keep has all bits set, 0 where it has none: unlike a factor, also for infinities and NaN.
template <int W>
DEEPLAB_FAST_INLINE typename Vec<W>::type keep_or_zero(typename Vec<W>::type value, uint32_t keep) {
  typename Vec<W>::bits bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  bits = bits & keep;
  __builtin_memcpy(&value, &bits, sizeof(bits));
  return value;
}

struct Add {
  template <class V>
  DEEPLAB_FAST_INLINE V operator()(V a, V b) const {
    return a + b;
  }
};
struct Max {
  template <class V>
  DEEPLAB_FAST_INLINE V operator()(V a, V b) const {
    return (a > b) ? a : b;
  }
};
template <int W, class Op>
DEEPLAB_FAST_INLINE float reduce(typename Vec<W>::type v, Op op) {
  if constexpr (W == 1) {
    return v;
  } else {
    typename Vec<W / 2>::type low, high;
    __builtin_memcpy(&low, &v, sizeof(low));
    __builtin_memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof(low), sizeof(low));
    return reduce<W / 2>(op(low, high), op);
  }
}

// exp(x) for x < 88, to about 1 ulp; exactly 0 below -87, so that no denormals follow.
// x = n ln 2 + r, |r| <= ln 2 / 2, n rounded in the mantissa of `shifted`; exp(r) by the polynomial of degree 6 with
// the least largest error (3e-9, relative), in pairs of terms to keep the chain of dependent operations short; 2^n by
// adding n to the exponent bits.
template <int W>
DEEPLAB_FAST_INLINE typename Vec<W>::type exp_of(typename Vec<W>::type x) {
  using V = typename Vec<W>::type;
  using I = typename Vec<W>::bits;
  const V shifted = x * 1.44269504f + 12582912.0f;
  const V n = shifted - 12582912.0f;
  V r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  const V square = r * r;
  const V high = r * 1.38121e-3f + 8.36883e-3f;
  const V middle = r * 4.166844e-2f + 1.6666519e-1f;
  V poly = (high * square + middle) * r + 4.9999993e-1f;
  poly = poly * square + (r + 1.0f);
  I bits, exponent;
  __builtin_memcpy(&bits, &poly, sizeof(bits));
  __builtin_memcpy(&exponent, &shifted, sizeof(bits));
  bits = bits + (exponent << 23);
  V result;
  __builtin_memcpy(&result, &bits, sizeof(bits));
  return (x < broadcast<W>(-87.0f)) ? V{} : result;  // also where n was out of range
}

// One value per row of a W x W block: op over the row. For W = 4 and 8 all rows at once, by folding pairs of rows; one
// reduction after the other would leave the processor waiting.
template <int W, class Op>
DEEPLAB_FAST_INLINE void reduce_rows(const typename Vec<W>::type* row, Op op, float* out) {
  using V = typename Vec<W>::type;
  if constexpr (W == 8) {
    V pair[4], quad[2];
    for (int i = 0; i < 4; ++i)
      pair[i] = op(__builtin_shufflevector(row[2 * i], row[2 * i + 1], 0, 8, 2, 10, 4, 12, 6, 14),
                   __builtin_shufflevector(row[2 * i], row[2 * i + 1], 1, 9, 3, 11, 5, 13, 7, 15));
    for (int i = 0; i < 2; ++i)
      quad[i] = op(__builtin_shufflevector(pair[2 * i], pair[2 * i + 1], 0, 1, 8, 9, 4, 5, 12, 13),
                   __builtin_shufflevector(pair[2 * i], pair[2 * i + 1], 2, 3, 10, 11, 6, 7, 14, 15));
    store<W>(out, op(__builtin_shufflevector(quad[0], quad[1], 0, 1, 2, 3, 8, 9, 10, 11),
                     __builtin_shufflevector(quad[0], quad[1], 4, 5, 6, 7, 12, 13, 14, 15)));
  } else if constexpr (W == 4) {
    V pair[2];
    for (int i = 0; i < 2; ++i)
      pair[i] = op(__builtin_shufflevector(row[2 * i], row[2 * i + 1], 0, 4, 2, 6),
                   __builtin_shufflevector(row[2 * i], row[2 * i + 1], 1, 5, 3, 7));
    store<W>(out, op(__builtin_shufflevector(pair[0], pair[1], 0, 1, 4, 5),
                     __builtin_shufflevector(pair[0], pair[1], 2, 3, 6, 7)));
  } else {
    for (int i = 0; i < W; ++i) out[i] = reduce<W>(row[i], op);
  }
}

// Fetches a row that will be read or written some iterations later.
DEEPLAB_FAST_INLINE void prefetch_row(const float* row, int lanes) {
  for (int lane = 0; lane < lanes; lane += 16) __builtin_prefetch(row + lane);
}

}  // namespace DEEPLAB_FAST_ISA_NAME
}  // namespace deeplab_fast
