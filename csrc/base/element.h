// What a tensor's elements are, for kernels that take several dtypes; and the conversions of one element.
//
// Always inlined, and without std: this header is also included by code compiled for processors that others are not.
#pragma once

#include <cstdint>

#define DEEPLAB_FAST_ALWAYS_INLINE inline __attribute__((always_inline))

namespace deeplab_fast {

enum class Element : int32_t { kFloat, kHalf, kBfloat16 };

DEEPLAB_FAST_ALWAYS_INLINE int64_t bytes_of(Element element) {
  return element == Element::kFloat ? 4 : 2;
}

// float32 and bfloat16, the latter as its bits.
DEEPLAB_FAST_ALWAYS_INLINE float to_float(float value) {
  return value;
}
DEEPLAB_FAST_ALWAYS_INLINE float to_float(uint16_t bfloat16) {
  const uint32_t bits = static_cast<uint32_t>(bfloat16) << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

// Rounded to the nearest, ties to even; NaN stays NaN.
DEEPLAB_FAST_ALWAYS_INLINE void from_float(float value, float* to) {
  *to = value;
}
DEEPLAB_FAST_ALWAYS_INLINE void from_float(float value, uint16_t* to) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  *to = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace deeplab_fast
