// Tiles of scores, [classes][tile_width] in float32, in and out of rows of tensors: float32, float16 or bfloat16, with
// neighbouring columns (contiguous) or neighbouring classes (channels_last) side by side, or neither.
// Included only by upsample_isa.cpp.
#pragma once

#include "isa/simd.h"
#include "upsample/upsample_kernels.h"

namespace deeplab_fast {
namespace DEEPLAB_FAST_ISA_NAME {

using Vec8 = Vec<8>::type;
using Bits8 = Vec<8>::bits;
typedef uint16_t Short8 __attribute__((vector_size(16)));

struct Half {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

DEEPLAB_FAST_INLINE Bits8 bits_of(Vec8 value) {
  Bits8 bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
}
DEEPLAB_FAST_INLINE Vec8 float_of(Bits8 bits) {
  Vec8 value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}
template <class To>
DEEPLAB_FAST_INLINE To read_bytes(const void* from) {
  To to;
  __builtin_memcpy(&to, from, sizeof(to));
  return to;
}

DEEPLAB_FAST_INLINE Vec8 load8(const float* from) {
  return load<8>(from);
}
DEEPLAB_FAST_INLINE Vec8 load8(const Bfloat16* from) {
  return float_of(__builtin_convertvector(read_bytes<Short8>(from), Bits8) << 16);
}
// Below 2^-14 a half is its mantissa in units of 2^-24; infinities and NaN take the highest exponent of float, too.
DEEPLAB_FAST_INLINE Vec8 load8(const Half* from) {
  const Bits8 bits = __builtin_convertvector(read_bytes<Short8>(from), Bits8);
  const Bits8 magnitude = bits & 0x7fffu;
  const Bits8 normal = (magnitude << 13) + ((magnitude >= 0x7c00u) ? Bits8{} + (224u << 23) : Bits8{} + (112u << 23));
  const Bits8 small = bits_of(__builtin_convertvector(magnitude, Vec8) * 0x1p-24f);
  return float_of(((magnitude < 0x400u) ? small : normal) | ((bits & 0x8000u) << 16));
}

// To the nearest, ties to even.
DEEPLAB_FAST_INLINE void store8(float* to, Vec8 value) {
  store<8>(to, value);
}
DEEPLAB_FAST_INLINE void store8(Bfloat16* to, Vec8 value) {
  const Bits8 bits = bits_of(value);
  const Bits8 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Bits8 nan = (bits >> 16) | 0x40u;
  const Short8 result = __builtin_convertvector(((bits & 0x7fffffffu) > 0x7f800000u) ? nan : rounded, Short8);
  __builtin_memcpy(to, &result, sizeof(result));
}
DEEPLAB_FAST_INLINE void store8(Half* to, Vec8 value) {
  const Bits8 bits = bits_of(value), magnitude = bits & 0x7fffffffu;
  const Bits8 normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  const Bits8 small = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;  // the sum rounds to units of 2^-24
  const Bits8 beyond = (magnitude > 0x7f800000u) ? Bits8{} + 0x7e00u : Bits8{} + 0x7c00u;
  const Bits8 finite = (magnitude < 0x38800000u) ? small : normal;
  const Bits8 half = ((magnitude >= 0x47800000u) ? beyond : finite) | ((bits >> 16) & 0x8000u);
  const Short8 result = __builtin_convertvector(half, Short8);
  __builtin_memcpy(to, &result, sizeof(result));
}

// `count` elements, `stride` apart; the rest of the vector is 0.
template <class Value>
DEEPLAB_FAST_INLINE Vec8 load_some(const Value* from, int64_t stride, int count) {
  if (stride == 1 && count == 8) return load8(from);
  Value elements[8] = {};
  for (int i = 0; i < count; ++i) elements[i] = from[i * stride];
  return load8(elements);
}
template <class Value>
DEEPLAB_FAST_INLINE void store_some(Value* to, int64_t stride, int count, Vec8 value) {
  if (stride == 1 && count == 8) return store8(to, value);
  Value elements[8];
  store8(elements, value);
  for (int i = 0; i < count; ++i) to[i * stride] = elements[i];
}

// Rows become columns: pairs, then fours, then eights.
DEEPLAB_FAST_INLINE void transpose8(Vec8* rows) {
  Vec8 pair[8], quad[8];
  for (int i = 0; i < 8; i += 2) {
    pair[i] = __builtin_shufflevector(rows[i], rows[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    pair[i + 1] = __builtin_shufflevector(rows[i], rows[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      quad[i + 2 * j] = __builtin_shufflevector(pair[i + j], pair[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      quad[i + 2 * j + 1] = __builtin_shufflevector(pair[i + j], pair[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  for (int i = 0; i < 4; ++i) {
    rows[i] = __builtin_shufflevector(quad[i], quad[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    rows[i + 4] = __builtin_shufflevector(quad[i], quad[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

DEEPLAB_FAST_INLINE int up_to_8(int64_t rest) {
  return rest < 8 ? static_cast<int>(rest) : 8;
}

template <class Value>
void read_elements(const Value* row, int64_t stride_k, int64_t stride_w, int64_t count, int classes, float* tile,
                   int64_t tile_width) {
  for (int64_t x = 0; x < (count + kOverrun - 1) / kOverrun * kOverrun; x += 8) {
    const int columns = x < count ? up_to_8(count - x) : 0;
    const Value* from = row + x * stride_w;
    for (int k = 0; stride_k != 1 && k < classes; ++k)
      store8(tile + k * tile_width + x, load_some(from + k * stride_k, stride_w, columns));
    for (int k = 0; stride_k == 1 && k < classes; k += 8) {
      const int some = up_to_8(classes - k);
      Vec8 block[8] = {};
      for (int i = 0; i < columns; ++i) block[i] = load_some(from + i * stride_w + k, 1, some);
      transpose8(block);
      for (int i = 0; i < some; ++i) store8(tile + (k + i) * tile_width + x, block[i]);
    }
  }
}

template <class Value>
void write_elements(const float* tile, int64_t tile_width, int classes, Value* row, int64_t stride_k, int64_t stride_w,
                    int64_t count) {
  if (stride_k != 1) {
    for (int k = 0; k < classes; ++k)
      for (int64_t x = 0; x < count; x += 8)
        store_some(row + k * stride_k + x * stride_w, stride_w, up_to_8(count - x), load8(tile + k * tile_width + x));
    return;
  }
  for (int64_t x = 0; x < count; x += 8) {
    const int columns = up_to_8(count - x);
    for (int k = 0; k < classes; k += 8) {
      const int some = up_to_8(classes - k);
      Vec8 block[8] = {};
      for (int i = 0; i < some; ++i) block[i] = load8(tile + (k + i) * tile_width + x);
      transpose8(block);
      for (int i = 0; i < columns; ++i) store_some(row + (x + i) * stride_w + k, 1, some, block[i]);
    }
  }
}

// Calls body with the row's data as a pointer of its elements' type.
template <class Body>
DEEPLAB_FAST_INLINE void by_element(const ScoreRow& row, Body&& body) {
  if (row.element == Element::kFloat) return body(static_cast<const float*>(row.data));
  if (row.element == Element::kHalf) return body(static_cast<const Half*>(row.data));
  return body(static_cast<const Bfloat16*>(row.data));
}
template <class Body>
DEEPLAB_FAST_INLINE void by_element(const MutableScoreRow& row, Body&& body) {
  if (row.element == Element::kFloat) return body(static_cast<float*>(row.data));
  if (row.element == Element::kHalf) return body(static_cast<Half*>(row.data));
  return body(static_cast<Bfloat16*>(row.data));
}

}  // namespace DEEPLAB_FAST_ISA_NAME
}  // namespace deeplab_fast
