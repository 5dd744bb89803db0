// CUDA kernels of upsampling with argmax or softmax. No launch in here, so that tests can run them on the host.
//
// Logits are small against what they are upsampled to, so the kernels read them again and again out of the caches;
// what costs time is to write, and for the gradient to read, maps of the full size. No sum depends on the order in
// which threads come by.
#pragma once

#include <cmath>

#include "cuda/common.cuh"
#include "upsample/bilinear.h"
#include "upsample/upsample.h"

namespace deeplab_fast {
namespace {

constexpr int kClassesAtOnce = 4;  // of one thread of the gradient: they share taps and dots

struct Exp {
  __device__ float operator()(float x) const { return expf(x); }
};

// (n, y, x) of the i-th pixel of a batch of maps.
struct Place {
  int64_t n, y, x;
};
__device__ inline Place place_of(int64_t i, int64_t height, int64_t width) {
  const int64_t row = i / width;
  return {row / height, row % height, i - row * width};
}

template <class Pointer>
__device__ inline int64_t offset_of(const MapsOf<Pointer>& scores, int64_t n, int64_t y, int64_t x) {
  return n * scores.stride_n + y * scores.stride_h + x * scores.stride_w;
}

// The scores of one output pixel, mixed from four pixels of the logits.
template <class Value>
struct Pixel {
  const Value *upper_left, *upper_right, *lower_left, *lower_right;
  float weight_upper, weight_lower, weight_left, weight_right;

  __device__ Pixel(const Maps& logits, const Axis& rows, const Axis& columns, const Place& place) {
    const BilinearTap row = tap_of(rows, place.y), column = tap_of(columns, place.x);
    const Value* data = static_cast<const Value*>(logits.data);
    upper_left = data + offset_of(logits, place.n, row.index0, column.index0);
    upper_right = data + offset_of(logits, place.n, row.index0, column.index1);
    lower_left = data + offset_of(logits, place.n, row.index1, column.index0);
    lower_right = data + offset_of(logits, place.n, row.index1, column.index1);
    weight_upper = row.weight0, weight_lower = row.weight1;
    weight_left = column.weight0, weight_right = column.weight1;
  }
  __device__ float score(int64_t at) const {
    const float left = mix(float_of(upper_left[at]), float_of(lower_left[at]), weight_upper, weight_lower);
    const float right = mix(float_of(upper_right[at]), float_of(lower_right[at]), weight_upper, weight_lower);
    return mix(left, right, weight_left, weight_right);
  }
};

__device__ inline int64_t first_of_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline int64_t thread_count() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

// One thread an output pixel.
template <class Value>
__global__ void upsample_argmax_kernel(Maps logits, Axis rows, Axis columns, int64_t* out) {
  const int64_t pixels = logits.batch * rows.out * columns.out;
  for (int64_t i = first_of_thread(); i < pixels; i += thread_count()) {
    const Pixel<Value> pixel(logits, rows, columns, place_of(i, rows.out, columns.out));
    float largest = pixel.score(0);
    int64_t chosen = 0;
#pragma unroll 4
    for (int64_t k = 1; k < logits.channels; ++k) {
      const float score = pixel.score(k * logits.stride_c);
      if (takes_over(score, largest)) largest = score, chosen = k;
    }
    out[i] = chosen;
  }
}

// One thread an output pixel, so that a warp writes a run of one class's map.
template <class Value>
__global__ void upsample_softmax_kernel(Maps logits, Axis rows, Axis columns, MutableMaps out) {
  const int64_t pixels = logits.batch * rows.out * columns.out;
  for (int64_t i = first_of_thread(); i < pixels; i += thread_count()) {
    const Place place = place_of(i, rows.out, columns.out);
    const Pixel<Value> pixel(logits, rows, columns, place);
    RunningSoftmax softmax;
    for (int64_t k = 0; k < logits.channels; ++k) softmax.add(pixel.score(k * logits.stride_c), Exp{});
    const float factor = 1.0f / softmax.sum;
    Value* to = static_cast<Value*>(out.data) + offset_of(out, place.n, place.y, place.x);
    for (int64_t k = 0; k < logits.channels; ++k)
      store(to + k * out.stride_c, expf(pixel.score(k * logits.stride_c) - softmax.largest) * factor);
  }
}

// The same for channels_last: one warp an output pixel, its lanes over the classes.
template <class Value>
__global__ void upsample_softmax_channels_last_kernel(Maps logits, Axis rows, Axis columns, MutableMaps out) {
  const int64_t pixels = logits.batch * rows.out * columns.out;
  const int lane = threadIdx.x % kWarp;
  for (int64_t i = first_of_thread() / kWarp; i < pixels; i += thread_count() / kWarp) {
    const Place place = place_of(i, rows.out, columns.out);
    const Pixel<Value> pixel(logits, rows, columns, place);
    RunningSoftmax softmax;
    for (int64_t k = lane; k < logits.channels; k += kWarp) softmax.add(pixel.score(k * logits.stride_c), Exp{});
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      RunningSoftmax other;
      other.largest = __shfl_xor_sync(kAllLanes, softmax.largest, offset);
      other.sum = __shfl_xor_sync(kAllLanes, softmax.sum, offset);
      softmax.merge(other, Exp{});
    }
    const float factor = 1.0f / softmax.sum;
    Value* to = static_cast<Value*>(out.data) + offset_of(out, place.n, place.y, place.x);
    for (int64_t k = lane; k < logits.channels; k += kWarp)
      store(to + k * out.stride_c, expf(pixel.score(k * logits.stride_c) - softmax.largest) * factor);
  }
}

// dots[pixel] = sum over classes of gradient * probability: `kLanes` threads an output pixel, 1 or a warp.
template <class Value, int kLanes>
__global__ void upsample_softmax_dots_kernel(Maps grad, Maps out, float* dots) {
  const int64_t pixels = out.batch * out.height * out.width;
  const int lane = threadIdx.x % kLanes;
  for (int64_t i = first_of_thread() / kLanes; i < pixels; i += thread_count() / kLanes) {
    const Place place = place_of(i, out.height, out.width);
    const Value* gradient = static_cast<const Value*>(grad.data) + offset_of(grad, place.n, place.y, place.x);
    const Value* probability = static_cast<const Value*>(out.data) + offset_of(out, place.n, place.y, place.x);
    float dot = 0.0f;
    for (int64_t k = lane; k < out.channels; k += kLanes)
      dot += float_of(gradient[k * grad.stride_c]) * float_of(probability[k * out.stride_c]);
    for (int offset = kLanes / 2; offset > 0; offset /= 2) dot += __shfl_xor_sync(kAllLanes, dot, offset);
    if (lane == 0) dots[i] = dot;
  }
}

// The output elements that one element of the logits has a part in.
struct Box {
  int64_t top, bottom, left, right;
};
__device__ inline Box box_of(const Axis& rows, const Axis& columns, int64_t row, int64_t column) {
  return {first_output(rows, row - 1), first_output(rows, row + 1), first_output(columns, column - 1),
          first_output(columns, column + 1)};
}

// The gradient to one element of the logits, kCount classes at once, summed over every `step`-th column of its box.
template <class Value, int kCount>
__device__ inline void gather_box(const Maps& grad, const Maps& out, const Axis& rows, const Axis& columns,
                                  const float* dots, int64_t n, int64_t row, int64_t column, int64_t k, int lane,
                                  int step, float* sums) {
  const Box box = box_of(rows, columns, row, column);
  const Value* gradients = static_cast<const Value*>(grad.data) + k * grad.stride_c;
  const Value* probabilities = static_cast<const Value*>(out.data) + k * out.stride_c;
  for (int64_t x = box.left + lane; x < box.right; x += step) {
    const float weight_x = weight_of(tap_of(columns, x), column);
    for (int64_t y = box.top; y < box.bottom; ++y) {
      const float weight = weight_x * weight_of(tap_of(rows, y), row);
      const float dot = dots[(n * rows.out + y) * columns.out + x];
      const Value* gradient = gradients + offset_of(grad, n, y, x);
      const Value* probability = probabilities + offset_of(out, n, y, x);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        // Beyond the last class: the last one again, for nothing.
        const int64_t class_offset = k + i < out.channels ? i : out.channels - 1 - k;
        sums[i] += weight * softmax_gradient(float_of(probability[class_offset * out.stride_c]),
                                             float_of(gradient[class_offset * grad.stride_c]), dot);
      }
    }
  }
}

// kLanes threads (1 to 32) an element of the logits and kClassesAtOnce classes, side by side in a row of the output.
template <class Value, int kLanes>
__global__ void upsample_softmax_backward_kernel(Maps grad, Maps out, const float* dots, Axis rows, Axis columns,
                                                 MutableMaps to_logits) {
  const int64_t groups = (out.channels + kClassesAtOnce - 1) / kClassesAtOnce;
  const int64_t elements = to_logits.batch * groups * rows.in * columns.in;
  const int lane = threadIdx.x % kLanes;
  // All threads of a warp go around equally often, because they exchange sums.
  for (int64_t first = first_of_thread() / kWarp * (kWarp / kLanes); first < elements;
       first += thread_count() / kLanes) {
    const int64_t i = first + threadIdx.x % kWarp / kLanes;
    const Place place = place_of(i, rows.in, columns.in);
    const int64_t n = place.n / groups, k = place.n % groups * kClassesAtOnce;
    float sums[kClassesAtOnce] = {};
    if (i < elements)
      gather_box<Value, kClassesAtOnce>(grad, out, rows, columns, dots, n, place.y, place.x, k, lane, kLanes, sums);
#pragma unroll
    for (int j = 0; j < kClassesAtOnce; ++j)
      for (int offset = kLanes / 2; offset > 0; offset /= 2) sums[j] += __shfl_xor_sync(kAllLanes, sums[j], offset);
    if (lane != 0 || i >= elements) continue;
    Value* to = static_cast<Value*>(to_logits.data) + offset_of(to_logits, n, place.y, place.x);
#pragma unroll
    for (int j = 0; j < kClassesAtOnce; ++j)
      if (k + j < out.channels) store(to + (k + j) * to_logits.stride_c, sums[j]);
  }
}

// The same for channels_last: one thread an element of the logits, neighbours in a warp being neighbouring classes.
template <class Value>
__global__ void upsample_softmax_backward_channels_last_kernel(Maps grad, Maps out, const float* dots, Axis rows,
                                                               Axis columns, MutableMaps to_logits) {
  const int64_t elements = to_logits.batch * rows.in * columns.in * out.channels;
  for (int64_t i = first_of_thread(); i < elements; i += thread_count()) {
    const int64_t pixel = i / out.channels, k = i - pixel * out.channels;
    const Place place = place_of(pixel, rows.in, columns.in);
    float sum[1] = {};
    gather_box<Value, 1>(grad, out, rows, columns, dots, place.n, place.y, place.x, k, 0, 1, sum);
    store(
        static_cast<Value*>(to_logits.data) + offset_of(to_logits, place.n, place.y, place.x) + k * to_logits.stride_c,
        sum[0]);
  }
}

}  // namespace
}  // namespace deeplab_fast
