// The torch door of the dense CRF's gradients: CPU kernels, as in torch_crf.cpp.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "doors/torch_crf.h"

namespace {

using namespace deeplab_fast;

Tensor permutohedral_filter_backward_features_cpu(const Tensor& grad, const Tensor& values, const Tensor& features,
                                                  bool reverse) {
  check_features(features, values, "values");
  check(sizes_of(grad) == sizes_of(values), "grad: shape should be that of values");
  const Tensor gradient = to_float(grad, "grad"), input = to_float(values, "values");
  const Tensor positions = to_float(features, "features");
  const Shape shape = shape_of(values, "values");
  const int64_t dimensions = features.size(1);
  Tensor out = torch::stable::empty(sizes_of(features), ScalarType::Float);
  float* to = out.mutable_data_ptr<float>();
  if (shape.points == 0) return out;
  const auto order = std::make_shared<VisitOrder>(shape.points, image_width(values));
  each_image(shape.batch, order->chunks(), [&](int64_t n, Parallel& parallel) {
    const float* at = positions.const_data_ptr<float>() + n * dimensions * shape.points;
    const Lattice lattice(at, static_cast<int>(dimensions), order, parallel);
    const int64_t offset = n * shape.channels * shape.points;
    filter_backward_features(lattice, at, gradient.const_data_ptr<float>() + offset,
                             input.const_data_ptr<float>() + offset, shape.channels, reverse,
                             to + n * dimensions * shape.points, parallel);
  });
  return out;
}

std::tuple<Tensor, Tensor> dense_crf_history_cpu(const Tensor& unary, std::vector<Tensor> features,
                                                 std::vector<Tensor> compat, int64_t iterations,
                                                 std::vector<int64_t> normalization) {
  const CrfArguments arguments(unary, features, compat, iterations, normalization);
  const Shape& shape = arguments.shape;
  Tensor out = empty_on_huge_pages(sizes_of(unary));
  Tensor history = empty_on_huge_pages({iterations, shape.batch, shape.points, shape.channels});
  float* to = out.mutable_data_ptr<float>();
  float* histories = history.mutable_data_ptr<float>();
  const int64_t size = arguments.image_size();
  arguments.each_image([&](int64_t n, Parallel& parallel) {
    const auto crf = arguments.make(n, parallel);
    Buffer<float> start(size);
    const auto after = [&](int iteration) {
      return iteration > 0 ? histories + ((iteration - 1) * shape.batch + n) * size : start.data();
    };
    crf->infer(arguments.iterations, nullptr, after, parallel);
    to_label_major(after(arguments.iterations), crf->labels(), crf->points(), to + n * size, parallel);
  });
  return {from_float(out, unary.scalar_type()), history};
}

std::vector<Tensor> dense_crf_backward_cpu(const Tensor& grad, const Tensor& unary, std::vector<Tensor> features,
                                           std::vector<Tensor> compat, int64_t iterations,
                                           std::vector<int64_t> normalization, std::optional<Tensor> history,
                                           bool need_features, bool need_compat) {
  const CrfArguments arguments(unary, features, compat, iterations, normalization);
  const Shape& shape = arguments.shape;
  check_gradient(arguments, grad, unary, history);
  const Tensor gradient = to_float(grad, "grad");

  const size_t kernels = features.size();
  Tensor to_unary = empty_on_huge_pages(sizes_of(unary));
  std::vector<Tensor> to_features, to_compat;
  for (size_t k = 0; k < kernels; ++k) {
    if (need_features) to_features.push_back(torch::stable::empty(sizes_of(features[k]), ScalarType::Float));
    if (need_compat) to_compat.push_back(torch::stable::empty(sizes_of(compat[k]), ScalarType::Float));
  }
  std::vector<float*> features_out;
  for (Tensor& tensor : to_features) features_out.push_back(tensor.mutable_data_ptr<float>());
  float* unary_out = to_unary.mutable_data_ptr<float>();
  // [images][kernels][numbers of the compat]
  std::vector<std::vector<std::vector<double>>> compat_sums(shape.batch, std::vector<std::vector<double>>(kernels));
  arguments.each_image([&](int64_t n, Parallel& parallel) {
    const int64_t offset = n * arguments.image_size();
    CrfGradients out{unary_out + offset, {}, {}};
    std::vector<const float*> positions;
    for (size_t k = 0; k < kernels; ++k) {
      positions.push_back(arguments.features_of(k, n));
      if (need_features) out.features.push_back(features_out[k] + n * arguments.dimensions(k) * shape.points);
      if (!need_compat) continue;
      compat_sums[n][k].assign(compat[k].numel(), 0.0);
      out.compat.push_back(compat_sums[n][k].data());
    }
    const QHistory beliefs{history.has_value() ? history->const_data_ptr<float>() + offset : nullptr,
                           shape.batch * arguments.image_size()};
    arguments.make(n, parallel)
        ->backward(arguments.iterations, gradient.const_data_ptr<float>() + offset, beliefs, positions, out, parallel);
  });
  std::vector<Tensor> result{from_float(to_unary, unary.scalar_type())};
  for (Tensor& tensor : to_features) result.push_back(tensor);
  for (size_t k = 0; k < to_compat.size(); ++k) {
    float* to = to_compat[k].mutable_data_ptr<float>();
    for (int64_t i = 0; i < to_compat[k].numel(); ++i) {
      double sum = 0;
      for (const auto& image : compat_sums)
        if (!image[k].empty()) sum += image[k][i];
      to[i] = static_cast<float>(sum);
    }
    result.push_back(to_compat[k]);
  }
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(deeplab_fast, CPU, m) {
  m.impl("permutohedral_filter_backward_features_kernel", TORCH_BOX(&permutohedral_filter_backward_features_cpu));
  m.impl("dense_crf_history_kernel", TORCH_BOX(&dense_crf_history_cpu));
  m.impl("dense_crf_backward_kernel", TORCH_BOX(&dense_crf_backward_cpu));
}
