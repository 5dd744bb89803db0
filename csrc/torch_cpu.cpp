// The torch door: CPU kernels of the ops, on LibTorch's stable ABI. Schemas, shape checks with full messages, fake
// kernels and gradients are in deeplab_fast/ops; here every argument is checked once more before a pointer is used.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "dense_crf.h"
#include "lattice.h"
#include "lattice_geometry.h"
#include "torch_door.h"

namespace {

using namespace deeplab_fast;

// float32 and contiguous, whatever it was; float64 is for the reference.
Tensor to_float(const Tensor& tensor, const char* name) {
  const ScalarType type = tensor.scalar_type();
  check(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16,
        std::string(name) + ": dtype should be float32, float16 or bfloat16 for the CPU kernel");
  const Tensor same = type == ScalarType::Float ? tensor : torch::stable::to(tensor, ScalarType::Float);
  return torch::stable::contiguous(same);
}

Tensor from_float(const Tensor& result, ScalarType type) {
  return type == ScalarType::Float ? result : torch::stable::to(result, type);
}

std::vector<int64_t> sizes_of(const Tensor& tensor) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d < tensor.dim(); ++d) sizes.push_back(tensor.size(d));
  return sizes;
}

// (N, channels, *S) and the number of points in S.
struct Shape {
  int64_t batch, channels, points;
};
Shape shape_of(const Tensor& tensor, const char* name) {
  check(tensor.dim() >= 3, std::string(name) + ": should have at least 3 dimensions, (N, channels, *S)");
  Shape shape{tensor.size(0), tensor.size(1), 1};
  for (int64_t d = 2; d < tensor.dim(); ++d) shape.points *= tensor.size(d);
  return shape;
}

// (N, channels, H, W): W; else 0.
int64_t image_width(const Tensor& tensor) {
  return tensor.dim() == 4 ? tensor.size(3) : 0;
}

void check_features(const Tensor& features, const Tensor& like, const char* like_name) {
  const Shape shape = shape_of(features, "features");
  check(shape.channels >= 1 && shape.channels <= kMaxDimensions,
        "features: should have 1 to " + std::to_string(kMaxDimensions) + " channels");
  bool same = features.dim() == like.dim() && features.size(0) == like.size(0);
  for (int64_t d = 2; same && d < like.dim(); ++d) same = features.size(d) == like.size(d);
  check(same, std::string("features: batch and spatial sizes should be those of ") + like_name);
}

Tensor permutohedral_filter_cpu(const Tensor& values, const Tensor& features, bool reverse) {
  check_features(features, values, "values");
  const Tensor input = to_float(values, "values"), positions = to_float(features, "features");
  const Shape shape = shape_of(values, "values");
  const int64_t dimensions = features.size(1);
  Tensor out = torch::stable::empty(sizes_of(values), ScalarType::Float);
  const float* from = input.const_data_ptr<float>();
  const float* at = positions.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  TorchThreads threads;
  const auto order = std::make_shared<VisitOrder>(shape.points, image_width(values));
  for (int64_t n = 0; n < shape.batch && shape.points > 0 && shape.channels > 0; ++n) {
    const Lattice lattice(at + n * dimensions * shape.points, static_cast<int>(dimensions), order, threads);
    const int64_t offset = n * shape.channels * shape.points;
    filter(lattice, lattice.make_taps(), from + offset, shape.channels, reverse, to + offset, threads);
  }
  return from_float(out, values.scalar_type());
}

struct Term {
  Tensor features, compat;
  Compat kind;
  Normalization normalization;
};

std::vector<Term> check_terms(const Tensor& unary, const std::vector<Tensor>& features,
                              const std::vector<Tensor>& compat, const std::vector<int64_t>& normalization) {
  check(features.size() == compat.size() && features.size() == normalization.size(),
        "features, compat, normalization: should have one entry per kernel each");
  std::vector<Term> terms;
  const int64_t labels = unary.size(1);
  for (size_t k = 0; k < features.size(); ++k) {
    check_features(features[k], unary, "unary");
    check(compat[k].dim() <= 2, "compat: should have 0, 1 or 2 dimensions");
    for (int64_t d = 0; d < compat[k].dim(); ++d)
      check(compat[k].size(d) == labels,
            "compat: should be a number, (K,) or (K, K) with K = " + std::to_string(labels));
    check(normalization[k] >= 0 && normalization[k] <= 3, "normalization: should be 0, 1, 2 or 3");
    terms.push_back({to_float(features[k], "features"), to_float(compat[k], "compat"),
                     static_cast<Compat>(compat[k].dim()), static_cast<Normalization>(normalization[k])});
  }
  return terms;
}

// A matrix m acts as (m + m^T) / 2.
std::vector<float> compat_values(const Term& term, int64_t labels) {
  const float* values = term.compat.const_data_ptr<float>();
  std::vector<float> copy(values, values + term.compat.numel());
  for (int64_t i = 0; term.kind == Compat::kMatrix && i < labels; ++i)
    for (int64_t j = 0; j < labels; ++j)
      copy[i * labels + j] = 0.5f * (values[i * labels + j] + values[j * labels + i]);
  return copy;
}

Tensor dense_crf_cpu(const Tensor& unary, std::vector<Tensor> features, std::vector<Tensor> compat, int64_t iterations,
                     std::vector<int64_t> normalization, double collapse) {
  const Shape shape = shape_of(unary, "unary");
  check(shape.channels >= 1, "unary: should have at least one label");
  check(iterations >= 0 && iterations <= INT32_MAX, "iterations: should be 0 or more");
  check(collapse >= 0 && collapse < 1, "collapse: should be at least 0 and less than 1");
  const std::vector<Term> terms = check_terms(unary, features, compat, normalization);
  const Tensor energies = to_float(unary, "unary");
  const float* from = energies.const_data_ptr<float>();
  const int64_t labels = shape.channels, points = shape.points;

  Tensor out = torch::stable::empty(sizes_of(unary), ScalarType::Float);
  float* to = out.mutable_data_ptr<float>();
  TorchThreads threads;
  Buffer<float> q(shape.batch > 0 ? points * labels : 0);
  for (int64_t n = 0; n < shape.batch && points > 0; ++n) {
    DenseCrf crf(points, static_cast<int>(labels), image_width(unary));
    crf.set_collapse(static_cast<float>(collapse));
    crf.set_unary(from + n * labels * points, false, threads);
    for (const Term& term : terms) {
      const int64_t dimensions = term.features.size(1);
      crf.add_pairwise(term.features.const_data_ptr<float>() + n * dimensions * points, static_cast<int>(dimensions),
                       compat_values(term, labels).data(), term.kind, term.normalization, threads);
    }
    crf.inference(static_cast<int>(iterations), q.data(), threads);
    to_label_major(q.data(), static_cast<int>(labels), points, to + n * labels * points, threads);
  }
  return from_float(out, unary.scalar_type());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(deeplab_fast, CPU, m) {
  m.impl("permutohedral_filter", TORCH_BOX(&permutohedral_filter_cpu));
  m.impl("dense_crf", TORCH_BOX(&dense_crf_cpu));
}
