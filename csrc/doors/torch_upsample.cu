// The torch door of upsampling on the GPU: checks, and launches of the kernels in upsample.cuh.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <type_traits>

#include "doors/torch_upsample.h"
#include "upsample/upsample.cuh"

namespace {

using namespace deeplab_fast;
using torch::stable::Tensor;

void check_same_device(const Tensor& tensor, const char* name, const Tensor& like) {
  check_upsample(tensor.get_device_index() == like.get_device_index(), name, "should be on the device of the others");
}

cudaStream_t current_stream(const Tensor& like) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Enough blocks for one thread each; the kernels go around where the grid would be larger than this.
unsigned blocks_for(int64_t threads) {
  constexpr int64_t kMost = 1 << 24;
  const int64_t blocks = (threads + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < kMost ? blocks : kMost);
}

// Calls body with a null pointer of the elements' type.
template <class Body>
void by_element(Element type, Body&& body) {
  if (type == Element::kFloat) return body(static_cast<float*>(nullptr));
  if (type == Element::kHalf) return body(static_cast<__half*>(nullptr));
  return body(static_cast<__nv_bfloat16*>(nullptr));
}

template <class Pointer>
void check_type(const MapsOf<Pointer>& scores, const char* name, const Maps& like) {
  check_upsample(scores.element == like.element, name, "dtype should be that of the others");
}

void upsample_argmax_cuda(const Tensor& logits, Tensor out) {
  const Maps scores = scores_of(logits, "logits");
  check_argmax_out(scores, out);
  check_same_device(out, "out", logits);
  if (scores.batch == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const Axis rows = axis_of(scores.height, out.size(1)), columns = axis_of(scores.width, out.size(2));
  by_element(scores.element, [&](auto* element) {
    using Value = std::remove_pointer_t<decltype(element)>;
    upsample_argmax_kernel<Value><<<blocks_for(out.numel()), kThreads, 0, current_stream(logits)>>>(
        scores, rows, columns, out.mutable_data_ptr<int64_t>());
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void upsample_softmax_cuda(const Tensor& logits, Tensor out) {
  const Maps scores = scores_of(logits, "logits");
  const MutableMaps probabilities = mutable_scores_of(out, "out");
  check_same_maps(probabilities, "out", scores);
  check_type(probabilities, "out", scores);
  check_same_device(out, "out", logits);
  if (scores.batch == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const cudaStream_t stream = current_stream(logits);
  const Axis rows = axis_of(scores.height, out.size(2)), columns = axis_of(scores.width, out.size(3));
  const int64_t pixels = scores.batch * rows.out * columns.out;
  by_element(scores.element, [&](auto* element) {
    using Value = std::remove_pointer_t<decltype(element)>;
    if (probabilities.stride_c == 1 && scores.channels > 1)
      upsample_softmax_channels_last_kernel<Value>
          <<<blocks_for(pixels * kWarp), kThreads, 0, stream>>>(scores, rows, columns, probabilities);
    else
      upsample_softmax_kernel<Value><<<blocks_for(pixels), kThreads, 0, stream>>>(scores, rows, columns, probabilities);
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <class Value>
void launch_backward(const Maps& grad, const Maps& out, float* dots, const Axis& rows, const Axis& columns,
                     const MutableMaps& to_logits, cudaStream_t stream) {
  const int64_t pixels = out.batch * out.height * out.width;
  const int64_t logit_pixels = to_logits.batch * to_logits.height * to_logits.width;
  if (out.stride_c == 1 && out.channels > 1) {
    upsample_softmax_dots_kernel<Value, kWarp><<<blocks_for(pixels * kWarp), kThreads, 0, stream>>>(grad, out, dots);
    upsample_softmax_backward_channels_last_kernel<Value>
        <<<blocks_for(logit_pixels * out.channels), kThreads, 0, stream>>>(grad, out, dots, rows, columns, to_logits);
    return;
  }
  upsample_softmax_dots_kernel<Value, 1><<<blocks_for(pixels), kThreads, 0, stream>>>(grad, out, dots);
  // As many lanes as an element of the logits reaches output columns, about.
  const int64_t threads = logit_pixels * ((out.channels + kClassesAtOnce - 1) / kClassesAtOnce);
  const float reach = 2.0f / columns.scale;
  if (reach <= 4)
    upsample_softmax_backward_kernel<Value, 4>
        <<<blocks_for(threads * 4), kThreads, 0, stream>>>(grad, out, dots, rows, columns, to_logits);
  else if (reach <= 16)
    upsample_softmax_backward_kernel<Value, 16>
        <<<blocks_for(threads * 16), kThreads, 0, stream>>>(grad, out, dots, rows, columns, to_logits);
  else
    upsample_softmax_backward_kernel<Value, 32>
        <<<blocks_for(threads * 32), kThreads, 0, stream>>>(grad, out, dots, rows, columns, to_logits);
}

void upsample_softmax_backward_cuda(const Tensor& grad, const Tensor& out, Tensor to_logits) {
  const Maps gradient = scores_of(grad, "grad"), probabilities = scores_of(out, "out");
  const MutableMaps result = mutable_scores_of(to_logits, "to_logits");
  check_backward(gradient, probabilities, result);
  check_type(probabilities, "out", gradient);
  check_type(result, "to_logits", gradient);
  check_same_device(out, "out", grad);
  check_same_device(to_logits, "to_logits", grad);
  if (gradient.batch == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const Axis rows = axis_of(result.height, gradient.height), columns = axis_of(result.width, gradient.width);
  Tensor dots = torch::stable::empty({gradient.batch, gradient.height, gradient.width},
                                     torch::headeronly::ScalarType::Float, std::nullopt, grad.device());
  by_element(gradient.element, [&](auto* element) {
    using Value = std::remove_pointer_t<decltype(element)>;
    launch_backward<Value>(gradient, probabilities, dots.mutable_data_ptr<float>(), rows, columns, result,
                           current_stream(grad));
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(deeplab_fast, CUDA, m) {
  m.impl("upsample_argmax_into", TORCH_BOX(&upsample_argmax_cuda));
  m.impl("upsample_softmax_into", TORCH_BOX(&upsample_softmax_cuda));
  m.impl("upsample_softmax_backward_into", TORCH_BOX(&upsample_softmax_backward_cuda));
}
