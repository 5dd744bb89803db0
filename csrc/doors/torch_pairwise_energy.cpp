// The torch door of the pairwise energy that nn.DenseCRFLoss is made of, on a CPU.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "crf/pairwise_energy.h"
#include "doors/torch_crf.h"

namespace {

using namespace deeplab_fast;

BilinearScaling scaling_of(const std::vector<int64_t>& size, double factor) {
  check(size.size() == 2 && size[0] >= 1 && size[1] >= 1, "size: should be (H, W), 1 or more each");
  check(factor > 0 && std::isfinite(factor) && static_cast<double>(std::max(size[0], size[1])) * factor < 1e9,
        "factor: should be positive, and leave at most 1e9 rows and columns");
  BilinearScaling scaling(size[0], size[1], factor);
  check(scaling.points() > 0, "factor: leaves nothing");
  return scaling;
}

std::tuple<Tensor, Tensor> pairwise_energy_cpu(const Tensor& values, const Tensor& features,
                                               std::optional<Tensor> inside, double factor) {
  const Shape shape = shape_of(values, "values");
  check(values.dim() == 4 && features.dim() == 4, "values, features: should be (N, channels, H, W)");
  const BilinearScaling scaling = scaling_of({values.size(2), values.size(3)}, factor);
  const std::vector<int64_t> scaled{shape.batch, shape.channels, scaling.height(), scaling.width()};
  const int64_t dimensions = features.size(1), points = scaling.points();
  check(sizes_of(features) == std::vector<int64_t>{shape.batch, dimensions, scaled[2], scaled[3]},
        "features: batch and size should be those of scaled values");
  check(dimensions >= 1 && dimensions <= kMaxDimensions,
        "features: should have 1 to " + std::to_string(kMaxDimensions) + " channels");
  const Tensor input = to_float(values, "values"), positions = to_float(features, "features");
  std::optional<Tensor> region;
  if (inside.has_value()) {
    check(sizes_of(*inside) == std::vector<int64_t>{shape.batch, 1, scaled[2], scaled[3]},
          "inside: should be (N, 1, h, w), the size of features");
    region = to_float(*inside, "inside");
  }
  Tensor energy = torch::stable::empty({shape.batch}, ScalarType::Float);
  Tensor gradient = empty_on_huge_pages(scaled);
  float* energy_out = energy.mutable_data_ptr<float>();
  float* gradient_out = gradient.mutable_data_ptr<float>();
  const auto order = std::make_shared<VisitOrder>(points, scaling.width());
  each_image(shape.batch, order->chunks(), [&](int64_t n, Parallel& parallel) {
    const float* at = positions.const_data_ptr<float>() + n * dimensions * points;
    const float* planes = input.const_data_ptr<float>() + n * shape.channels * shape.points;
    Buffer<float> small(shape.channels * points);
    parallel_for(parallel, shape.channels,
                 [&](int64_t c) { scaling.scale(planes + c * shape.points, small.data() + c * points); });
    const Lattice lattice(at, static_cast<int>(dimensions), order, parallel);
    energy_out[n] = static_cast<float>(pairwise_energy(
        lattice, shape.channels, region.has_value() ? region->const_data_ptr<float>() + n * points : nullptr,
        small.data(), gradient_out + n * shape.channels * points, parallel));
  });
  return {energy, gradient};
}

Tensor pairwise_energy_backward_cpu(const Tensor& grad, const Tensor& gradient, std::vector<int64_t> size,
                                    double factor) {
  const BilinearScaling scaling = scaling_of(size, factor);
  check(gradient.dim() == 4 && gradient.size(2) == scaling.height() && gradient.size(3) == scaling.width(),
        "gradient: should be (N, channels, h, w), of the scaled size");
  const int64_t batch = gradient.size(0), channels = gradient.size(1);
  check(grad.dim() == 1 && grad.size(0) == batch, "grad: should be (N,)");
  const Tensor times = to_float(grad, "grad"), from = to_float(gradient, "gradient");
  Tensor out = empty_on_huge_pages({batch, channels, size[0], size[1]});
  float* planes = out.mutable_data_ptr<float>();
  TorchThreads threads;
  parallel_for(threads, batch * channels, [&](int64_t plane) {
    scaling.scale_back(from.const_data_ptr<float>() + plane * scaling.points(),
                       times.const_data_ptr<float>()[plane / channels], planes + plane * scaling.source_points());
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(deeplab_fast, CPU, m) {
  m.impl("pairwise_energy_cpu", TORCH_BOX(&pairwise_energy_cpu));
  m.impl("pairwise_energy_backward_cpu", TORCH_BOX(&pairwise_energy_backward_cpu));
}
