#include "dense_crf.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>

#include "denormals.h"
#include "lattice_geometry.h"

namespace deeplab_fast {
namespace {

// Values on the vertices of one lattice: what is sliced from now, and what is splatted for the next iteration.
struct VertexRows {
  Buffer<float> blurred, next;
};

// One filtering of ones with the normalisation's two factors: after * K(before).
Buffer<float> filter_ones(const Pairwise& pairwise, Parallel& parallel) {
  std::vector<float> none;
  Taps taps = pairwise.taps(1, 1, none);
  taps.scale = slice_scale(pairwise.kernel->lattice.dimensions);
  Buffer<float> values(pairwise.kernel->lattice.points);
  std::fill(values.begin(), values.end(), 1.0f);
  filter(pairwise.kernel->lattice, taps, values.data(), 1, false, values.data(), parallel);
  return values;
}

// Spatial kernels of the last few image sizes and deviations. Locks are only tried: whoever finds it busy does without.
class KeptKernels {
 public:
  std::shared_ptr<const Kernel> find(int64_t width, int64_t height, float sx, float sy) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
      if (entry->width != width || entry->height != height || entry->sx != sx || entry->sy != sy) continue;
      std::rotate(entries_.begin(), entry, entry + 1);  // the latest first
      return entries_.front().kernel;
    }
    return nullptr;
  }
  void keep(int64_t width, int64_t height, float sx, float sy, std::shared_ptr<const Kernel> kernel) {
    constexpr int64_t kMostPoints = 1 << 20;  // about 60 MB
    constexpr size_t kMostEntries = 2;
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock || width * height > kMostPoints) return;
    if (entries_.size() == kMostEntries) entries_.pop_back();
    entries_.insert(entries_.begin(), {width, height, sx, sy, std::move(kernel)});
  }

 private:
  struct Entry {
    int64_t width, height;
    float sx, sy;
    std::shared_ptr<const Kernel> kernel;
  };
  std::mutex mutex_;
  std::vector<Entry> entries_;
};

KeptKernels& kept_kernels() {
  static KeptKernels& only = *new KeptKernels;  // never destroyed: other threads may still use it at exit
  return only;
}

// The pixel passes of one inference: same unary, kernels and lanes, iteration after iteration.
class Iterator {
 public:
  Iterator(const UnaryRows& unary, const std::vector<std::unique_ptr<Pairwise>>& pairwise, const VisitOrder& order,
           Parallel& parallel)
      : unary_(unary),
        pairwise_(pairwise),
        order_(order),
        parallel_(parallel),
        lanes_(row_lanes(unary.groups())),
        multiplicity_(lanes_, 0.0f),
        compat_(pairwise.size()),
        rows_(pairwise.size()) {
    for (int g = 0; g < unary.groups(); ++g) multiplicity_[g] = static_cast<float>(unary.labels_of_group[g]);
    for (size_t k = 0; k < pairwise.size(); ++k) {
      taps_.push_back(pairwise[k]->taps(unary.groups(), lanes_, compat_[k]));
      const int64_t size = pairwise[k]->kernel->lattice.rows() * lanes_;
      rows_[k].next.reset(size);
    }
  }

  PixelPass make_pass() const {
    PixelPass pass{};
    pass.labels = unary_.groups(), pass.lanes = lanes_;
    pass.negative_unary = unary_.negative.data();
    pass.multiplicity = multiplicity_.data();
    pass.kernels = taps_.data(), pass.kernel_count = static_cast<int32_t>(taps_.size());
    pass.normalize = true;
    pass.out_labels = unary_.labels;
    pass.lane_of_label = unary_.collapsed() ? unary_.group_of_label.data() : nullptr;
    return pass;
  }

  // Splats rows that the caller has (instead of those a pass computes).
  void splat(const float* q, int labels) {
    prepare_next();
    parallel_for(parallel_, order_.chunks(), [&](int64_t chunk) {
      const FlushDenormals flush;
      std::vector<float> padded(int64_t{VisitOrder::kTile} * lanes_);
      for (const PointTile* tile = order_.begin(chunk); tile < order_.end(chunk); ++tile) {
        for (int i = 0; i < tile->count; ++i) std::copy_n(q + (tile->first + i) * labels, labels, &padded[i * lanes_]);
        for (const Taps& taps : taps_) isa().splat(taps, *tile, lanes_, padded.data(), taps.next);
      }
    });
  }

  void run(PixelPass pass) {
    if (pass.splat) prepare_next();
    pass.kernels = taps_.data();
    parallel_for(parallel_, order_.chunks(), [&](int64_t chunk) {
      const FlushDenormals flush;
      Buffer<float> scratch(isa().pixel_pass_scratch(lanes_));
      PixelPass part = pass;
      part.tiles = order_.begin(chunk), part.tiles_end = order_.end(chunk), part.scratch = scratch.data();
      isa().pixel_pass(part);
    });
  }

  // Filters what was splatted, so that the next pass can slice it.
  void blur() {
    for (size_t k = 0; k < taps_.size(); ++k) {
      fold_and_blur(pairwise_[k]->kernel->lattice, lanes_, rows_[k].next, rows_[k].blurred, false, parallel_);
      std::swap(rows_[k].next, rows_[k].blurred);
      taps_[k].blurred = rows_[k].blurred.data();
    }
  }

 private:
  void prepare_next() {
    for (size_t k = 0; k < taps_.size(); ++k) {
      if (rows_[k].next.size() == 0) rows_[k].next.reset(rows_[k].blurred.size());
      clear_empty_rows(pairwise_[k]->kernel->lattice, lanes_, rows_[k].next.data());
      taps_[k].next = rows_[k].next.data();
    }
  }

  const UnaryRows& unary_;
  const std::vector<std::unique_ptr<Pairwise>>& pairwise_;
  const VisitOrder& order_;
  Parallel& parallel_;
  int lanes_;
  std::vector<float> multiplicity_;
  std::vector<std::vector<float>> compat_;
  std::vector<VertexRows> rows_;
  std::vector<Taps> taps_;
};

}  // namespace

Kernel::Kernel(const float* features, int dimensions, std::shared_ptr<const VisitOrder> order, Parallel& parallel)
    : lattice(features, dimensions, std::move(order), parallel), ones(lattice.points) {
  std::fill(ones.begin(), ones.end(), 1.0f);
  filter(lattice, lattice.make_taps(), ones.data(), 1, false, ones.data(), parallel);
}

Pairwise::Pairwise(std::shared_ptr<const Kernel> of, const float* values, Compat compat_kind, int labels,
                   Normalization how, Parallel& parallel)
    : kernel(std::move(of)), kind(compat_kind), normalization(how) {
  const int64_t count = kind == Compat::kPotts ? 1 : kind == Compat::kDiagonal ? labels : int64_t{labels} * labels;
  compat.assign(values, values + count);
  if (how == Normalization::kNone) return;
  constexpr int64_t kParts = 16;
  norm.reset(kernel->lattice.points);
  parallel_for(parallel, kParts, [&](int64_t part) {
    const Range range = part_of(norm.size(), kParts, part);
    for (int64_t i = range.begin; i < range.end; ++i) {
      const double sum = static_cast<double>(kernel->ones[i]) + 1e-20;
      norm[i] = static_cast<float>(1.0 / (how == Normalization::kSymmetric ? std::sqrt(sum) : sum));
    }
  });
}

Taps Pairwise::taps(int labels, int lanes, std::vector<float>& padded) const {
  Taps taps = kernel->lattice.make_taps();
  taps.compat = kind;
  if (normalization == Normalization::kBefore || normalization == Normalization::kSymmetric) taps.before = norm.data();
  if (normalization == Normalization::kAfter || normalization == Normalization::kSymmetric) taps.after = norm.data();
  if (kind == Compat::kPotts) {
    taps.scale *= compat[0];
  } else {
    const int rows = kind == Compat::kMatrix ? labels : 1;
    padded.assign(static_cast<size_t>(rows) * lanes, 0.0f);
    for (int l = 0; l < rows; ++l)
      std::copy_n(&compat[static_cast<size_t>(l) * labels], labels, &padded[static_cast<size_t>(l) * lanes]);
    taps.matrix = padded.data();
  }
  return taps;
}

DenseCrf::DenseCrf(int64_t points, int labels, int64_t width)
    : points_(points), labels_(labels), order_(std::make_shared<VisitOrder>(points, width)) {}

bool DenseCrf::set_unary(const float* unary, bool only_finite, Parallel& parallel) {
  UnaryRows rows = group_equal_labels(unary, labels_, points_, parallel);
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
  auto kernel = kept_kernels().find(width, height, sx, sy);
  if (kernel == nullptr) {
    const Buffer<float> features = gaussian_features(width, height, sx, sy, parallel);
    kernel =
        std::make_shared<Kernel>(features.data(), 2, std::make_shared<VisitOrder>(width * height, width), parallel);
    kept_kernels().keep(width, height, sx, sy, kernel);
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

void DenseCrf::inference(int iterations, float* q, Parallel& parallel, bool history) {
  const UnaryRows* unary = &unary_rows(!all_potts(), parallel);
  UnaryRows merged;
  if (collapse_ > 0 && all_potts() && !history) {
    float bound = 0;
    for (const auto& pairwise : pairwise_) {
      const Buffer<float> ones = filter_ones(*pairwise, parallel);
      bound += std::max(pairwise->compat[0], 0.0f) * *std::max_element(ones.begin(), ones.end());
    }
    merged = group_unlikely_labels(*unary, points_, collapse_, bound, parallel);
    if (merged.labels > 0) unary = &merged;
  }
  if (!history && unary->groups() == 2 && labels_ == 2 && all_potts()) return binary_inference(iterations, q, parallel);

  Iterator iterator(*unary, pairwise_, *order_, parallel);
  PixelPass pass = iterator.make_pass();
  for (int i = 0; i <= iterations; ++i) {
    pass.slice = i > 0, pass.splat = i < iterations;
    pass.out = i == iterations ? q : nullptr;
    if (history) pass.out = i > 0 ? q + (i - 1) * points_ * labels_ : nullptr;
    iterator.run(pass);
    if (pass.splat) iterator.blur();
  }
}

// The score that label 0 has over label 1 is U_1 - U_0 + sum over kernels of w F(Q_0 - Q_1): one value per vertex is
// enough, and two labels with equal energies stay exactly equal.
void DenseCrf::binary_inference(int iterations, float* q, Parallel& parallel) {
  const int lanes = row_lanes(2);
  Buffer<float> score(points_);
  constexpr int64_t kParts = 16;
  parallel_for(parallel, kParts, [&](int64_t part) {
    const Range range = part_of(points_, kParts, part);
    for (int64_t i = range.begin; i < range.end; ++i)
      score[i] = unary_.negative[i * lanes] - unary_.negative[i * lanes + 1];
  });
  std::vector<Taps> taps;
  std::vector<VertexRows> rows(pairwise_.size());
  std::vector<float> none;
  for (size_t k = 0; k < pairwise_.size(); ++k) {
    taps.push_back(pairwise_[k]->taps(2, 1, none));
    rows[k].blurred.reset(pairwise_[k]->kernel->lattice.rows());
    rows[k].next.reset(pairwise_[k]->kernel->lattice.rows());
  }
  for (int i = 0; i <= iterations; ++i) {
    BinaryPass pass{};
    pass.score = score.data();
    pass.slice = i > 0, pass.splat = i < iterations;
    pass.out = i < iterations ? nullptr : q;
    pass.kernels = taps.data(), pass.kernel_count = static_cast<int32_t>(taps.size());
    for (size_t k = 0; pass.splat && k < taps.size(); ++k) {
      clear_empty_rows(pairwise_[k]->kernel->lattice, 1, rows[k].next.data());
      taps[k].next = rows[k].next.data();
    }
    parallel_for(parallel, order_->chunks(), [&](int64_t chunk) {
      const FlushDenormals flush;
      BinaryPass part = pass;
      part.tiles = order_->begin(chunk), part.tiles_end = order_->end(chunk);
      isa().binary_pass(part);
    });
    for (size_t k = 0; pass.splat && k < taps.size(); ++k) {
      fold_and_blur(pairwise_[k]->kernel->lattice, 1, rows[k].next, rows[k].blurred, false, parallel);
      std::swap(rows[k].next, rows[k].blurred);
      taps[k].blurred = rows[k].blurred.data();
    }
  }
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
  iterator.splat(q, labels_);
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

namespace {

void position_features(int64_t width, int64_t height, float sx, float sy, float* features, Parallel& parallel) {
  const int64_t points = width * height;
  parallel_for(parallel, height, [&](int64_t y) {
    for (int64_t x = 0; x < width; ++x) {
      features[y * width + x] = static_cast<float>(x) / sx;
      features[points + y * width + x] = static_cast<float>(y) / sy;
    }
  });
}

}  // namespace

Buffer<float> gaussian_features(int64_t width, int64_t height, float sx, float sy, Parallel& parallel) {
  Buffer<float> features(2 * width * height);
  position_features(width, height, sx, sy, features.data(), parallel);
  return features;
}

Buffer<float> bilateral_features(int64_t width, int64_t height, float sx, float sy, const float sigma_rgb[3],
                                 const uint8_t* image, Parallel& parallel) {
  const int64_t points = width * height;
  Buffer<float> features(5 * points);
  position_features(width, height, sx, sy, features.data(), parallel);
  parallel_for(parallel, height, [&](int64_t y) {
    for (int64_t i = y * width; i < (y + 1) * width; ++i)
      for (int c = 0; c < 3; ++c) features[(2 + c) * points + i] = static_cast<float>(image[3 * i + c]) / sigma_rgb[c];
  });
  return features;
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
