#include "crf/dense_crf.h"

#include <algorithm>
#include <cmath>

#include "base/denormals.h"
#include "crf/image_features.h"
#include "crf/kept_kernels.h"
#include "lattice/geometry.h"
#include "lattice/normalization.h"

namespace deeplab_fast {
namespace {

// What the pixel passes keep of all kernels from one iteration to the next, and the views that point to it.
class KernelRows {
 public:
  KernelRows(const std::vector<std::unique_ptr<Pairwise>>& pairwise, int labels, int lanes, Parallel& parallel)
      : lanes_(lanes), parallel_(parallel), kernels_(pairwise.size()) {
    for (size_t k = 0; k < pairwise.size(); ++k) {
      Rows& rows = kernels_[k];
      views.push_back(pairwise[k]->view(labels, lanes, rows.compat, parallel));
      rows.lattice = pairwise[k]->kernel->lattice.get();
      if (rows.lattice != nullptr) continue;
      const VisitOrder& order = *pairwise[k]->kernel->order;
      rows.stencil = pairwise[k]->stencil->view(order.points / order.width, lanes == 1);
      views[k].stencil = &rows.stencil;
    }
  }
  KernelRows(const KernelRows&) = delete;

  std::vector<PairwiseView> views;

  // Call before splatting.
  void prepare() {
    for (size_t k = 0; k < kernels_.size(); ++k) {
      Rows& rows = kernels_[k];
      if (rows.lattice != nullptr)
        rows.vertices.prepare(*rows.lattice, lanes_);
      else if (rows.vertices.next.size() == 0)
        rows.vertices.next = padded_image(rows.stencil, lanes_);
      views[k].next = rows.vertices.next.data();
    }
  }
  // Rows [block.count()][lanes] of a caller, instead of those a pass computes.
  void splat(const PointBlock& block, const float* source) const {
    for (const PairwiseView& view : views) {
      if (view.stencil == nullptr)
        row_kernels().splat(view, block, lanes_, source, view.next);
      else
        copy_to_image(*view.stencil, block, lanes_, source, view.next);
    }
  }
  // Filters what was splatted, so that the next pass can slice it.
  void blur() {
    for (size_t k = 0; k < kernels_.size(); ++k) {
      Rows& rows = kernels_[k];
      if (rows.lattice != nullptr)
        rows.vertices.blur(*rows.lattice, lanes_, false, parallel_);
      else
        std::swap(rows.vertices.next, rows.vertices.blurred);
      views[k].blurred = rows.vertices.blurred.data();
    }
  }

 private:
  struct Rows {
    const Lattice* lattice;
    StencilView stencil;
    std::vector<float> compat;
    VertexRows vertices;
  };
  int lanes_;
  Parallel& parallel_;
  std::vector<Rows> kernels_;
};

// The largest value that filtering ones with the normalisation's two factors gives: of after * K(before).
float largest_filtered_one(const Pairwise& pairwise, Parallel& parallel) {
  if (pairwise.stencil != nullptr) return pairwise.stencil->largest_sum();
  const Lattice& lattice = *pairwise.kernel->lattice;
  std::vector<float> none;
  PairwiseView view = pairwise.view(1, 1, none, parallel);
  view.scale = slice_scale(lattice.dimensions);
  Buffer<float> values(lattice.points);
  std::fill(values.begin(), values.end(), 1.0f);
  filter(lattice, view, values.data(), 1, Blur::kForward, values.data(), parallel);
  return *std::max_element(values.begin(), values.end());
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
        rows_(pairwise, unary.groups(), lanes_, parallel) {
    for (int g = 0; g < unary.groups(); ++g) multiplicity_[g] = static_cast<float>(unary.labels_of_group[g]);
    for (const auto& one : pairwise) attractive_ &= one->kind == Compat::kPotts && one->compat[0] >= 0;
    for (int l = unary.labels - 1; l >= 0; --l) label_of_group_[unary.group_of_label[l]] = l;
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
        rows_.splat(*block, padded.data());
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
  KernelRows rows_;
};

// The same for two labels under Potts compatibility. The score that label 0 has over label 1 is U_1 - U_0 + sum over
// kernels of w F(Q_0 - Q_1): one value per vertex is enough, and two labels with equal energies stay exactly equal.
class BinaryIterator {
 public:
  BinaryIterator(const UnaryRows& unary, const std::vector<std::unique_ptr<Pairwise>>& pairwise,
                 const VisitOrder& order, Parallel& parallel)
      : order_(order), parallel_(parallel), score_(order.points), rows_(pairwise, 2, 1, parallel) {
    const int lanes = label_lanes(2);
    constexpr int64_t kParts = 16;
    parallel_for(parallel, kParts, [&](int64_t part) {
      const Range range = part_of(order.points, kParts, part);
      for (int64_t i = range.begin; i < range.end; ++i)
        score_[i] = unary.negative[i * lanes] - unary.negative[i * lanes + 1];
    });
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
        rows_.splat(*block, difference);
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

Kernel::Kernel(const float* features, int dimensions, std::shared_ptr<const VisitOrder> visit, Parallel& parallel)
    : order(std::move(visit)),
      lattice(std::make_unique<Lattice>(features, dimensions, order, parallel)),
      ones(order->points) {
  std::fill(ones.begin(), ones.end(), 1.0f);
  filter(*lattice, lattice->view(1, parallel), ones.data(), 1, Blur::kForward, ones.data(), parallel);
}

Kernel::Kernel(std::shared_ptr<const VisitOrder> visit, Parallel& parallel)
    : order(std::move(visit)),
      stencil(std::make_unique<GridStencil>(order->width, order->points / order->width, parallel)) {}

Pairwise::Pairwise(std::shared_ptr<const Kernel> of, const float* values, Compat compat_kind, int labels,
                   Normalization how, Parallel& parallel)
    : kernel(std::move(of)), kind(compat_kind), normalization(how) {
  const int64_t count = kind == Compat::kPotts ? 1 : kind == Compat::kDiagonal ? labels : int64_t{labels} * labels;
  compat.assign(values, values + count);
  const bool root = how == Normalization::kSymmetric;
  if (kernel->stencil != nullptr) {
    stencil = std::make_unique<NormalizedStencil>(*kernel->stencil, before(), after(), root);
    return;
  }
  if (how == Normalization::kNone) return;
  const VisitOrder& order = *kernel->order;
  norm.reset(order.points);
  parallel_for(parallel, order.chunks(), [&](int64_t chunk) {
    for (const PointBlock* block = order.begin(chunk); block < order.end(chunk); ++block)
      block->each_line([&](int32_t place, int64_t point, int32_t points_of_line) {
        const float* ones = kernel->ones.data() + point;
        float* factor = norm.data() + block->begin + place;
        for (int32_t i = 0; i < points_of_line; ++i) factor[i] = normalization_factor(ones[i], root);
      });
  });
}

PairwiseView Pairwise::view(int labels, int lanes, std::vector<float>& padded, Parallel& parallel) const {
  PairwiseView view{};
  if (kernel->lattice != nullptr) {
    static_cast<LatticeView&>(view) = kernel->lattice->view(lanes, parallel);
    if (before()) view.before = norm.data();
    if (after()) view.after = norm.data();
  } else {
    view.scale = 1;
  }
  view.compat = kind;
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
  if (takes_stencil(kind) && GridStencil::are_grid(features, dimensions, *order_))
    return add_gaussian(order_->width, points_ / order_->width, 1, 1, compat, kind, normalization, parallel);
  auto kernel = std::make_shared<Kernel>(features, dimensions, order_, parallel);
  pairwise_.push_back(std::make_unique<Pairwise>(std::move(kernel), compat, kind, labels_, normalization, parallel));
}

void DenseCrf::add_gaussian(int64_t width, int64_t height, float sx, float sy, const float* compat, Compat kind,
                            Normalization normalization, Parallel& parallel) {
  const bool stencil = width == order_->width && takes_stencil(kind) && GridStencil::suits(*order_, sx, sy);
  auto kernel = KeptKernels::of_process().find(*order_, width, sx, sy, stencil);
  if (kernel == nullptr) {
    if (stencil) {
      kernel = std::make_shared<Kernel>(order_, parallel);
    } else {
      const Buffer<float> features = gaussian_features(width, height, sx, sy, parallel);
      kernel = std::make_shared<Kernel>(features.data(), 2, order_, parallel);
    }
    KeptKernels::of_process().keep(width, sx, sy, kernel);
  }
  pairwise_.push_back(std::make_unique<Pairwise>(std::move(kernel), compat, kind, labels_, normalization, parallel));
}

// A stencil takes the place of the lattice where it is the faster of the two.
bool DenseCrf::takes_stencil(Compat kind) const {
  return kind == Compat::kPotts && (labels_ == 2 || mean_field_kernels().wide);
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
      bound += std::max(pairwise->compat[0], 0.0f) * largest_filtered_one(*pairwise, parallel);
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
