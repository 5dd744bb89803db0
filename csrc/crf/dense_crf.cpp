#include "crf/dense_crf.h"

#include <algorithm>
#include <cmath>

#include "base/denormals.h"
#include "crf/image_features.h"
#include "crf/kept_kernels.h"
#include "lattice/geometry.h"

namespace deeplab_fast {
namespace {

// The vertex rows of all kernels, and the views that point to them.
class KernelRows {
 public:
  KernelRows(const std::vector<std::unique_ptr<Pairwise>>& pairwise, int lanes, Parallel& parallel)
      : pairwise_(pairwise), lanes_(lanes), parallel_(parallel), rows_(pairwise.size()) {}

  std::vector<PairwiseView> views;

  // Call before splatting.
  void prepare() {
    for (size_t k = 0; k < rows_.size(); ++k) {
      rows_[k].prepare(pairwise_[k]->kernel->lattice, lanes_);
      views[k].next = rows_[k].next.data();
    }
  }
  // Filters what was splatted, so that the next pass can slice it.
  void blur() {
    for (size_t k = 0; k < rows_.size(); ++k) {
      rows_[k].blur(pairwise_[k]->kernel->lattice, lanes_, false, parallel_);
      views[k].blurred = rows_[k].blurred.data();
    }
  }

 private:
  const std::vector<std::unique_ptr<Pairwise>>& pairwise_;
  int lanes_;
  Parallel& parallel_;
  std::vector<VertexRows> rows_;
};

// One filtering of ones with the normalisation's two factors: after * K(before).
Buffer<float> filter_ones(const Pairwise& pairwise, Parallel& parallel) {
  std::vector<float> none;
  PairwiseView view = pairwise.view(1, 1, none);
  view.scale = slice_scale(pairwise.kernel->lattice.dimensions);
  Buffer<float> values(pairwise.kernel->lattice.points);
  std::fill(values.begin(), values.end(), 1.0f);
  filter(pairwise.kernel->lattice, view, values.data(), 1, Blur::kForward, values.data(), parallel);
  return values;
}

// The pixel passes of one inference: same unary, kernels and lanes, iteration after iteration.
class Iterator {
 public:
  Iterator(const UnaryRows& unary, const std::vector<std::unique_ptr<Pairwise>>& pairwise, const VisitOrder& order,
           Parallel& parallel)
      : unary_(unary),
        order_(order),
        parallel_(parallel),
        lanes_(label_lanes(unary.groups())),
        multiplicity_(lanes_, 0.0f),
        label_of_group_(unary.groups()),
        compat_(pairwise.size()),
        rows_(pairwise, lanes_, parallel) {
    for (int g = 0; g < unary.groups(); ++g) multiplicity_[g] = static_cast<float>(unary.labels_of_group[g]);
    for (const auto& one : pairwise) attractive_ &= one->kind == Compat::kPotts && one->compat[0] >= 0;
    for (int l = unary.labels - 1; l >= 0; --l) label_of_group_[unary.group_of_label[l]] = l;
    for (size_t k = 0; k < pairwise.size(); ++k)
      rows_.views.push_back(pairwise[k]->view(unary.groups(), lanes_, compat_[k]));
  }

  PixelPass make_pass() const {
    PixelPass pass{};
    pass.labels = unary_.groups(), pass.lanes = lanes_;
    pass.negative_unary = unary_.negative.data(), pass.highest = unary_.highest.data();
    pass.multiplicity = unary_.collapsed() ? multiplicity_.data() : nullptr;
    pass.attractive = attractive_;
    pass.pairwise_count = static_cast<int32_t>(rows_.views.size());
    pass.normalize = true;
    pass.out_labels = unary_.labels;
    pass.lane_of_label = unary_.collapsed() ? unary_.group_of_label.data() : nullptr;
    return pass;
  }

  // Splats rows that the caller has, [points][labels] (instead of those a pass computes).
  void splat(const float* q) {
    rows_.prepare();
    parallel_for(parallel_, order_.chunks(), [&](int64_t chunk) {
      const FlushDenormals flush;
      std::vector<float> padded(int64_t{VisitOrder::kMostInBlock} * lanes_);
      for (const PointBlock* block = order_.begin(chunk); block < order_.end(chunk); ++block) {
        block->each_line([&](int32_t place, int64_t point, int32_t count) {
          for (int32_t i = 0; i < count; ++i)
            for (int g = 0; g < unary_.groups(); ++g)
              padded[(place + i) * lanes_ + g] = q[(point + i) * unary_.labels + label_of_group_[g]];
        });
        for (const PairwiseView& view : rows_.views)
          row_kernels().splat(view, *block, lanes_, padded.data(), view.next);
      }
    });
  }

  void run(PixelPass pass) {
    if (pass.splat) rows_.prepare();
    pass.pairwise = rows_.views.data();
    parallel_for(parallel_, order_.chunks(), [&](int64_t chunk) {
      const FlushDenormals flush;
      Buffer<float> scratch(mean_field_kernels().pixel_pass_scratch(lanes_));
      PixelPass part = pass;
      part.blocks = order_.begin(chunk), part.blocks_end = order_.end(chunk), part.scratch = scratch.data();
      mean_field_kernels().pixel_pass(part);
    });
  }
  void run(bool slice, bool splat, float* out) {
    PixelPass pass = make_pass();
    pass.slice = slice, pass.splat = splat, pass.out = out;
    run(pass);
  }

  void blur() { rows_.blur(); }

 private:
  const UnaryRows& unary_;
  const VisitOrder& order_;
  Parallel& parallel_;
  int lanes_;
  bool attractive_ = true;
  std::vector<float> multiplicity_;
  std::vector<int> label_of_group_;  // its first
  std::vector<std::vector<float>> compat_;
  KernelRows rows_;
};

// The same for two labels under Potts compatibility. The score that label 0 has over label 1 is U_1 - U_0 + sum over
// kernels of w F(Q_0 - Q_1): one value per vertex is enough, and two labels with equal energies stay exactly equal.
class BinaryIterator {
 public:
  BinaryIterator(const UnaryRows& unary, const std::vector<std::unique_ptr<Pairwise>>& pairwise,
                 const VisitOrder& order, Parallel& parallel)
      : order_(order), parallel_(parallel), score_(order.points), rows_(pairwise, 1, parallel) {
    const int lanes = label_lanes(2);
    constexpr int64_t kParts = 16;
    parallel_for(parallel, kParts, [&](int64_t part) {
      const Range range = part_of(order.points, kParts, part);
      for (int64_t i = range.begin; i < range.end; ++i)
        score_[i] = unary.negative[i * lanes] - unary.negative[i * lanes + 1];
    });
    std::vector<float> none;
    for (const auto& one : pairwise) rows_.views.push_back(one->view(2, 1, none));
  }

  void splat(const float* q) {
    rows_.prepare();
    parallel_for(parallel_, order_.chunks(), [&](int64_t chunk) {
      const FlushDenormals flush;
      float difference[VisitOrder::kMostInBlock];
      for (const PointBlock* block = order_.begin(chunk); block < order_.end(chunk); ++block) {
        block->each_line([&](int32_t place, int64_t point, int32_t count) {
          for (int32_t i = 0; i < count; ++i) difference[place + i] = q[2 * (point + i)] - q[2 * (point + i) + 1];
        });
        for (const PairwiseView& view : rows_.views) row_kernels().splat(view, *block, 1, difference, view.next);
      }
    });
  }

  void run(bool slice, bool splat, float* out) {
    if (splat) rows_.prepare();
    BinaryPass pass{};
    pass.score = score_.data();
    pass.slice = slice, pass.splat = splat, pass.out = out;
    pass.pairwise = rows_.views.data(), pass.pairwise_count = static_cast<int32_t>(rows_.views.size());
    parallel_for(parallel_, order_.chunks(), [&](int64_t chunk) {
      const FlushDenormals flush;
      BinaryPass part = pass;
      part.blocks = order_.begin(chunk), part.blocks_end = order_.end(chunk);
      mean_field_kernels().binary_pass(part);
    });
  }

  void blur() { rows_.blur(); }

 private:
  const VisitOrder& order_;
  Parallel& parallel_;
  Buffer<float> score_;
  KernelRows rows_;
};

// Q = softmax(-U), or `from` (Q after the iteration before the first), then the iterations.
template <class Passes>
void iterate(Passes&& passes, int iterations, const float* from, const DenseCrf::StoreQ& store) {
  if (from != nullptr && iterations > 0) passes.splat(from), passes.blur();
  for (int i = from != nullptr ? 1 : 0; i <= iterations; ++i) {
    passes.run(i > 0, i < iterations, store(i));
    if (i < iterations) passes.blur();
  }
}

}  // namespace

Kernel::Kernel(const float* features, int dimensions, std::shared_ptr<const VisitOrder> order, Parallel& parallel)
    : lattice(features, dimensions, std::move(order), parallel), ones(lattice.points) {
  std::fill(ones.begin(), ones.end(), 1.0f);
  filter(lattice, lattice.view(), ones.data(), 1, Blur::kForward, ones.data(), parallel);
}

Pairwise::Pairwise(std::shared_ptr<const Kernel> of, const float* values, Compat compat_kind, int labels,
                   Normalization how, Parallel& parallel)
    : kernel(std::move(of)), kind(compat_kind), normalization(how) {
  const int64_t count = kind == Compat::kPotts ? 1 : kind == Compat::kDiagonal ? labels : int64_t{labels} * labels;
  compat.assign(values, values + count);
  if (how == Normalization::kNone) return;
  const VisitOrder& order = *kernel->lattice.order;
  norm.reset(kernel->lattice.points);
  parallel_for(parallel, order.chunks(), [&](int64_t chunk) {
    for (const PointBlock* block = order.begin(chunk); block < order.end(chunk); ++block)
      block->each_line([&](int32_t place, int64_t point, int32_t points_of_line) {
        for (int32_t i = 0; i < points_of_line; ++i) {
          const double sum = static_cast<double>(kernel->ones[point + i]) + 1e-20;
          norm[block->begin + place + i] =
              static_cast<float>(1.0 / (how == Normalization::kSymmetric ? std::sqrt(sum) : sum));
        }
      });
  });
}

PairwiseView Pairwise::view(int labels, int lanes, std::vector<float>& padded) const {
  PairwiseView view{kernel->lattice.view(), nullptr, nullptr, kind, nullptr};
  if (normalization == Normalization::kBefore || normalization == Normalization::kSymmetric) view.before = norm.data();
  if (normalization == Normalization::kAfter || normalization == Normalization::kSymmetric) view.after = norm.data();
  if (kind == Compat::kPotts) {
    view.scale *= compat[0];
  } else {
    const int rows = kind == Compat::kMatrix ? labels : 1;
    padded.assign(static_cast<size_t>(rows) * lanes, 0.0f);
    for (int l = 0; l < rows; ++l)
      std::copy_n(&compat[static_cast<size_t>(l) * labels], labels, &padded[static_cast<size_t>(l) * lanes]);
    view.matrix = padded.data();
  }
  return view;
}

DenseCrf::DenseCrf(int64_t points, int labels, int64_t width)
    : points_(points), labels_(labels), order_(std::make_shared<VisitOrder>(points, width)) {}

bool DenseCrf::set_unary(const float* unary, bool only_finite, Parallel& parallel) {
  UnaryRows rows = group_equal_labels(unary, labels_, *order_, parallel);
  if (only_finite && !rows.finite) return false;
  unary_of_every_label_ = UnaryRows();
  unary_ = std::move(rows);
  return true;
}

void DenseCrf::add_pairwise(const float* features, int dimensions, const float* compat, Compat kind,
                            Normalization normalization, Parallel& parallel) {
  auto kernel = std::make_shared<Kernel>(features, dimensions, order_, parallel);
  pairwise_.push_back(std::make_unique<Pairwise>(std::move(kernel), compat, kind, labels_, normalization, parallel));
}

void DenseCrf::add_gaussian(int64_t width, int64_t height, float sx, float sy, const float* compat, Compat kind,
                            Normalization normalization, Parallel& parallel) {
  auto kernel = KeptKernels::of_process().find(width, height, sx, sy);
  if (kernel == nullptr || !kernel->lattice.order->same_as(*order_)) {
    const Buffer<float> features = gaussian_features(width, height, sx, sy, parallel);
    kernel = std::make_shared<Kernel>(features.data(), 2, order_, parallel);
    KeptKernels::of_process().keep(width, height, sx, sy, kernel);
  }
  pairwise_.push_back(std::make_unique<Pairwise>(std::move(kernel), compat, kind, labels_, normalization, parallel));
}

bool DenseCrf::all_potts() const {
  return std::all_of(pairwise_.begin(), pairwise_.end(), [](const auto& p) { return p->kind == Compat::kPotts; });
}

const UnaryRows& DenseCrf::unary_rows(bool every_label, Parallel& parallel) {
  if (unary_.labels == 0) set_unary(nullptr, false, parallel);
  if (!every_label || !unary_.collapsed()) return unary_;
  if (unary_of_every_label_.labels == 0) unary_of_every_label_ = expand_groups(unary_, points_, parallel);
  return unary_of_every_label_;
}

void DenseCrf::inference(int iterations, float* q, Parallel& parallel) {
  const UnaryRows& unary = unary_rows(!all_potts(), parallel);
  UnaryRows merged;
  if (collapse_ > 0 && all_potts()) {
    float bound = 0;
    for (const auto& pairwise : pairwise_) {
      const Buffer<float> ones = filter_ones(*pairwise, parallel);
      bound += std::max(pairwise->compat[0], 0.0f) * *std::max_element(ones.begin(), ones.end());
    }
    merged = group_unlikely_labels(unary, points_, collapse_, bound, parallel);
  }
  const auto last = [&](int i) { return i == iterations ? q : nullptr; };
  infer(merged.labels > 0 ? merged : unary, iterations, nullptr, last, parallel);
}

void DenseCrf::infer(int iterations, const float* from, const StoreQ& store, Parallel& parallel) {
  infer(unary_rows(!all_potts(), parallel), iterations, from, store, parallel);
}

void DenseCrf::infer(const UnaryRows& unary, int iterations, const float* from, const StoreQ& store,
                     Parallel& parallel) const {
  if (unary.groups() == 2 && labels_ == 2 && all_potts())
    return iterate(BinaryIterator(unary, pairwise_, *order_, parallel), iterations, from, store);
  iterate(Iterator(unary, pairwise_, *order_, parallel), iterations, from, store);
}

void DenseCrf::start(float* q, Parallel& parallel) {
  const std::vector<std::unique_ptr<Pairwise>> none;
  Iterator iterator(unary_rows(true, parallel), none, *order_, parallel);
  PixelPass pass = iterator.make_pass();
  pass.out = q;
  iterator.run(pass);
}

void DenseCrf::apply_pairwise(const float* q, float* out, bool normalize, Parallel& parallel) {
  Iterator iterator(unary_rows(true, parallel), pairwise_, *order_, parallel);
  iterator.splat(q);
  iterator.blur();
  PixelPass pass = iterator.make_pass();
  pass.slice = true, pass.normalize = normalize, pass.out = out;
  iterator.run(pass);
}

void DenseCrf::step(float* q, Parallel& parallel) {
  apply_pairwise(q, q, true, parallel);
}

double DenseCrf::kl_divergence(const float* q, Parallel& parallel) {
  Buffer<float> score(points_ * labels_);  // -U minus the pairwise terms
  apply_pairwise(q, score.data(), false, parallel);
  constexpr int64_t kParts = 64;
  std::vector<double> sums(kParts);
  parallel_for(parallel, kParts, [&](int64_t part) {
    const Range range = part_of(points_ * labels_, kParts, part);
    for (int64_t i = range.begin; i < range.end; ++i)
      sums[part] += static_cast<double>(q[i]) * (std::log(std::max(static_cast<double>(q[i]), 1e-20)) - score[i]);
  });
  double sum = 0;
  for (double part : sums) sum += part;
  return sum;
}

void to_label_major(const float* q, int labels, int64_t points, float* out, Parallel& parallel) {
  constexpr int64_t kTile = 64, kTask = 4096;
  parallel_for(parallel, (points + kTask - 1) / kTask, [&](int64_t task) {
    const int64_t end = std::min(points, (task + 1) * kTask);
    for (int64_t tile = task * kTask; tile < end; tile += kTile)
      for (int l = 0; l < labels; ++l)
        for (int64_t i = tile; i < std::min(end, tile + kTile); ++i) out[l * points + i] = q[i * labels + l];
  });
}

}  // namespace deeplab_fast
