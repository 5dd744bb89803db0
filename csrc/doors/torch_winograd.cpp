// The torch door of the Winograd convolution: internal ops, called by deeplab_fast/ops, which allocates what they
// write.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>

#include "convolution/winograd.h"
#include "doors/torch_common.h"

namespace {

using namespace deeplab_fast;

template <class Pointer>
void check_float(const MapsOf<Pointer>& maps, const char* name) {
  check(maps.element == Element::kFloat, std::string(name) + ": dtype should be float32");
}

template <class Pointer>
void check_like_out(const MapsOf<Pointer>& maps, const char* name, const MutableMaps& out) {
  check(maps.batch == out.batch && maps.height == out.height && maps.width == out.width,
        std::string(name) + ": batch, height and width should be those of out");
}

Tensor winograd_pack_cpu(const Tensor& weight, std::optional<Tensor> scale) {
  check(weight.scalar_type() == ScalarType::Float, "weight: dtype should be float32");
  check(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3, "weight: should be (K, C, 3, 3)");
  const int64_t out_channels = weight.size(0), channels = weight.size(1);
  check(out_channels >= 1 && channels >= 1, "weight: K and C should be at least 1");
  const float* factors = vector_of(scale, "scale", out_channels);
  Tensor packed = torch::stable::empty({winograd_packed_size(out_channels, channels)}, ScalarType::Float);
  TorchThreads threads;
  winograd_pack(
      {weight.const_data_ptr<float>(), weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3)}, factors,
      out_channels, channels, packed.mutable_data_ptr<float>(), threads);
  return packed;
}

void winograd_conv2d_cpu(const Tensor& x, const Tensor& packed, std::optional<Tensor> bias,
                         std::optional<Tensor> residual, bool relu, int64_t rate_h, int64_t rate_w, Tensor out) {
  const Maps input = maps_of(x, "x");
  const MutableMaps output = mutable_maps_of(out, "out");
  check_float(input, "x");
  check_float(output, "out");
  check_like_out(input, "x", output);
  check(input.channels >= 1 && output.channels >= 1, "x: channels, and those of out, should be at least 1");
  check(rate_h >= 1 && rate_h <= INT32_MAX && rate_w >= 1 && rate_w <= INT32_MAX,
        "rate_h, rate_w: should be 1 to 2^31 - 1");
  check(packed.scalar_type() == ScalarType::Float && packed.dim() == 1 && packed.is_contiguous() &&
            packed.size(0) == winograd_packed_size(output.channels, input.channels),
        "packed: should be what winograd_pack_cpu returns for these channels");
  const float* offsets = vector_of(bias, "bias", output.channels);
  Maps added{};
  if (residual.has_value()) {
    added = maps_of(*residual, "residual");
    check_float(added, "residual");
    check_like_out(added, "residual", output);
    check(added.channels == output.channels, "residual: channels should be those of out");
  }
  if (output.batch * output.pixels() == 0) return;
  TorchThreads threads;
  winograd_forward(input, packed.const_data_ptr<float>(), offsets, residual.has_value() ? &added : nullptr, relu,
                   rate_h, rate_w, output, threads);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(deeplab_fast, CPU, m) {
  m.impl("winograd_pack_cpu", TORCH_BOX(&winograd_pack_cpu));
  m.impl("winograd_conv2d_cpu", TORCH_BOX(&winograd_conv2d_cpu));
}
