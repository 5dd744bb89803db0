// Mean-field inference in a fully connected CRF (Krähenbühl and Koltun, 2011): pydensecrf's semantics, in one pass over
// the pixels per iteration. Knows neither torch nor Python.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/buffer.h"
#include "base/parallel.h"
#include "crf/label_groups.h"
#include "crf/mean_field_kernels.h"
#include "lattice/lattice.h"

namespace deeplab_fast {

enum class Normalization { kNone = 0, kBefore = 1, kAfter = 2, kSymmetric = 3 };

// All of a Gaussian kernel that depends on the features only: its lattice and what that makes of ones, which normalises
// it; or a stencil.
struct Kernel {
  Kernel(const float* features, int dimensions, std::shared_ptr<const VisitOrder> order, Parallel& parallel);
  // Of an image's pixels at a deviation of one pixel, where GridStencil suits.
  Kernel(std::shared_ptr<const VisitOrder> order, Parallel& parallel);

  std::shared_ptr<const VisitOrder> order;
  std::unique_ptr<const Lattice> lattice;
  Buffer<float> ones;  // [points]
  std::unique_ptr<const GridStencil> stencil;
};

// One pairwise term: Gaussian kernel on the features, normalisation, label compatibility.
struct Pairwise {
  // compat: 1 value (Potts: -w F(Q)), labels values (+ v F(Q)) or labels x labels, symmetric (+ M F(Q)).
  Pairwise(std::shared_ptr<const Kernel> kernel, const float* compat, Compat kind, int labels,
           Normalization normalization, Parallel& parallel);

  std::shared_ptr<const Kernel> kernel;
  Compat kind;
  Normalization normalization;
  std::vector<float> compat;
  Buffer<float> norm;  // [points] in visiting order: 1 / (n + 1e-20) or its square root, n the filtered ones; or empty
  std::unique_ptr<NormalizedStencil> stencil;

  bool before() const { return normalization == Normalization::kBefore || normalization == Normalization::kSymmetric; }
  bool after() const { return normalization == Normalization::kAfter || normalization == Normalization::kSymmetric; }
  // What the pixel pass needs of a lattice, with compat padded to `lanes` in `padded`.
  PairwiseView view(int labels, int lanes, std::vector<float>& padded, Parallel& parallel) const;
};

// Q after each iteration, [points][labels] at first + (iteration - 1) * step; or null.
struct QHistory {
  const float* first;
  int64_t step;
};

// Where gradients go; null, or empty: not wanted.
struct CrfGradients {
  float* unary;                  // [labels][points]
  std::vector<float*> features;  // per kernel [dimensions][points]
  std::vector<double*> compat;   // per kernel as its compat, a matrix symmetrised; added to
};

class DenseCrf {
 public:
  // `width`: of the image the points are, row by row, if they are one (a hint that makes it faster).
  DenseCrf(int64_t points, int labels, int64_t width = 0);

  // [labels][points]; null: none. With `only_finite` changes nothing and returns false if there is a NaN or infinity.
  bool set_unary(const float* unary, bool only_finite, Parallel& parallel);
  void add_pairwise(const float* features, int dimensions, const float* compat, Compat kind,
                    Normalization normalization, Parallel& parallel);
  // Features (x/sx, y/sy) of an image of that width. Their kernel depends on nothing else, and that of the last few
  // sizes and deviations is kept between calls.
  void add_gaussian(int64_t width, int64_t height, float sx, float sy, const float* compat, Compat kind,
                    Normalization normalization, Parallel& parallel);
  void set_collapse(float epsilon) { collapse_ = epsilon; }

  int64_t points() const { return points_; }
  int labels() const { return labels_; }

  // q[i * labels + l], pixel-major.
  void inference(int iterations, float* q, Parallel& parallel);
  // Where to store Q after an iteration (0: before the first); null: nowhere.
  using StoreQ = std::function<float*(int iteration)>;
  // The same without collapsing, and Q after any of the iterations. `from`, if it is not null, is a Q to go on from,
  // instead of softmax(-U): the same bits as in one go.
  void infer(int iterations, const float* from, const StoreQ& store, Parallel& parallel);
  void start(float* q, Parallel& parallel);  // softmax(-U)
  void step(float* q, Parallel& parallel);   // one iteration, in place
  double kl_divergence(const float* q, Parallel& parallel);
  // The gradients of a loss to unary, features and compat, from that to the last Q, grad[l * points + i] = d loss / d
  // Q[i][l] (dense_crf_backward.cpp has the formulas). `features`: the same that add_pairwise was given, a pointer a
  // pairwise term. Where `history` is null, Q of earlier iterations is inferred again, from checkpoints.
  void backward(int iterations, const float* grad, QHistory history, const std::vector<const float*>& features,
                const CrfGradients& out, Parallel& parallel);

 private:
  bool all_potts() const;
  bool takes_stencil(Compat kind) const;
  const UnaryRows& unary_rows(bool every_label, Parallel& parallel);
  void apply_pairwise(const float* q, float* out, bool normalize, Parallel& parallel);
  void infer(const UnaryRows& unary, int iterations, const float* from, const StoreQ& store, Parallel& parallel) const;

  int64_t points_;
  int labels_;
  std::shared_ptr<const VisitOrder> order_;
  float collapse_ = 0;
  UnaryRows unary_, unary_of_every_label_;
  std::vector<std::unique_ptr<Pairwise>> pairwise_;
};

// q[i * labels + l] -> out[l * points + i].
void to_label_major(const float* q, int labels, int64_t points, float* out, Parallel& parallel);

}  // namespace deeplab_fast
