// What the doors of ops on lattices (the filter, the dense CRF, the pairwise energy) share: checks, and arguments as
// the core takes them.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "crf/dense_crf.h"
#include "doors/torch_common.h"
#include "lattice/geometry.h"

namespace deeplab_fast {

// float32 and contiguous, whatever it was; float64 is for the reference.
inline Tensor to_float(const Tensor& tensor, const char* name) {
  const ScalarType type = tensor.scalar_type();
  check(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16,
        std::string(name) + ": dtype should be float32, float16 or bfloat16 for compiled kernels");
  const Tensor same = type == ScalarType::Float ? tensor : torch::stable::to(tensor, ScalarType::Float);
  return torch::stable::contiguous(same);
}

// float32, uninitialised. Maps of a batch are new memory at every call: on small pages, the system would take longer
// to hand them out than a kernel to fill them.
inline Tensor empty_on_huge_pages(const std::vector<int64_t>& sizes) {
  Tensor tensor = torch::stable::empty(sizes, ScalarType::Float);
  advise_huge_pages(tensor.mutable_data_ptr(), static_cast<size_t>(tensor.numel()) * sizeof(float));
  return tensor;
}

inline Tensor from_float(const Tensor& result, ScalarType type) {
  return type == ScalarType::Float ? result : torch::stable::to(result, type);
}

inline std::vector<int64_t> sizes_of(const Tensor& tensor) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d < tensor.dim(); ++d) sizes.push_back(tensor.size(d));
  return sizes;
}

// (N, channels, *S) and the number of points in S.
struct Shape {
  int64_t batch, channels, points;
};
inline Shape shape_of(const Tensor& tensor, const char* name) {
  check(tensor.dim() >= 3, std::string(name) + ": should have at least 3 dimensions, (N, channels, *S)");
  Shape shape{tensor.size(0), tensor.size(1), 1};
  for (int64_t d = 2; d < tensor.dim(); ++d) shape.points *= tensor.size(d);
  return shape;
}

// (N, channels, H, W): W; else 0.
inline int64_t image_width(const Tensor& tensor) {
  return tensor.dim() == 4 ? tensor.size(3) : 0;
}

inline void check_features(const Tensor& features, const Tensor& like, const char* like_name) {
  const Shape shape = shape_of(features, "features");
  check(shape.channels >= 1 && shape.channels <= kMaxDimensions,
        "features: should have 1 to " + std::to_string(kMaxDimensions) + " channels");
  bool same = features.dim() == like.dim() && features.size(0) == like.size(0);
  for (int64_t d = 2; same && d < like.dim(); ++d) same = features.size(d) == like.size(d);
  check(same, std::string("features: batch and spatial sizes should be those of ") + like_name);
}

// Everything on the calling thread.
class OneThread final : public Parallel {
 public:
  void run(int64_t count, Task task, void* context) override {
    for (int64_t i = 0; i < count; ++i) task(context, i);
  }
  int threads() const override { return 1; }
};

// Calls body(n, parallel) for every image. Small images have too few chunks of points to go round: then threads take
// whole images. Either way the bits are the same.
template <class Body>
void each_image(int64_t batch, int64_t chunks, Body&& body) {
  TorchThreads threads;
  const int64_t count = threads.threads();
  if (std::min(batch, count) > std::min(chunks, count)) {
    parallel_for(threads, batch, [&](int64_t n) {
      OneThread alone;
      body(n, alone);
    });
  } else {
    for (int64_t n = 0; n < batch; ++n) body(n, threads);
  }
}

// A matrix m acts as (m + m^T) / 2.
inline std::vector<float> compat_values(const Tensor& compat, int64_t labels) {
  const float* values = compat.const_data_ptr<float>();
  std::vector<float> copy(values, values + compat.numel());
  for (int64_t i = 0; compat.dim() == 2 && i < labels; ++i)
    for (int64_t j = 0; j < labels; ++j)
      copy[i * labels + j] = 0.5f * (values[i * labels + j] + values[j * labels + i]);
  return copy;
}

// The arguments that the ops of the dense CRF share, checked.
struct CrfArguments {
  CrfArguments(const Tensor& unary_maps, const std::vector<Tensor>& feature_maps, const std::vector<Tensor>& compats,
               int64_t iteration_count, const std::vector<int64_t>& normalizations)
      : shape(shape_of(unary_maps, "unary")), width(image_width(unary_maps)), iterations(0) {
    const int64_t labels = shape.channels;
    check(labels >= 1 && labels <= INT32_MAX, "unary: should have at least one label");
    check(iteration_count >= 0 && iteration_count <= INT32_MAX, "iterations: should be 0 or more");
    check(feature_maps.size() == compats.size() && feature_maps.size() == normalizations.size(),
          "features, compat, normalization: should have one entry per kernel each");
    iterations = static_cast<int>(iteration_count);
    unary = to_float(unary_maps, "unary");
    for (size_t k = 0; k < feature_maps.size(); ++k) {
      check_features(feature_maps[k], unary_maps, "unary");
      check(compats[k].dim() <= 2, "compat: should have 0, 1 or 2 dimensions");
      for (int64_t d = 0; d < compats[k].dim(); ++d)
        check(compats[k].size(d) == labels,
              "compat: should be a number, (K,) or (K, K) with K = " + std::to_string(labels));
      check(normalizations[k] >= 0 && normalizations[k] <= 3, "normalization: should be 0, 1, 2 or 3");
      features.push_back(to_float(feature_maps[k], "features"));
      compat.push_back(to_float(compats[k], "compat"));
      normalization.push_back(static_cast<Normalization>(normalizations[k]));
    }
  }

  int labels() const { return static_cast<int>(shape.channels); }
  template <class Body>
  void each_image(Body&& body) const {
    if (shape.points > 0) deeplab_fast::each_image(shape.batch, VisitOrder(shape.points, width).chunks(), body);
  }
  int64_t image_size() const { return shape.channels * shape.points; }
  int dimensions(size_t k) const { return static_cast<int>(features[k].size(1)); }
  const float* features_of(size_t k, int64_t n) const {
    return features[k].const_data_ptr<float>() + n * dimensions(k) * shape.points;
  }

  // The CRF of image n.
  std::unique_ptr<DenseCrf> make(int64_t n, Parallel& parallel) const {
    auto crf = std::make_unique<DenseCrf>(shape.points, labels(), width);
    crf->set_unary(unary.const_data_ptr<float>() + n * image_size(), false, parallel);
    for (size_t k = 0; k < features.size(); ++k)
      crf->add_pairwise(features_of(k, n), dimensions(k), compat_values(compat[k], labels()).data(),
                        static_cast<Compat>(compat[k].dim()), normalization[k], parallel);
    return crf;
  }

  Shape shape;
  int64_t width;
  int iterations;
  Tensor unary;
  std::vector<Tensor> features, compat;
  std::vector<Normalization> normalization;
};

// What dense_crf_backward has besides.
inline void check_gradient(const CrfArguments& arguments, const Tensor& grad, const Tensor& unary,
                           const std::optional<Tensor>& history) {
  check(sizes_of(grad) == sizes_of(unary), "grad: shape should be that of unary");
  if (history.has_value())
    check(history->scalar_type() == ScalarType::Float && history->is_contiguous() &&
              sizes_of(*history) == std::vector<int64_t>{arguments.iterations, arguments.shape.batch,
                                                         arguments.shape.points, arguments.shape.channels},
          "history: should be float32 (iterations, N, points, K) and contiguous, as dense_crf_history gives it");
}

}  // namespace deeplab_fast
