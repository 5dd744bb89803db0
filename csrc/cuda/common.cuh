// What CUDA kernels share: elements of 16 and 32 bits, loops of a grid, groups of threads. Runs on the host, too.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace deeplab_fast {
namespace {

constexpr int kThreads = 256, kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline float float_of(float value) {
  return value;
}
__device__ inline float float_of(__half value) {
  return __half2float(value);
}
__device__ inline float float_of(__nv_bfloat16 value) {
  return __bfloat162float(value);
}
__device__ inline void store(float* to, float value) {
  *to = value;
}
__device__ inline void store(__half* to, float value) {
  *to = __float2half_rn(value);
}
__device__ inline void store(__nv_bfloat16* to, float value) {
  *to = __float2bfloat16_rn(value);
}

__device__ inline void store(uint4* to, const uint4& value) {
  *to = value;
}

// This thread's first item, and the step to its next, where every thread of the grid takes one at a time.
__device__ inline int64_t first_item() {
  return int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
}
__device__ inline int64_t item_step() {
  return int64_t{gridDim.x} * blockDim.x;
}

// Rows of labels are worked on by groups of 4, 8, 16 or 32 threads, a label each, or every group-th one.
__host__ __device__ inline int group_of(int labels) {
  return labels <= 4 ? 4 : labels <= 8 ? 8 : labels <= 16 ? 16 : 32;
}

// Over the threads of a group; all lanes of the warp must come here.
__device__ inline float group_sum(float value, int group) {
  for (int offset = group / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}
__device__ inline float group_max(float value, int group) {
  for (int offset = group / 2; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, value, offset);
    value = other > value ? other : value;
  }
  return value;
}

// Items of groups: a warp's groups stay together, so the last ones may have nothing to do but to take part in shuffles.
struct GroupItem {
  int64_t item, step, rounded;
  int lane;
};
__device__ inline GroupItem group_item(int64_t items, int group) {
  const int64_t per_warp = kWarp / group;
  return {first_item() / group, item_step() / group, (items + per_warp - 1) / per_warp * per_warp,
          static_cast<int>(threadIdx.x) % group};
}

}  // namespace
}  // namespace deeplab_fast
