// Rows of labels as blocks of N vectors of W lanes that stay in registers.
// Included only by *_isa.cpp files.
#pragma once

#include "isa/simd.h"
#include "lattice/row_kernels.h"

namespace deeplab_fast {
namespace DEEPLAB_FAST_ISA_NAME {

// kWidest: floats of a vector. kRegisterLanes: lanes of which the rows of a simplex of six corners stay in registers.
#if defined(__AVX512F__)
constexpr int kWidest = 16, kRegisterLanes = 32;
#elif defined(__AVX2__)
constexpr int kWidest = 8, kRegisterLanes = 16;
#elif defined(__aarch64__)
constexpr int kWidest = 4, kRegisterLanes = 12;
#else
constexpr int kWidest = 4, kRegisterLanes = 8;
#endif

// Calls body.template run<W, N>(first_lane) for blocks that cover `lanes` (1, 4, or a multiple of 8).
template <class Body>
DEEPLAB_FAST_INLINE void for_lane_blocks(int lanes, Body&& body) {
  int lane = 0;
  if constexpr (kWidest == 4) {
    for (; lane + 8 <= lanes; lane += 8) body.template run<4, 2>(lane);
  } else {
    for (; lane + 32 <= lanes; lane += 32) body.template run<kWidest, 32 / kWidest>(lane);
  }
  switch (lanes - lane) {
    case 0:
      return;
    case 1:
      return body.template run<1, 1>(lane);
    case 4:
      return body.template run<4, 1>(lane);
    default:
      break;
  }
  if constexpr (kWidest > 4) {
    switch (lanes - lane) {
      case 8:
        return body.template run<8, 1>(lane);
      case 16:
        return body.template run<kWidest, 16 / kWidest>(lane);
      default:
        return body.template run<8, 3>(lane);
    }
  }
}

// N vectors of W lanes, and with kHalf one of W / 2.
template <int W, int N, bool kHalf = false>
struct Block {
  static constexpr int kLanes = W * N + (kHalf ? W / 2 : 0);
  static constexpr int kTail = kHalf ? W / 2 : 1;
  typename Vec<W>::type v[N];
  typename Vec<kTail>::type tail;

  static DEEPLAB_FAST_INLINE Block zero() {
    Block block;
    for (int n = 0; n < N; ++n) block.v[n] = broadcast<W>(0.0f);
    if constexpr (kHalf) block.tail = broadcast<kTail>(0.0f);
    return block;
  }
  static DEEPLAB_FAST_INLINE Block from(const float* memory) {
    Block block;
    for (int n = 0; n < N; ++n) block.v[n] = load<W>(memory + n * W);
    if constexpr (kHalf) block.tail = load<kTail>(memory + N * W);
    return block;
  }
  DEEPLAB_FAST_INLINE void to(float* memory) const {
    for (int n = 0; n < N; ++n) store<W>(memory + n * W, v[n]);
    if constexpr (kHalf) store<kTail>(memory + N * W, tail);
  }
  DEEPLAB_FAST_INLINE void add(const float* memory) { add(from(memory)); }
  DEEPLAB_FAST_INLINE void add(const Block& other) {
    for (int n = 0; n < N; ++n) v[n] = v[n] + other.v[n];
    if constexpr (kHalf) tail = tail + other.tail;
  }
  DEEPLAB_FAST_INLINE void multiply(float factor) {
    for (int n = 0; n < N; ++n) v[n] = v[n] * factor;
    if constexpr (kHalf) tail = tail * factor;
  }
  DEEPLAB_FAST_INLINE void multiply(const Block& other) {
    for (int n = 0; n < N; ++n) v[n] = v[n] * other.v[n];
    if constexpr (kHalf) tail = tail * other.tail;
  }
  DEEPLAB_FAST_INLINE void add_scaled(float scale, const float* memory) { add_scaled(scale, from(memory)); }
  DEEPLAB_FAST_INLINE void add_scaled(float scale, const Block& other) {
    for (int n = 0; n < N; ++n) v[n] = v[n] + scale * other.v[n];
    if constexpr (kHalf) tail = tail + scale * other.tail;
  }
  DEEPLAB_FAST_INLINE void add_scaled_if(uint32_t keep, float scale, const Block& other) {
    for (int n = 0; n < N; ++n) v[n] = v[n] + scale * keep_or_zero<W>(other.v[n], keep);
    if constexpr (kHalf) tail = tail + scale * keep_or_zero<kTail>(other.tail, keep);
  }
};

// rows + index * stride, kept as one pointer: the compiler would else keep one per vector of the row, and run out of
// registers.
template <class Float>
DEEPLAB_FAST_INLINE Float* row_at(Float* rows, int64_t index, int64_t stride) {
  Float* row = rows + index * stride;
  asm("" : "+r"(row));
  return row;
}

// 256 bytes of zeros, more than a block.
alignas(64) inline constexpr float kZeros[64] = {};

}  // namespace DEEPLAB_FAST_ISA_NAME
}  // namespace deeplab_fast
