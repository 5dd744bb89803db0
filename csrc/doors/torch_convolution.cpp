// The torch door of the convolutions: internal ops, called by deeplab_fast/ops, which allocates what they write.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "base/content_hash.h"
#include "convolution/relu_backward.h"
#include "convolution/taps.h"
#include "doors/torch_common.h"

namespace {

using namespace deeplab_fast;

// kernels: height and width of each branch's kernel, one after the other; rates: vertical and horizontal, likewise.
std::vector<Branch> branches_of(const std::vector<int64_t>& kernels, const std::vector<int64_t>& rates) {
  check(!rates.empty() && kernels.size() == rates.size() && rates.size() % 2 == 0,
        "rates: should be two a branch, and of at least one branch");
  std::vector<Branch> branches;
  for (size_t i = 0; i < rates.size(); i += 2) {
    for (size_t axis = i; axis < i + 2; ++axis) {
      check(rates[axis] >= 1 && rates[axis] <= INT32_MAX, "rates: should be 1 to 2^31 - 1");
      check(kernels[axis] % 2 == 1, "weights: kernel sizes should be odd");
    }
    branches.push_back({kernels[i], kernels[i + 1], rates[i], rates[i + 1]});
  }
  return branches;
}

std::vector<int64_t> kernels_of(const std::vector<Tensor>& weights) {
  std::vector<int64_t> kernels;
  for (const Tensor& weight : weights) {
    check(weight.dim() == 4 && weight.size(0) == weights[0].size(0) && weight.size(1) == weights[0].size(1),
          "weights: should be (K, C, kh, kw), K and C the same in all");
    kernels.push_back(weight.size(2));
    kernels.push_back(weight.size(3));
  }
  return kernels;
}

std::vector<BranchWeight> views_of(const std::vector<Tensor>& weights) {
  std::vector<BranchWeight> views;
  for (const Tensor& weight : weights)
    views.push_back({weight.const_data_ptr(), element_of(weight, "weights"), weight.stride(0), weight.stride(1),
                     weight.stride(2), weight.stride(3)});
  return views;
}

Tensor aspp_sum_pack(std::vector<Tensor> weights, std::vector<int64_t> rates) {
  check(!weights.empty(), "weights: should be at least one");
  const std::vector<Branch> branches = branches_of(kernels_of(weights), rates);
  const int64_t classes = weights[0].size(0), channels = weights[0].size(1);
  check(classes >= 1 && channels >= 1, "weights: K and C should be at least 1");
  Tensor packed = torch::stable::empty({aspp_packed_size(branches, classes, channels)}, ScalarType::Float);
  TorchThreads threads;
  aspp_pack(branches, views_of(weights), classes, channels, packed.mutable_data_ptr<float>(), threads);
  return packed;
}

void aspp_sum_cpu(const Tensor& x, const Tensor& packed, std::optional<Tensor> bias, std::vector<int64_t> kernels,
                  std::vector<int64_t> rates, Tensor out) {
  const std::vector<Branch> branches = branches_of(kernels, rates);
  const Maps input = maps_of(x, "x");
  const MutableMaps output = mutable_maps_of(out, "out");
  check(output.batch == input.batch && output.height == input.height && output.width == input.width,
        "out: batch, height and width should be those of x");
  check(input.channels >= 1 && output.channels >= 1, "x: channels and classes should be at least 1");
  check(packed.scalar_type() == ScalarType::Float && packed.dim() == 1 &&
            packed.size(0) == aspp_packed_size(branches, output.channels, input.channels),
        "packed: should be what aspp_sum_pack returns for these sizes");
  const float* offsets = vector_of(bias, "bias", output.channels);
  if (input.batch * input.pixels() == 0) return;
  TorchThreads threads;
  aspp_forward(branches, input, packed.const_data_ptr<float>(), offsets, output, threads);
}

void aspp_sum_backward_x_cpu(const Tensor& grad, std::vector<Tensor> weights, std::vector<int64_t> rates, Tensor to_x) {
  check(!weights.empty(), "weights: should be at least one");
  const std::vector<Branch> branches = branches_of(kernels_of(weights), rates);
  const Maps from = maps_of(grad, "grad");
  const MutableMaps to = mutable_maps_of(to_x, "to_x");
  check(from.batch == to.batch && from.height == to.height && from.width == to.width,
        "grad: batch, height and width should be those of x");
  check(weights[0].size(0) == from.channels && weights[0].size(1) == to.channels,
        "weights: should be (K, C, kh, kw) to go with grad and x");
  if (from.batch * from.pixels() == 0) return;
  TorchThreads threads;
  aspp_backward_x(branches, views_of(weights), from, to, threads);
}

void aspp_sum_backward_weights_cpu(const Tensor& grad, const Tensor& x, std::vector<int64_t> rates,
                                   std::vector<Tensor> to_weights) {
  check(!to_weights.empty(), "weights: should be at least one");
  const std::vector<Branch> branches = branches_of(kernels_of(to_weights), rates);
  const Maps from = maps_of(grad, "grad"), input = maps_of(x, "x");
  check(from.batch == input.batch && from.height == input.height && from.width == input.width,
        "grad: batch, height and width should be those of x");
  std::vector<float*> to;
  for (Tensor& weight : to_weights) {
    check(weight.size(0) == from.channels && weight.size(1) == input.channels,
          "weights: should be (K, C, kh, kw) to go with grad and x");
    check(weight.scalar_type() == ScalarType::Float && weight.is_contiguous(),
          "weights: their gradients should be float32 and contiguous");
    to.push_back(weight.mutable_data_ptr<float>());
  }
  TorchThreads threads;
  aspp_backward_weights(branches, from, input, to, threads);
}

// products: (N, H, W, taps * K), contiguous.
void aspp_shift_sum_cpu(const Tensor& products, std::optional<Tensor> bias, std::vector<int64_t> kernels,
                        std::vector<int64_t> rates, Tensor out) {
  const std::vector<Branch> branches = branches_of(kernels, rates);
  const MutableMaps output = mutable_maps_of(out, "out");
  const int64_t taps = aspp_tap_count(branches);
  check(products.is_contiguous() && products.dim() == 4 && products.size(0) == output.batch &&
            products.size(1) == output.height && products.size(2) == output.width &&
            products.size(3) == taps * output.channels,
        "products: should be (N, H, W, taps * K), contiguous, to go with out");
  const float* offsets = vector_of(bias, "bias", output.channels);
  TorchThreads threads;
  aspp_shift_sum(branches, products.const_data_ptr(), element_of(products, "products"), offsets, output, threads);
}

void aspp_shift_gather_cpu(const Tensor& grad, std::vector<int64_t> kernels, std::vector<int64_t> rates,
                           Tensor columns) {
  const std::vector<Branch> branches = branches_of(kernels, rates);
  const Maps from = maps_of(grad, "grad");
  check(columns.is_contiguous() && columns.dim() == 4 && columns.scalar_type() == grad.scalar_type() &&
            columns.size(0) == from.batch && columns.size(1) == from.height && columns.size(2) == from.width &&
            columns.size(3) == aspp_tap_count(branches) * from.channels,
        "columns: should be (N, H, W, taps * K), contiguous, with the dtype of grad");
  TorchThreads threads;
  aspp_shift_gather(branches, from, columns.mutable_data_ptr(), threads);
}

// grad where out is positive, else 0, and its sums by channel.
void relu_backward_cpu(const Tensor& grad, const Tensor& out, Tensor masked, Tensor sums) {
  const Maps from = maps_of(grad, "grad"), result = maps_of(out, "out");
  const MutableMaps to = mutable_maps_of(masked, "masked");
  check(from.batch == result.batch && from.channels == result.channels && from.height == result.height &&
            from.width == result.width && to.batch == from.batch && to.channels == from.channels &&
            to.height == from.height && to.width == from.width,
        "grad: shape should be that of out and masked");
  check(from.element == result.element && from.element == to.element, "grad: dtype should be that of out and masked");
  check(sums.scalar_type() == ScalarType::Float && sums.is_contiguous() && sums.dim() == 1 &&
            sums.size(0) == from.channels,
        "sums: should be (K,), float32");
  TorchThreads threads;
  relu_backward(from, result, to, sums.mutable_data_ptr<float>(), threads);
}

// Of the memory of tensors, whose elements must fill it without holes.
int64_t checksum_cpu(std::vector<Tensor> tensors) {
  TorchThreads threads;
  uint64_t result = 0;
  for (const Tensor& tensor : tensors) {
    int64_t last = 0;
    for (int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
    check(tensor.numel() == 0 || last + 1 == tensor.numel(), "tensors: should have no holes");
    result = result * 31 +
             checksum(tensor.const_data_ptr(), tensor.numel() * static_cast<int64_t>(tensor.element_size()), threads);
  }
  return static_cast<int64_t>(result);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(deeplab_fast, CPU, m) {
  m.impl("aspp_sum_pack", TORCH_BOX(&aspp_sum_pack));
  m.impl("aspp_sum_cpu", TORCH_BOX(&aspp_sum_cpu));
  m.impl("aspp_sum_backward_x_cpu", TORCH_BOX(&aspp_sum_backward_x_cpu));
  m.impl("aspp_sum_backward_weights_cpu", TORCH_BOX(&aspp_sum_backward_weights_cpu));
  m.impl("aspp_shift_sum_cpu", TORCH_BOX(&aspp_shift_sum_cpu));
  m.impl("aspp_shift_gather_cpu", TORCH_BOX(&aspp_shift_gather_cpu));
  m.impl("relu_backward_cpu", TORCH_BOX(&relu_backward_cpu));
  m.impl("checksum_cpu", TORCH_BOX(&checksum_cpu));
}
