// The torch door: CPU kernels of the ops, on LibTorch's stable ABI. Schemas, shape checks with full messages, fake
// kernels and gradients are in deeplab_fast/ops; here every argument is checked once more before a pointer is used.
#include "doors/torch_crf.h"

#include <torch/csrc/stable/library.h>

namespace {

using namespace deeplab_fast;

Tensor permutohedral_filter_cpu(const Tensor& values, const Tensor& features, bool reverse) {
  check_features(features, values, "values");
  const Tensor input = to_float(values, "values"), positions = to_float(features, "features");
  const Shape shape = shape_of(values, "values");
  const int64_t dimensions = features.size(1);
  Tensor out = empty_on_huge_pages(sizes_of(values));
  const float* from = input.const_data_ptr<float>();
  const float* at = positions.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  if (shape.points == 0 || shape.channels == 0) return from_float(out, values.scalar_type());
  const auto order = std::make_shared<VisitOrder>(shape.points, image_width(values));
  each_image(shape.batch, order->chunks(), [&](int64_t n, Parallel& parallel) {
    const Lattice lattice(at + n * dimensions * shape.points, static_cast<int>(dimensions), order, parallel);
    const int64_t offset = n * shape.channels * shape.points;
    filter(lattice, lattice.view(shape.channels, parallel), from + offset, shape.channels,
           reverse ? Blur::kReverse : Blur::kForward, to + offset, parallel);
  });
  return from_float(out, values.scalar_type());
}

Tensor dense_crf_cpu(const Tensor& unary, std::vector<Tensor> features, std::vector<Tensor> compat, int64_t iterations,
                     std::vector<int64_t> normalization, double collapse) {
  check(collapse >= 0 && collapse < 1, "collapse: should be at least 0 and less than 1");
  const CrfArguments arguments(unary, features, compat, iterations, normalization);
  Tensor out = empty_on_huge_pages(sizes_of(unary));
  float* to = out.mutable_data_ptr<float>();
  arguments.each_image([&](int64_t n, Parallel& parallel) {
    Buffer<float> q(arguments.image_size());
    const auto crf = arguments.make(n, parallel);
    crf->set_collapse(static_cast<float>(collapse));
    crf->inference(arguments.iterations, q.data(), parallel);
    to_label_major(q.data(), crf->labels(), crf->points(), to + n * arguments.image_size(), parallel);
  });
  return from_float(out, unary.scalar_type());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(deeplab_fast, CPU, m) {
  m.impl("permutohedral_filter_kernel", TORCH_BOX(&permutohedral_filter_cpu));
  m.impl("dense_crf_kernel", TORCH_BOX(&dense_crf_cpu));
}
