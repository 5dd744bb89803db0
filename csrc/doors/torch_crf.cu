// The torch door of the dense CRF on the GPU. What is launched, in which order, is in lattice/on_device.cuh and
// crf/on_device.cuh, which tests run on the host. Compiled with -fmad=false: see lattice/geometry.h.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "crf/on_device.cuh"
#include "doors/cuda_stream.cuh"
#include "doors/torch_crf.h"

namespace {

using namespace deeplab_fast;

// Arguments on one device, and that device made the current one.
struct OnDevice {
  OnDevice(const Tensor& first, const std::vector<Tensor>& others) : guard(first.get_device_index()) {
    for (const Tensor& other : others)
      check(other.is_cuda() && other.get_device_index() == first.get_device_index(),
            "all tensors should be on one GPU");
  }
  torch::stable::accelerator::DeviceGuard guard;
};

Tensor empty_on(const Tensor& like, const std::vector<int64_t>& sizes) {
  return torch::stable::empty(sizes, ScalarType::Float, std::nullopt, like.device());
}

// Calls body(first, count) for as many images at a time as one lattice holds.
template <class Body>
void each_group(int64_t images, int64_t points, int dimensions, Body&& body) {
  if (images == 0 || points == 0) return;
  const int64_t most = images_at_once(images, points, dimensions);
  for (int64_t first = 0; first < images; first += most) body(first, std::min(most, images - first));
}

// --- permutohedral_filter ------------------------------------------------------------------------------------------

// Maps of some images through their lattice; filter(vertices, rows, alpha) has the rows of their points filtered, in
// place.
template <class Filter>
void filter_images(CudaStream& stream, const DeviceLattice& lattice, int channels, const float* maps, float* out,
                   Filter&& filter) {
  const int64_t size = lattice.all_points() * channels;
  const auto rows = stream.make<float>(size);
  stream.launch(size, rows_of_maps_kernel<float>, lattice.images, channels, lattice.points, 1.0f, maps, rows.data);
  VertexRowsOnDevice<CudaStream, float> vertices(stream, lattice, channels);
  filter(vertices, rows.data, slice_scale(lattice.dimensions));
  stream.launch(size, maps_of_rows_kernel<float>, lattice.images, channels, lattice.points, rows.data, out);
}

template <class Filter>
Tensor filter_rows_of(const Tensor& values, const Tensor& features, Filter&& filter) {
  check_features(features, values, "values");
  const OnDevice on_device(values, {features});
  const Tensor input = to_float(values, "values"), positions = to_float(features, "features");
  const Shape shape = shape_of(values, "values");
  const int channels = static_cast<int>(shape.channels), dimensions = static_cast<int>(features.size(1));
  Tensor out = empty_on(values, sizes_of(values));
  CudaStream stream(values);
  each_group(shape.batch, shape.points, dimensions, [&](int64_t first, int64_t images) {
    const int64_t offset = first * shape.points * channels;
    const LatticeOnDevice<CudaStream> lattice(stream,
                                              positions.const_data_ptr<float>() + first * dimensions * shape.points,
                                              dimensions, images, shape.points);
    filter_images(stream, lattice.view(), channels, input.const_data_ptr<float>() + offset,
                  out.mutable_data_ptr<float>() + offset, filter);
  });
  return from_float(out, values.scalar_type());
}

// What filter_images takes, for one direction.
auto one_way(bool reverse) {
  return [reverse](auto& vertices, float* rows, float alpha) {
    vertices.filter(static_cast<const float*>(rows), nullptr, reverse);
    vertices.slice(alpha, nullptr, false, rows);
  };
}

Tensor filter_maps(const Tensor& values, const Tensor& features, bool reverse) {
  return filter_rows_of(values, features, one_way(reverse));
}

// (A + A') values, on one lattice.
Tensor filter_both_ways(const Tensor& values, const Tensor& features) {
  return filter_rows_of(values, features, [](auto& vertices, float* rows, float alpha) {
    vertices.filter_both_ways(static_cast<const float*>(rows), alpha, rows);
  });
}

// --- Lattices that are kept ----------------------------------------------------------------------------------------

// The tables of the lattice of features (N, D, *S), which lattice_filter takes; none if one lattice cannot hold them.
std::vector<Tensor> lattice_tables(const Tensor& features) {
  check_features(features, features, "features");
  const OnDevice on_device(features, {});
  const Tensor positions = to_float(features, "features");
  const Shape shape = shape_of(features, "features");
  const int dimensions = static_cast<int>(shape.channels);
  std::vector<Tensor> tables;
  if (shape.batch == 0 || images_at_once(shape.batch, shape.points, dimensions) < shape.batch) return tables;
  CudaStream stream(features);
  const LatticeOnDevice<CudaStream> lattice(stream, positions.const_data_ptr<float>(), dimensions, shape.batch,
                                            shape.points);
  for (const auto& owner : lattice.owners()) tables.push_back(*static_cast<const Tensor*>(owner.get()));
  return tables;
}

Tensor lattice_filter(const Tensor& values, std::vector<Tensor> tables, int64_t dimensions, bool reverse) {
  const Shape shape = shape_of(values, "values");
  check(dimensions >= 1 && dimensions <= kMaxDeviceDimensions, "dimensions: should be those of the lattice");
  check(tables.size() == kTables, "tables: should be those of lattice_tables_cuda");
  const OnDevice on_device(values, tables);
  const void* data[kTables];
  for (int table = 0; table < kTables; ++table) data[table] = tables[table].const_data_ptr();
  const int64_t row = 2 * (dimensions + 1) * sizeof(int32_t), capacity = tables[4].numel() / row;
  const DeviceLattice lattice =
      lattice_of_tables(static_cast<int>(dimensions), shape.batch, shape.points, capacity, data);
  for (const int of_entries : {0, 1, 2, 3})
    check(tables[of_entries].numel() == lattice.entries * static_cast<int64_t>(sizeof(int32_t)),
          "values: batch and size should be those of the lattice");
  const Tensor input = to_float(values, "values");
  Tensor out = empty_on(values, sizes_of(values));
  CudaStream stream(values);
  filter_images(stream, lattice, static_cast<int>(shape.channels), input.const_data_ptr<float>(),
                out.mutable_data_ptr<float>(), one_way(reverse));
  return from_float(out, values.scalar_type());
}

// --- Gradients of filtering ----------------------------------------------------------------------------------------

Tensor filter_backward(const Tensor& grad, const Tensor& values, const Tensor& features, bool reverse) {
  check_features(features, values, "values");
  check(sizes_of(grad) == sizes_of(values), "grad: shape should be that of values");
  const OnDevice on_device(values, {grad, features});
  const Tensor gradient = to_float(grad, "grad"), input = to_float(values, "values");
  const Tensor positions = to_float(features, "features");
  const Shape shape = shape_of(values, "values");
  const int channels = static_cast<int>(shape.channels), dimensions = static_cast<int>(features.size(1));
  Tensor out = empty_on(values, sizes_of(features));
  CudaStream stream(values);
  each_group(shape.batch, shape.points, dimensions, [&](int64_t first, int64_t images) {
    const int64_t size = images * shape.points * channels, offset = first * shape.points * channels;
    const int64_t features_offset = first * dimensions * shape.points;
    const LatticeOnDevice<CudaStream> lattice(stream, positions.const_data_ptr<float>() + features_offset, dimensions,
                                              images, shape.points);
    const auto rows = stream.make<float>(size), grad_rows = stream.make<float>(size);
    const auto weights = stream.make<float>(lattice.view().entries);
    stream.launch(size, rows_of_maps_kernel<float>, images, channels, shape.points, 1.0f,
                  input.const_data_ptr<float>() + offset, rows.data);
    stream.launch(size, rows_of_maps_kernel<float>, images, channels, shape.points, 1.0f,
                  gradient.const_data_ptr<float>() + offset, grad_rows.data);
    stream.fill_bytes(weights.data, 0, weights.size * sizeof(float));
    filter_backward_features(stream, lattice, channels, grad_rows.data, rows.data, reverse, weights.data);
    lattice.weights_to_features(weights.data, out.mutable_data_ptr<float>() + features_offset);
  });
  return out;
}

// --- dense_crf -----------------------------------------------------------------------------------------------------

// The CRF of some images of a batch.
struct Group {
  int64_t first;
  CrfSize size;
  std::vector<TermInput> terms;
  const float* unary;
  int64_t offset() const { return first * size.points * size.labels; }
};

template <class Body>
void each_group(const CrfArguments& arguments, Body&& body) {
  const Shape& shape = arguments.shape;
  int dimensions = 1;
  for (size_t k = 0; k < arguments.features.size(); ++k) dimensions = std::max(dimensions, arguments.dimensions(k));
  each_group(shape.batch, shape.points, dimensions, [&](int64_t first, int64_t images) {
    Group group{first, {images, shape.points, arguments.labels()}, {}, nullptr};
    for (size_t k = 0; k < arguments.features.size(); ++k)
      group.terms.push_back({arguments.features_of(k, first), arguments.dimensions(k),
                             arguments.compat[k].const_data_ptr<float>(), static_cast<int>(arguments.compat[k].dim()),
                             arguments.normalization[k]});
    group.unary = arguments.unary.const_data_ptr<float>() + group.offset();
    body(group);
  });
}

// Calls body with a null pointer of the type of what is kept between iterations: that of a 16-bit unary, unless sums
// over vertices may go beyond its range.
template <class Body>
void by_row_type(const Tensor& unary, const CrfArguments& arguments, Body&& body) {
  const ScalarType type = unary.scalar_type();
  bool small = true;  // Q times the factor before splatting; its sums over vertices then are
  for (Normalization one : arguments.normalization)
    small = small && (one == Normalization::kBefore || one == Normalization::kSymmetric);
  if (type == ScalarType::Half && small) return body(static_cast<__half*>(nullptr));
  if (type == ScalarType::BFloat16) return body(static_cast<__nv_bfloat16*>(nullptr));
  body(static_cast<float*>(nullptr));
}

std::vector<Tensor> joined(std::vector<Tensor> some, const std::vector<Tensor>& others) {
  some.insert(some.end(), others.begin(), others.end());
  return some;
}

// Q in full, (N, K, *S); `after(iteration)` says where to leave Q after it, as rows of all images, or null.
Tensor infer(const Tensor& unary, const CrfArguments& arguments, const StoreQ& after) {
  Tensor out = empty_on(unary, sizes_of(unary));
  CudaStream stream(unary);
  by_row_type(unary, arguments, [&](auto* row) {
    using Row = std::remove_pointer_t<decltype(row)>;
    each_group(arguments, [&](const Group& group) {
      CrfOnDevice<CudaStream, Row> crf(stream, group.size, group.unary, group.terms);
      const auto last = stream.make<float>(group.size.rows());
      const float* result = last.data;
      crf.infer(arguments.iterations, nullptr, [&](int iteration) -> float* {
        float* kept = after(iteration);
        if (kept != nullptr) kept += group.offset();
        if (iteration == arguments.iterations && kept != nullptr) result = kept;
        return kept == nullptr && iteration == arguments.iterations ? last.data : kept;
      });
      stream.launch(group.size.rows(), maps_of_rows_kernel<float>, group.size.images, group.size.labels,
                    group.size.points, result, out.mutable_data_ptr<float>() + group.offset());
    });
  });
  return from_float(out, unary.scalar_type());
}

Tensor dense_crf(const Tensor& unary, std::vector<Tensor> features, std::vector<Tensor> compat, int64_t iterations,
                 std::vector<int64_t> normalization, double collapse) {
  check(collapse >= 0 && collapse < 1, "collapse: should be at least 0 and less than 1");
  const OnDevice on_device(unary, joined(features, compat));
  return infer(unary, CrfArguments(unary, features, compat, iterations, normalization),
               [](int) -> float* { return nullptr; });
}

std::tuple<Tensor, Tensor> dense_crf_history(const Tensor& unary, std::vector<Tensor> features,
                                             std::vector<Tensor> compat, int64_t iterations,
                                             std::vector<int64_t> normalization) {
  const OnDevice on_device(unary, joined(features, compat));
  const CrfArguments arguments(unary, features, compat, iterations, normalization);
  const Shape& shape = arguments.shape;
  Tensor history = empty_on(unary, {iterations, shape.batch, shape.points, shape.channels});
  float* rows = history.mutable_data_ptr<float>();
  Tensor out = infer(unary, arguments, [&](int iteration) -> float* {
    return iteration > 0 ? rows + (iteration - 1) * shape.batch * arguments.image_size() : nullptr;
  });
  return {out, history};
}

struct Gradients {
  Tensor unary;
  std::vector<Tensor> features, compat;
};

template <class Row>
void backward(CudaStream& stream, const Group& group, int iterations, const float* grad, const float* history,
              int64_t history_step, Gradients& out, std::vector<Tensor>& compat_of_group) {
  const CrfSize& size = group.size;
  CrfOnDevice<CudaStream, Row> crf(stream, size, group.unary, group.terms);
  const auto grad_rows = stream.make<float>(size.rows()), unary_rows = stream.make<float>(size.rows());
  stream.launch(size.rows(), rows_of_maps_kernel<float>, size.images, size.labels, size.points, 1.0f,
                grad + group.offset(), grad_rows.data);
  DeviceGradients to{unary_rows.data, {}, {}};
  for (size_t k = 0; k < out.features.size(); ++k)
    to.features.push_back(out.features[k].mutable_data_ptr<float>() +
                          group.first * group.terms[k].dimensions * size.points);
  for (Tensor& compat : compat_of_group) to.compat.push_back(compat.mutable_data_ptr<float>());

  BackwardOnDevice<CudaStream, Row> pass(stream, crf, to);
  if (history == nullptr) {
    Replay<CudaStream, Row> replay(stream, crf, iterations);
    pass.run(iterations, grad_rows.data, [&](int iteration) { return replay(iteration); });
  } else {
    const auto start = stream.make<float>(size.rows());
    crf.infer(0, nullptr, [&](int) { return start.data; });
    pass.run(iterations, grad_rows.data, [&](int iteration) -> const float* {
      return iteration > 0 ? history + (iteration - 1) * history_step + group.offset() : start.data;
    });
  }
  stream.launch(size.rows(), maps_of_rows_kernel<float>, size.images, size.labels, size.points, unary_rows.data,
                out.unary.mutable_data_ptr<float>() + group.offset());
}

std::vector<Tensor> dense_crf_backward(const Tensor& grad, const Tensor& unary, std::vector<Tensor> features,
                                       std::vector<Tensor> compat, int64_t iterations,
                                       std::vector<int64_t> normalization, std::optional<Tensor> history,
                                       bool need_features, bool need_compat) {
  std::vector<Tensor> others = joined(features, compat);
  others.push_back(grad);
  if (history.has_value()) others.push_back(*history);
  const OnDevice on_device(unary, others);
  const CrfArguments arguments(unary, features, compat, iterations, normalization);
  check_gradient(arguments, grad, unary, history);
  const Tensor gradient = to_float(grad, "grad");

  CudaStream stream(unary);
  Gradients out{empty_on(unary, sizes_of(unary)), {}, {}};
  for (const Tensor& one : features)
    if (need_features) out.features.push_back(empty_on(unary, sizes_of(one)));
  for (const Tensor& one : compat)
    if (need_compat) {
      out.compat.push_back(empty_on(unary, sizes_of(one)));
      stream.fill_bytes(out.compat.back().mutable_data_ptr(), 0, one.numel() * sizeof(float));
    }
  const float* beliefs = history.has_value() && iterations > 0 ? history->const_data_ptr<float>() : nullptr;
  by_row_type(unary, arguments, [&](auto* row) {
    using Row = std::remove_pointer_t<decltype(row)>;
    each_group(arguments, [&](const Group& group) {
      std::vector<Tensor> of_group;
      for (const Tensor& one : out.compat) of_group.push_back(empty_on(unary, sizes_of(one)));
      backward<Row>(stream, group, arguments.iterations, gradient.const_data_ptr<float>(), beliefs,
                    arguments.shape.batch * arguments.image_size(), out, of_group);
      for (size_t k = 0; k < out.compat.size(); ++k)
        stream.launch(out.compat[k].numel(), scale_rows_kernel, out.compat[k].numel(), 1,
                      static_cast<const float*>(nullptr), of_group[k].const_data_ptr<float>(), true,
                      out.compat[k].mutable_data_ptr<float>());
    });
  });
  std::vector<Tensor> result{from_float(out.unary, unary.scalar_type())};
  return joined(joined(result, out.features), out.compat);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(deeplab_fast, CUDA, m) {
  m.impl("permutohedral_filter_kernel", TORCH_BOX(&filter_maps));
  m.impl("permutohedral_filter_both_ways_cuda", TORCH_BOX(&filter_both_ways));
  m.impl("lattice_tables_cuda", TORCH_BOX(&lattice_tables));
  m.impl("lattice_filter_cuda", TORCH_BOX(&lattice_filter));
  m.impl("permutohedral_filter_backward_features_kernel", TORCH_BOX(&filter_backward));
  m.impl("dense_crf_kernel", TORCH_BOX(&dense_crf));
  m.impl("dense_crf_history_kernel", TORCH_BOX(&dense_crf_history));
  m.impl("dense_crf_backward_kernel", TORCH_BOX(&dense_crf_backward));
}
