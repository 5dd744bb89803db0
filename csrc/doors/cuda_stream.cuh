// A stream of a GPU, as lattice/on_device.cuh wants it: launches, torch's memory, CUB's scan and sort.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include "cuda/common.cuh"
#include "cuda/device_array.h"

namespace deeplab_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

class CudaStream {
 public:
  // The current stream of the device that `like` is on.
  explicit CudaStream(const Tensor& like) : device_(like.device()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <class... Parameters, class... Arguments>
  void launch(int64_t items, void (*kernel)(Parameters...), Arguments... arguments) {
    if (items <= 0) return;
    // Kernels go around where the grid would be larger than this.
    constexpr int64_t kMostBlocks = 1 << 20;
    const int64_t blocks = (items + kThreads - 1) / kThreads;
    const auto grid = static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
    kernel<<<grid, kThreads, 0, stream_>>>(static_cast<Parameters>(arguments)...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  // torch's allocator gives memory out again in the order of the stream.
  template <class T>
  DeviceArray<T> make(int64_t size) {
    auto tensor = std::make_shared<Tensor>(
        torch::stable::empty({size * static_cast<int64_t>(sizeof(T))}, ScalarType::Byte, std::nullopt, device_));
    return {tensor, static_cast<T*>(tensor->mutable_data_ptr()), size};
  }

  void fill_bytes(void* memory, int value, int64_t size) {
    if (size > 0) STD_CUDA_CHECK(cudaMemsetAsync(memory, value, size, stream_));
  }

  void exclusive_sum(int32_t* values, int64_t count) {
    size_t size = 0;
    STD_CUDA_CHECK(cub::DeviceScan::ExclusiveSum(nullptr, size, values, values, count, stream_));
    const auto memory = make<char>(static_cast<int64_t>(size));
    STD_CUDA_CHECK(cub::DeviceScan::ExclusiveSum(memory.data, size, values, values, count, stream_));
  }

  // By keys in [0, limit), stable.
  void sort_pairs(int64_t count, int64_t limit, const int32_t* keys, int32_t* sorted_keys, const int32_t* values,
                  int32_t* sorted_values) {
    int bits = 1;
    while (bits < 31 && limit > int64_t{1} << bits) ++bits;
    size_t size = 0;
    STD_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(nullptr, size, keys, sorted_keys, values, sorted_values, count, 0,
                                                   bits, stream_));
    const auto memory = make<char>(static_cast<int64_t>(size));
    STD_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(memory.data, size, keys, sorted_keys, values, sorted_values, count,
                                                   0, bits, stream_));
  }

  // Waits for the device; does nothing and returns false while a graph is captured.
  bool read(const int32_t* from, int32_t* to, int count) {
    cudaStreamCaptureStatus status;
    STD_CUDA_CHECK(cudaStreamIsCapturing(stream_, &status));
    if (status != cudaStreamCaptureStatusNone) return false;
    STD_CUDA_CHECK(cudaMemcpyAsync(to, from, count * sizeof(int32_t), cudaMemcpyDeviceToHost, stream_));
    STD_CUDA_CHECK(cudaStreamSynchronize(stream_));
    return true;
  }

 private:
  torch::stable::Device device_;
  cudaStream_t stream_;
};

}  // namespace
}  // namespace deeplab_fast
