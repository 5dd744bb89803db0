// Mean-field inference and its gradients on a device: the order of launches, and the memory between them. `Device` as
// in lattice/on_device.cuh. The maths is in dense_crf.cuh and dense_crf_backward.cuh, and beside the CPU's
// (dense_crf_backward.cpp). Everything is rows: [points of all images][labels].
#pragma once

#include <functional>
#include <vector>

#include "crf/dense_crf.h"
#include "crf/dense_crf_backward.cuh"
#include "lattice/on_device.cuh"

namespace deeplab_fast {
namespace {

// One pairwise term, as given: pointers to the device.
struct TermInput {
  const float* features;  // [images][dimensions][points]
  int dimensions;
  const float* compat;  // [1], [labels] or [labels][labels]
  int compat_dimensions;
  Normalization normalization;
};

struct CrfSize {
  int64_t images, points;
  int labels;
  int64_t all_points() const { return images * points; }
  int64_t rows() const { return images * points * labels; }
};

template <class Device>
class TermOnDevice {
 public:
  TermOnDevice(Device& device, const CrfSize& size, const TermInput& input)
      : input(input),
        lattice(device, input.features, input.dimensions, size.images, size.points),
        compat(input.compat) {
    if (input.compat_dimensions == 2) {
      symmetric_ = device.template make<float>(int64_t{size.labels} * size.labels);
      device.launch(symmetric_.size, symmetric_kernel, size.labels, input.compat, symmetric_.data);
      compat = symmetric_.data;
    }
    if (input.normalization == Normalization::kNone) return;
    norm = device.template make<float>(size.all_points());
    device.launch(norm.size, fill_kernel, norm.size, 1.0f, norm.data);
    VertexRowsOnDevice<Device, float> ones(device, lattice.view(), 1);
    ones.filter(static_cast<const float*>(norm.data), nullptr, false);
    ones.slice(lattice.alpha(), nullptr, false, norm.data);
    device.launch(norm.size, normalization_kernel, norm.size, root(), norm.data);
  }

  bool root() const { return input.normalization == Normalization::kSymmetric; }
  const float* before() const { return input.normalization == Normalization::kBefore || root() ? norm.data : nullptr; }
  const float* after() const { return input.normalization == Normalization::kAfter || root() ? norm.data : nullptr; }

  const TermInput input;
  const LatticeOnDevice<Device> lattice;
  const float* compat;  // a matrix made symmetric
  DeviceArray<float> norm;

 private:
  DeviceArray<float> symmetric_;
};

// Where to leave Q, in full, after an iteration (0: before the first); null: nowhere.
using StoreQ = std::function<float*(int iteration)>;

// `Row`: of what is kept between iterations, vertex rows and Q.
template <class Device, class Row>
class CrfOnDevice {
 public:
  // unary: [images][labels][points]
  template <class Element>
  CrfOnDevice(Device& device, const CrfSize& size, const Element* unary, const std::vector<TermInput>& terms)
      : device_(device), size_(size), negative_unary_(device.template make<float>(size.rows())) {
    device.launch(size.rows(), rows_of_maps_kernel<Element>, size.images, size.labels, size.points, -1.0f, unary,
                  negative_unary_.data);
    for (const TermInput& term : terms) terms_.push_back(std::make_unique<TermOnDevice<Device>>(device, size, term));
  }

  const CrfSize& size() const { return size_; }
  const std::vector<std::unique_ptr<TermOnDevice<Device>>>& terms() const { return terms_; }

  // Q = softmax(-U), or `from` (Q after the iteration before the first), then the iterations.
  void infer(int iterations, const float* from, const StoreQ& store) {
    const int64_t points = size_.all_points();
    auto q = device_.template make<Row>(size_.rows());
    std::vector<std::unique_ptr<VertexRowsOnDevice<Device, Row>>> rows;
    for (const auto& term : terms_)
      rows.push_back(std::make_unique<VertexRowsOnDevice<Device, Row>>(device_, term->lattice.view(), size_.labels));
    if (from == nullptr)
      softmax(negative_unary_.data, q.data, store(0));
    else
      device_.launch(size_.rows(), maps_of_rows_kernel<Row>, points, 1, int64_t{size_.labels}, from, q.data);
    for (int iteration = 1; iteration <= iterations; ++iteration) {
      for (size_t k = 0; k < terms_.size(); ++k)
        rows[k]->filter(static_cast<const Row*>(q.data), terms_[k]->before(), false);
      iterate(rows, iteration < iterations ? q.data : nullptr, store(iteration));
    }
  }

 private:
  using Rows = std::vector<std::unique_ptr<VertexRowsOnDevice<Device, Row>>>;

  void softmax(const float* scores, Row* q, float* full) {
    device_.launch(size_.all_points() * group_of(size_.labels), softmax_kernel<Row>, size_.all_points(), size_.labels,
                   scores, q, full);
  }

  void iterate(const Rows& rows, Row* q, float* full) {
    const int blocks = (size_.labels + 31) / 32;
    if (blocks > kMostBlocks || terms_.size() > kMostTerms) return iterate_by_steps(rows, q, full);
    MeanFieldPass<Row> pass{
        size_.all_points(), size_.labels, static_cast<int32_t>(terms_.size()), negative_unary_.data, {}, q, full};
    for (size_t k = 0; k < terms_.size(); ++k) {
      const TermOnDevice<Device>& term = *terms_[k];
      const DeviceLattice& lattice = term.lattice.view();
      pass.term[k] = {lattice.vertex, lattice.weight,       term.after(),    rows[k]->filtered(),
                      term.compat,    term.lattice.alpha(), lattice.corners, term.input.compat_dimensions};
    }
    const auto launch = [&](auto* kernel) {
      device_.launch(size_.all_points() * group_of(size_.labels), kernel, pass);
    };
    if (blocks == 1)
      launch(mean_field_kernel<Row, 1>);
    else if (blocks == 2)
      launch(mean_field_kernel<Row, 2>);
    else if (blocks == 3)
      launch(mean_field_kernel<Row, 3>);
    else
      launch(mean_field_kernel<Row, kMostBlocks>);
  }

  void iterate_by_steps(const Rows& rows, Row* q, float* full) {
    auto scores = device_.template make<float>(size_.rows()), filtered = device_.template make<float>(size_.rows());
    device_.launch(size_.rows(), scale_rows_kernel, size_.all_points(), size_.labels,
                   static_cast<const float*>(nullptr), static_cast<const float*>(negative_unary_.data), false,
                   scores.data);
    for (size_t k = 0; k < terms_.size(); ++k) {
      rows[k]->slice(terms_[k]->lattice.alpha(), terms_[k]->after(), false, filtered.data);
      device_.launch(size_.rows(), transform_kernel, size_.all_points(), size_.labels, terms_[k]->compat,
                     terms_[k]->input.compat_dimensions, -1.0f, static_cast<const float*>(filtered.data), true,
                     scores.data);
    }
    softmax(scores.data, q, full);
  }

  Device& device_;
  const CrfSize size_;
  DeviceArray<float> negative_unary_;
  std::vector<std::unique_ptr<TermOnDevice<Device>>> terms_;
};

// Where gradients go, on the device; null, or empty: not wanted.
struct DeviceGradients {
  float* unary;                  // rows
  std::vector<float*> features;  // of each term [images][dimensions][points]
  std::vector<float*> compat;    // of each term, as its compat
};

template <class Device, class Row>
class BackwardOnDevice {
 public:
  BackwardOnDevice(Device& device, CrfOnDevice<Device, Row>& crf, const DeviceGradients& out)
      : device_(device), crf_(crf), size_(crf.size()), out_(out) {
    for (const auto& term : crf.terms()) {
      const DeviceLattice& lattice = term->lattice.view();
      back_.push_back(std::make_unique<VertexRows>(device, lattice, size_.labels));
      if (again()) forward_.push_back(std::make_unique<VertexRows>(device, lattice, size_.labels));
      weight_grad_.push_back(zeros<float>(need_features() ? lattice.entries : 0));
      normalization_grad_.push_back(zeros<float>(need_features() ? size_.all_points() : 0));
      compat_sums_.push_back(zeros<double>(need_compat() ? compat_size(*term) : 0));
    }
  }

  // grad: rows, changed. q_after(i): Q in full after iteration i, called with i descending, from the last iteration to
  // 0; valid until the next but one is asked for.
  void run(int iterations, float* grad, const std::function<const float*(int)>& q_after) {
    const int64_t points = size_.all_points();
    auto energy_grad = rows(), transformed = rows(), scaled = rows(), filtered = rows(), from_term = rows();
    device_.fill_bytes(out_.unary, 0, size_.rows() * sizeof(float));
    const float* q = q_after(iterations);
    for (int iteration = iterations;; --iteration) {
      device_.launch(points * group_of(size_.labels), softmax_backward_kernel, points, size_.labels, q,
                     static_cast<const float*>(grad), energy_grad.data, out_.unary);
      if (iteration == 0) break;
      q = q_after(iteration - 1);
      device_.fill_bytes(grad, 0, size_.rows() * sizeof(float));
      for (size_t k = 0; k < crf_.terms().size(); ++k) {
        const TermOnDevice<Device>& term = *crf_.terms()[k];
        // A dE, then C A dE, go back through the lattice.
        scale(term.after(), energy_grad.data, false, scaled.data);
        device_.launch(size_.rows(), transform_kernel, points, size_.labels, term.compat, term.input.compat_dimensions,
                       1.0f, static_cast<const float*>(scaled.data), false, transformed.data);
        back_[k]->filter(static_cast<const float*>(transformed.data), nullptr, true);
        back_[k]->slice(term.lattice.alpha(), term.before(), false, from_term.data);
        scale(nullptr, from_term.data, true, grad);
        if (!again()) continue;
        forward_[k]->filter(q, term.before(), false);
        forward_[k]->slice(term.lattice.alpha(), nullptr, false, filtered.data);
        if (need_compat()) add_compat(k, filtered.data, scaled.data);
        if (need_features()) {
          if (term.after() != nullptr) add_products(transformed.data, filtered.data, normalization_grad_[k].data);
          if (term.before() != nullptr) add_products(from_term.data, q, normalization_grad_[k].data);
          scale(term.before(), q, false, scaled.data);
          device_.launch(term.lattice.view().entries * group_of(size_.labels), weight_grad_kernel, term.lattice.view(),
                         size_.labels, term.lattice.alpha(), static_cast<const float*>(transformed.data),
                         static_cast<const float*>(scaled.data), forward_[k]->filtered(), back_[k]->filtered(),
                         weight_grad_[k].data);
        }
      }
    }
    for (size_t k = 0; k < crf_.terms().size(); ++k) finish(k);
  }

 private:
  using VertexRows = VertexRowsOnDevice<Device, float>;

  bool need_features() const { return !out_.features.empty(); }
  bool need_compat() const { return !out_.compat.empty(); }
  // Whether Q has to go through the lattices again.
  bool again() const { return need_features() || need_compat(); }

  DeviceArray<float> rows() { return device_.template make<float>(size_.rows()); }
  template <class T>
  DeviceArray<T> zeros(int64_t count) {
    auto array = device_.template make<T>(count);
    device_.fill_bytes(array.data, 0, count * sizeof(T));
    return array;
  }
  // Sums of products that the compat's gradient is made of: [labels], or [labels][labels] of a matrix.
  int64_t compat_size(const TermOnDevice<Device>& term) const {
    return term.input.compat_dimensions == 2 ? int64_t{size_.labels} * size_.labels : size_.labels;
  }

  void scale(const float* factor, const float* from, bool add, float* to) {
    device_.launch(size_.rows(), scale_rows_kernel, size_.all_points(), size_.labels, factor, from, add, to);
  }
  void add_products(const float* a, const float* b, float* sums) {
    device_.launch(size_.all_points() * group_of(size_.labels), row_products_kernel, size_.all_points(), size_.labels,
                   a, b, sums);
  }
  void add_compat(size_t k, const float* filtered, const float* energy_grad) {
    const int64_t pieces = sum_pieces(size_.all_points()), size = compat_sums_[k].size;
    auto partial = device_.template make<float>(pieces * size);
    device_.launch(pieces * size, products_kernel, size_.all_points(), size_.labels,
                   crf_.terms()[k]->input.compat_dimensions == 2, filtered, energy_grad, partial.data);
    device_.launch(size, add_products_kernel, pieces, size, static_cast<const float*>(partial.data),
                   compat_sums_[k].data);
  }

  void finish(size_t k) {
    const TermOnDevice<Device>& term = *crf_.terms()[k];
    if (need_compat())
      device_.launch(compat_sums_[k].size, compat_grad_kernel, size_.labels, term.input.compat_dimensions,
                     static_cast<const double*>(compat_sums_[k].data), out_.compat[k]);
    if (!need_features()) return;
    if (term.norm.data != nullptr) {
      const int64_t points = size_.all_points();
      auto ones = device_.template make<float>(points);
      device_.launch(points, fill_kernel, points, 1.0f, ones.data);
      device_.launch(points, normalization_backward_kernel, points, term.root(),
                     static_cast<const float*>(term.norm.data), normalization_grad_[k].data);
      filter_backward_features(device_, term.lattice, 1, static_cast<const float*>(normalization_grad_[k].data),
                               static_cast<const float*>(ones.data), false, weight_grad_[k].data);
    }
    term.lattice.weights_to_features(weight_grad_[k].data, out_.features[k]);
  }

  Device& device_;
  CrfOnDevice<Device, Row>& crf_;
  const CrfSize size_;
  const DeviceGradients out_;
  std::vector<std::unique_ptr<VertexRows>> back_, forward_;
  std::vector<DeviceArray<float>> weight_grad_, normalization_grad_;
  std::vector<DeviceArray<double>> compat_sums_;
};

// Q after an iteration, inferred again from checkpoints ceil(sqrt(iterations)) iterations apart.
template <class Device, class Row>
class Replay {
 public:
  Replay(Device& device, CrfOnDevice<Device, Row>& crf, int iterations)
      : crf_(crf), size_(crf.size().rows()), iterations_(iterations) {
    for (stride_ = 1; int64_t{stride_} * stride_ < iterations;) ++stride_;
    checkpoints_ = device.template make<float>((iterations / stride_ + 1) * size_);
    segment_ = device.template make<float>((stride_ - 1) * size_);
    crf.infer(iterations, nullptr, [&](int i) { return at(i, iterations / stride_); });
    loaded_ = iterations / stride_;
  }

  const float* operator()(int iteration) {
    const int checkpoint = iteration / stride_, count = iteration % stride_;
    if (count > 0 && checkpoint != loaded_) {
      crf_.infer(count, checkpoints_.data + checkpoint * size_,
                 [&](int i) { return i > 0 ? at(checkpoint * stride_ + i, checkpoint) : nullptr; });
      loaded_ = checkpoint;
    }
    return at(iteration, checkpoint);
  }

 private:
  // The place of an iteration: a checkpoint, or in the segment after `segment`'s; else null.
  float* at(int iteration, int segment) {
    const int checkpoint = iteration / stride_, later = iteration % stride_;
    if (later == 0) return checkpoints_.data + checkpoint * size_;
    return checkpoint == segment ? segment_.data + (later - 1) * size_ : nullptr;
  }

  CrfOnDevice<Device, Row>& crf_;
  const int64_t size_;
  const int iterations_;
  int stride_, loaded_;
  DeviceArray<float> checkpoints_, segment_;
};

}  // namespace
}  // namespace deeplab_fast
