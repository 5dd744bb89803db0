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
  return typename Vec<W>::type{} + value;
}

template <int W>
DEEPLAB_FAST_INLINE float reduce_max(typename Vec<W>::type v) {
  if constexpr (W == 1) {
    return v;
  } else {
    typename Vec<W / 2>::type low, high;
    __builtin_memcpy(&low, &v, sizeof(low));
    __builtin_memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof(low), sizeof(low));
    return reduce_max<W / 2>((low > high) ? low : high);
  }
}
template <int W>
DEEPLAB_FAST_INLINE float reduce_add(typename Vec<W>::type v) {
  if constexpr (W == 1) {
    return v;
  } else {
    typename Vec<W / 2>::type low, high;
    __builtin_memcpy(&low, &v, sizeof(low));
    __builtin_memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof(low), sizeof(low));
    return reduce_add<W / 2>(low + high);
  }
}

// exp(x) for x <= 0 or small, about 1 ulp; exactly 0 below -87 (so no denormals follow).
// Cephes' reduction: x = n ln 2 + r, a degree-6 polynomial in r, 2^n through the exponent bits.
template <int W>
DEEPLAB_FAST_INLINE typename Vec<W>::type exp_nonpositive(typename Vec<W>::type x) {
  using V = typename Vec<W>::type;
  using I = typename Vec<W>::bits;
  const V lowest = broadcast<W>(-87.0f);
  const V clamped = (x < lowest) ? lowest : x;
  const V shifted = clamped * 1.44269504f + 12582912.0f;  // n in the low bits of the mantissa
  const V n = shifted - 12582912.0f;
  V r = clamped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  V poly = r * 1.9875691500e-4f + 1.3981999507e-3f;
  poly = poly * r + 8.3334519073e-3f;
  poly = poly * r + 4.1665795894e-2f;
  poly = poly * r + 1.6666665459e-1f;
  poly = poly * r + 5.0000001201e-1f;
  poly = poly * (r * r) + r + 1.0f;
  I bits, exponent;
  __builtin_memcpy(&bits, &poly, sizeof(bits));
  __builtin_memcpy(&exponent, &shifted, sizeof(bits));
  bits = bits + (exponent << 23);
  V result;
  __builtin_memcpy(&result, &bits, sizeof(bits));
  return (x < lowest) ? V{} : result;
}

// Fetches a row that will be read or written some iterations later.
DEEPLAB_FAST_INLINE void prefetch_row(const float* row, int lanes) {
  for (int lane = 0; lane < lanes; lane += 16) __builtin_prefetch(row + lane);
}

}  // namespace DEEPLAB_FAST_ISA_NAME
}  // namespace deeplab_fast
