// The torch door of the dense CRF's gradients: CPU kernels, as in torch_crf.cpp.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "torch_crf.h"

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
  TorchThreads threads;
  const auto order = std::make_shared<VisitOrder>(shape.points, image_width(values));
  for (int64_t n = 0; n < shape.batch && shape.points > 0; ++n) {
    const float* at = positions.const_data_ptr<float>() + n * dimensions * shape.points;
    const Lattice lattice(at, static_cast<int>(dimensions), order, threads);
    const int64_t offset = n * shape.channels * shape.points;
    filter_backward_features(lattice, at, gradient.const_data_ptr<float>() + offset,
                             input.const_data_ptr<float>() + offset, shape.channels, reverse,
                             to + n * dimensions * shape.points, threads);
  }
  return out;
}

std::tuple<Tensor, Tensor> dense_crf_history_cpu(const Tensor& unary, std::vector<Tensor> features,
                                                 std::vector<Tensor> compat, int64_t iterations,
                                                 std::vector<int64_t> normalization) {
  const CrfArguments arguments(unary, features, compat, iterations, normalization);
  const Shape& shape = arguments.shape;
  Tensor out = torch::stable::empty(sizes_of(unary), ScalarType::Float);
  Tensor history = torch::stable::empty({shape.batch, iterations, shape.points, shape.channels}, ScalarType::Float);
  float* to = out.mutable_data_ptr<float>();
  TorchThreads threads;
  Buffer<float> start(iterations == 0 && arguments.batch() > 0 ? arguments.image_size() : 0);
  for (int64_t n = 0; n < arguments.batch(); ++n) {
    const auto crf = arguments.make(n, threads);
    float* beliefs = history.mutable_data_ptr<float>() + n * iterations * arguments.image_size();
    const float* last = beliefs + (iterations - 1) * arguments.image_size();
    if (iterations > 0) {
      crf->inference(arguments.iterations, beliefs, threads, true);
    } else {
      crf->inference(0, start.data(), threads);
      last = start.data();
    }
    to_label_major(last, crf->labels(), crf->points(), to + n * arguments.image_size(), threads);
  }
  return {from_float(out, unary.scalar_type()), history};
}

std::vector<Tensor> dense_crf_backward_cpu(const Tensor& grad, const Tensor& unary, std::vector<Tensor> features,
                                           std::vector<Tensor> compat, int64_t iterations,
                                           std::vector<int64_t> normalization, std::optional<Tensor> history,
                                           bool need_features, bool need_compat) {
  const CrfArguments arguments(unary, features, compat, iterations, normalization);
  const Shape& shape = arguments.shape;
  check(sizes_of(grad) == sizes_of(unary), "grad: shape should be that of unary");
  if (history.has_value())
    check(history->scalar_type() == ScalarType::Float && history->is_contiguous() &&
              sizes_of(*history) == std::vector<int64_t>{shape.batch, iterations, shape.points, shape.channels},
          "history: should be float32 (N, iterations, points, K) and contiguous, as dense_crf_history gives it");
  const Tensor gradient = to_float(grad, "grad");

  const size_t kernels = features.size();
  Tensor to_unary = torch::stable::empty(sizes_of(unary), ScalarType::Float);
  std::vector<Tensor> to_features, to_compat;
  std::vector<std::vector<double>> compat_sums(kernels);
  for (size_t k = 0; k < kernels; ++k) {
    if (need_features) to_features.push_back(torch::stable::empty(sizes_of(features[k]), ScalarType::Float));
    if (need_compat) to_compat.push_back(torch::stable::empty(sizes_of(compat[k]), ScalarType::Float));
    if (need_compat) compat_sums[k].assign(compat[k].numel(), 0.0);
  }
  TorchThreads threads;
  for (int64_t n = 0; n < arguments.batch(); ++n) {
    const int64_t offset = n * arguments.image_size();
    CrfGradients out{to_unary.mutable_data_ptr<float>() + offset, {}, {}};
    std::vector<const float*> positions;
    for (size_t k = 0; k < kernels; ++k) {
      positions.push_back(arguments.features_of(k, n));
      if (need_features)
        out.features.push_back(to_features[k].mutable_data_ptr<float>() + n * arguments.dimensions(k) * shape.points);
      if (need_compat) out.compat.push_back(compat_sums[k].data());
    }
    const float* beliefs = history.has_value() ? history->const_data_ptr<float>() + iterations * offset : nullptr;
    arguments.make(n, threads)
        ->backward(arguments.iterations, gradient.const_data_ptr<float>() + offset, beliefs, positions, out, threads);
  }
  std::vector<Tensor> result{from_float(to_unary, unary.scalar_type())};
  for (Tensor& tensor : to_features) result.push_back(tensor);
  for (size_t k = 0; k < to_compat.size(); ++k) {
    float* to = to_compat[k].mutable_data_ptr<float>();
    for (size_t i = 0; i < compat_sums[k].size(); ++i) to[i] = static_cast<float>(compat_sums[k][i]);
    result.push_back(to_compat[k]);
  }
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(deeplab_fast, CPU, m) {
  m.impl("permutohedral_filter_backward_features", TORCH_BOX(&permutohedral_filter_backward_features_cpu));
  m.impl("dense_crf_history", TORCH_BOX(&dense_crf_history_cpu));
  m.impl("dense_crf_backward", TORCH_BOX(&dense_crf_backward_cpu));
}
