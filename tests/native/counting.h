// What kernels on the host read, write and compute, for tests/bench/test_gpu_model.py: a line of counts a launch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <compare>
#include <cstdint>
#include <type_traits>

inline float __shfl_xor_sync(unsigned mask, float value, int offset);
inline float __shfl_sync(unsigned mask, float value, int from, int width);

namespace counting {

struct Counts {
  int64_t threads;
  // Bytes, in sectors of 32: read, a sector once a warp; written, once an instruction of a warp; and either once.
  int64_t read, written, read_once, written_once;
  int64_t flops;
};

void watch(const void* memory, int64_t size);  // accesses elsewhere (stacks, arguments) do not count
void forget(const void* memory, int64_t size);
void begin_launch(int64_t threads);
void begin_warp();
void end_launch();

extern unsigned lane;  // of the thread that runs
extern int64_t flops;

// A number that counts what is computed with it; an exponential, a root or a division counts as one.
struct Float {
  constexpr Float() = default;
  template <class Number>
    requires std::is_arithmetic_v<Number>
  constexpr Float(Number number) : value(static_cast<float>(number)) {}
  explicit operator int() const { return static_cast<int>(value); }
  explicit operator double() const { return value; }
  Float operator-() const { return -value; }
  Float& operator+=(Float other) { return *this = *this + other; }
  Float& operator-=(Float other) { return *this = *this - other; }
  Float& operator*=(Float other) { return *this = *this * other; }

  friend Float operator+(Float a, Float b) { return ++flops, a.value + b.value; }
  friend Float operator-(Float a, Float b) { return ++flops, a.value - b.value; }
  friend Float operator*(Float a, Float b) { return ++flops, a.value * b.value; }
  friend Float operator/(Float a, Float b) { return ++flops, a.value / b.value; }
  friend bool operator==(Float a, Float b) { return a.value == b.value; }
  friend auto operator<=>(Float a, Float b) { return a.value <=> b.value; }
  friend double& operator+=(double& a, Float b) { return ++flops, a += b.value; }
  friend Float expf(Float a) { return ++flops, std::exp(a.value); }
  friend Float fabsf(Float a) { return std::fabs(a.value); }
  friend Float nearbyintf(Float a) { return ++flops, std::nearbyint(a.value); }
  friend Float rintf(Float a) { return ++flops, std::rint(a.value); }
  friend __half __float2half_rn(Float a) { return ::__float2half_rn(a.value); }
  friend __nv_bfloat16 __float2bfloat16_rn(Float a) { return ::__float2bfloat16_rn(a.value); }
  friend Float __shfl_xor_sync(unsigned mask, Float a, int offset) { return ::__shfl_xor_sync(mask, a.value, offset); }
  friend Float __shfl_sync(unsigned mask, Float a, int from, int width) {
    return ::__shfl_sync(mask, a.value, from, width);
  }

  float value;
};

}  // namespace counting
