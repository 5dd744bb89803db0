// The backward pass of mean-field inference. As in the forward one, an iteration is one pass over the pixels, which
// slices what came back through the lattices, goes back through the softmax, and splats for the iteration before.
//
// With y_k = A_k L_k B_k Q (A, B: the normalisation; L: the lattice), E = U + sum_k C_k y_k and Q' = softmax(-E):
//   dE = -Q' (dQ' - <dQ', Q'>),   dU = sum over iterations of dE,   dQ = sum_k B_k L_k^T A_k C_k dE,
// and in reverse order of iterations, dC_k = sum of dE y_k^T. L_k^T is L_k with the axes of its blur in reverse.
#include <algorithm>

#include "base/denormals.h"
#include "crf/dense_crf.h"
#include "crf/image_features.h"
#include "crf/label_groups.h"
#include "lattice/block_rows.h"
#include "lattice/geometry.h"

namespace deeplab_fast {
namespace {

// Q after iteration `iterations`, the one before, ..., 0. Without their history, every few of them are kept as
// checkpoints, and those between two are inferred again when they are asked for.
class Beliefs {
 public:
  Beliefs(DenseCrf& crf, int iterations, QHistory history, Parallel& parallel)
      : crf_(crf), history_(history), size_(crf.points() * crf.labels()), parallel_(parallel) {
    if (history.first != nullptr) {
      checkpoints_.reset(size_);
      crf.infer(0, nullptr, [&](int) { return checkpoints_.data(); }, parallel);
      return;
    }
    while (int64_t{stride_} * stride_ < iterations) ++stride_;
    loaded_ = iterations / stride_;  // the iterations after the last checkpoint are kept as they come
    checkpoints_.reset((loaded_ + 1) * size_);
    segment_.reset((stride_ - 1) * size_);
    const auto store = [&](int iteration) {
      const bool wanted = iteration % stride_ == 0 || iteration / stride_ == loaded_;
      return wanted ? place_of(iteration) : nullptr;
    };
    crf.infer(iterations, nullptr, store, parallel);
  }

  // Valid until one of another segment, between two checkpoints, is asked for; a checkpoint always is.
  const float* at(int iteration) {
    if (history_.first != nullptr)
      return iteration > 0 ? history_.first + (iteration - 1) * history_.step : checkpoints_.data();
    const int checkpoint = iteration / stride_;
    if (iteration % stride_ != 0 && checkpoint != loaded_) {
      const float* from = place_of(checkpoint * stride_);
      crf_.infer(stride_ - 1, from, [&](int later) { return place_of(checkpoint * stride_ + later); }, parallel_);
      loaded_ = checkpoint;
    }
    return place_of(iteration);
  }

 private:
  float* place_of(int iteration) {
    const int later = iteration % stride_;
    return later == 0 ? checkpoints_.data() + iteration / stride_ * size_ : segment_.data() + (later - 1) * size_;
  }

  DenseCrf& crf_;
  const QHistory history_;
  const int64_t size_;
  Parallel& parallel_;
  int stride_ = 1, loaded_ = 0;
  Buffer<float> checkpoints_, segment_;
};

// One pairwise term in the backward pass.
struct Term {
  Term(const Pairwise& of, int labels, int lanes, Parallel& parallel)
      : pairwise(of),
        forward(of.view(labels, lanes, matrix, parallel)),
        scale(of.kind == Compat::kPotts ? -of.compat[0] : 1.0f),
        matrix_labels(of.kind == Compat::kMatrix ? labels : 0) {
    forward.scale = slice_scale(of.kernel->lattice->dimensions);
    raw = backward = forward;
    raw.after = nullptr;
    std::swap(backward.before, backward.after);
    backward.scale *= scale;
  }

  const Lattice& lattice() const { return *pairwise.kernel->lattice; }

  // C dE, but for a Potts term's factor, which `scale` has.
  const float* transform(int count, int lanes, const float* energy_grad, float* memory) const {
    if (pairwise.kind == Compat::kPotts) return energy_grad;
    mean_field_backward_kernels().transform_rows(count, matrix_labels, lanes, forward.matrix, energy_grad, memory);
    return memory;
  }

  const Pairwise& pairwise;
  std::vector<float> matrix;            // padded
  PairwiseView forward, raw, backward;  // raw: forward, without the factor after
  float scale;
  int matrix_labels;
  VertexRows to_q, from_q;                  // in reverse, of gradients; forward, of Q again
  Buffer<float> weight_grad;                // [points][corners], where features need a gradient
  Buffer<float> normalization_grad;         // [points] the factors' gradients, each times its factor
  std::vector<Buffer<double>> compat_grad;  // of each chunk, [1 or labels][lanes]
};

// Rows of one block.
struct Scratch {
  explicit Scratch(int lanes) : size(int64_t{VisitOrder::kMostInBlock} * lanes), memory(7 * size) {}
  float* rows(int i) { return memory.data() + i * size; }
  int64_t size;
  Buffer<float> memory;
};

class Backward {
 public:
  Backward(const std::vector<const Pairwise*>& pairwise, const VisitOrder& order, int labels, const CrfGradients& out,
           Parallel& parallel)
      : order_(order),
        parallel_(parallel),
        labels_(labels),
        lanes_(label_lanes(labels)),
        need_features_(!out.features.empty()),
        need_compat_(!out.compat.empty()),
        energy_grad_(order.points * lanes_),
        unary_grad_(order.points * lanes_) {
    for (const Pairwise* one : pairwise) terms_.push_back(std::make_unique<Term>(*one, labels, lanes_, parallel));
    for (auto& term : terms_) {
      if (need_features_) {
        clear(term->weight_grad, order.points * term->forward.corners);
        clear(term->normalization_grad, order.points);
      }
      term->compat_grad.resize(need_compat_ ? order.chunks() : 0);
      for (auto& chunk : term->compat_grad) clear(chunk, int64_t{std::max(term->matrix_labels, 1)} * lanes_);
    }
    clear(unary_grad_, unary_grad_.size());
  }

  void run(int iterations, const float* grad, Beliefs& beliefs) {
    for (int iteration = iterations; iteration >= 0; --iteration) {
      const float* q = beliefs.at(iteration);
      const float* q_before = iteration > 0 && again() ? beliefs.at(iteration - 1) : nullptr;
      for (auto& term : terms_) {
        if (iteration == 0) break;
        term->to_q.prepare(term->lattice(), lanes_);
        if (again()) term->from_q.prepare(term->lattice(), lanes_);
      }
      for_blocks([&](int64_t chunk, const PointBlock& block, Scratch& scratch) {
        pad(q, block, scratch.rows(kBelief));
        if (iteration == iterations) {
          gather_block(grad, order_.points, block, labels_, lanes_, scratch.rows(kGrad));
        } else {
          slice(chunk, block, scratch);
        }
        float* energy_grad = energy_grad_.data() + block.begin * lanes_;
        mean_field_backward_kernels().softmax_backward(block.count(), lanes_, scratch.rows(kBelief),
                                                       scratch.rows(kGrad), energy_grad);
        mean_field_backward_kernels().scale_rows(block.count(), lanes_, nullptr, energy_grad, true,
                                                 unary_grad_.data() + block.begin * lanes_);
        if (iteration > 0) splat(q_before, energy_grad, block, scratch);
      });
      for (auto& term : terms_) {
        if (iteration == 0) break;
        term->to_q.blur(term->lattice(), lanes_, true, parallel_);
        if (again()) term->from_q.blur(term->lattice(), lanes_, false, parallel_);
      }
    }
  }

  void store(const std::vector<const float*>& features, const CrfGradients& out) {
    for_blocks([&](int64_t, const PointBlock& block, Scratch&) {
      scatter_block(unary_grad_.data() + block.begin * lanes_, order_.points, block, labels_, lanes_, out.unary);
    });
    for (size_t k = 0; k < terms_.size(); ++k) {
      if (need_compat_) store_compat(*terms_[k], out.compat[k]);
      if (need_features_) store_features(*terms_[k], features[k], out.features[k]);
    }
  }

 private:
  enum { kBelief, kGrad, kBack, kFiltered, kScaled, kTransformed, kSplatted };  // rows of a block

  // Whether Q has to go through the lattices again.
  bool again() const { return need_features_ || need_compat_; }

  template <class T>
  static void clear(Buffer<T>& buffer, int64_t size) {
    if (buffer.size() != size) buffer.reset(size);
    std::fill(buffer.begin(), buffer.end(), T{});
  }

  template <class Body>
  void for_blocks(Body&& body) {
    parallel_for(parallel_, order_.chunks(), [&](int64_t chunk) {
      const FlushDenormals flush;
      Scratch scratch(lanes_);
      for (const PointBlock* block = order_.begin(chunk); block < order_.end(chunk); ++block)
        body(chunk, *block, scratch);
    });
  }

  void pad(const float* q, const PointBlock& block, float* rows) const {
    block.each_line([&](int32_t place, int64_t point, int32_t count) {
      for (int32_t p = 0; p < count; ++p) {
        float* row = std::copy_n(q + (point + p) * labels_, labels_, rows + (place + p) * lanes_);
        std::fill(row, rows + (place + p + 1) * lanes_, 0.0f);
      }
    });
  }
  // The gradient to this iteration's Q, out of the lattices; and what the later iteration adds to other gradients.
  void slice(int64_t chunk, const PointBlock& block, Scratch& scratch) {
    for (size_t k = 0; k < terms_.size(); ++k) {
      Term& term = *terms_[k];
      row_kernels().slice(term.backward, block, lanes_, term.to_q.blurred.data(), scratch.rows(kBack));
      mean_field_backward_kernels().scale_rows(block.count(), lanes_, nullptr, scratch.rows(kBack), k > 0,
                                               scratch.rows(kGrad));
      if (!again()) continue;
      row_kernels().slice(term.raw, block, lanes_, term.from_q.blurred.data(), scratch.rows(kFiltered));
      mean_field_backward_kernels().scale_rows(block.count(), lanes_, factors(term.forward.after, block),
                                               energy_grad_.data() + block.begin * lanes_, false,
                                               scratch.rows(kScaled));
      if (need_compat_) add_compat(term, block, scratch, term.compat_grad[chunk].data());
      if (need_features_) add_features(term, block, scratch);
    }
    if (terms_.empty()) std::fill_n(scratch.rows(kGrad), scratch.size, 0.0f);
  }

  void splat(const float* q_before, const float* energy_grad, const PointBlock& block, Scratch& scratch) {
    if (again()) pad(q_before, block, scratch.rows(kBelief));
    for (auto& term : terms_) {
      const float* rows = term->transform(block.count(), lanes_, energy_grad, scratch.rows(kTransformed));
      row_kernels().splat(term->backward, block, lanes_, rows, term->to_q.next.data());
      if (again()) row_kernels().splat(term->forward, block, lanes_, scratch.rows(kBelief), term->from_q.next.data());
    }
  }

  static const float* factors(const float* of_points, const PointBlock& block) {
    return of_points == nullptr ? nullptr : of_points + block.begin;
  }

  void add_compat(const Term& term, const PointBlock& block, Scratch& scratch, double* sums) const {
    const int rows = std::max(term.matrix_labels, 1);
    Buffer<float> products(int64_t{rows} * lanes_);
    const float *energy_grad = scratch.rows(kScaled), *filtered = scratch.rows(kFiltered);
    if (term.matrix_labels > 0)
      mean_field_backward_kernels().outer_products(block.count(), labels_, lanes_, filtered, energy_grad,
                                                   products.data());
    else
      mean_field_backward_kernels().lane_products(block.count(), lanes_, filtered, energy_grad, products.data());
    for (int64_t i = 0; i < products.size(); ++i) sums[i] += products[i];
  }

  void add_features(Term& term, const PointBlock& block, Scratch& scratch) const {
    const float* sliced = term.transform(block.count(), lanes_, scratch.rows(kScaled), scratch.rows(kTransformed));
    const float *belief = scratch.rows(kBelief), *back = scratch.rows(kBack);
    mean_field_backward_kernels().scale_rows(block.count(), lanes_, factors(term.forward.before, block), belief, false,
                                             scratch.rows(kSplatted));
    row_kernels().add_weight_gradient(
        term.forward, block, lanes_,
        {sliced, scratch.rows(kSplatted), term.from_q.blurred.data(), term.to_q.blurred.data(),
         term.scale * term.forward.scale, term.weight_grad.data()});
    float* normalization = term.normalization_grad.data() + block.begin;
    if (term.forward.after != nullptr)
      mean_field_backward_kernels().row_products(block.count(), lanes_, term.scale, sliced, scratch.rows(kFiltered),
                                                 normalization);
    if (term.forward.before != nullptr)
      mean_field_backward_kernels().row_products(block.count(), lanes_, 1.0f, back, belief, normalization);
  }

  void store_compat(const Term& term, double* out) const {
    const auto sum = [&](int64_t i) {
      double total = 0;
      for (const auto& chunk : term.compat_grad) total += chunk[i];
      return total;
    };
    const int64_t labels = labels_;
    for (int64_t l = 0; l < labels; ++l) {
      if (term.pairwise.kind == Compat::kPotts) *out -= sum(l);
      if (term.pairwise.kind == Compat::kDiagonal) out[l] += sum(l);
      for (int64_t m = 0; m < term.matrix_labels; ++m)
        out[l * labels + m] += 0.5 * (sum(l * lanes_ + m) + sum(m * lanes_ + l));
    }
  }

  // The normalisation depends on the weights, too: with factors n^-1 (n^-1/2), n what filtering makes of ones, dn is
  // -1 (-1/2) / n times the sum of each factor's gradient times the factor.
  void store_features(Term& term, const float* features, float* out) {
    const Lattice& lattice = term.lattice();
    if (term.pairwise.normalization != Normalization::kNone) {
      const bool root = term.pairwise.normalization == Normalization::kSymmetric;
      const float* norm = term.pairwise.norm.data();
      VertexRows ones, back;
      ones.prepare(lattice, 1), back.prepare(lattice, 1);
      const LatticeView view = lattice.view(Lattice::kSeveral, parallel_);
      for_blocks([&](int64_t, const PointBlock& block, Scratch& scratch) {
        float* grad = term.normalization_grad.data() + block.begin;
        for (int p = 0; p < block.count(); ++p) {
          const float factor = norm[block.begin + p];
          grad[p] *= root ? -0.5f * factor * factor : -factor;
        }
        std::fill_n(scratch.rows(0), block.count(), 1.0f);
        row_kernels().splat(view, block, 1, scratch.rows(0), ones.next.data());
        row_kernels().splat(view, block, 1, grad, back.next.data());
      });
      ones.blur(lattice, 1, false, parallel_), back.blur(lattice, 1, true, parallel_);
      for_blocks([&](int64_t, const PointBlock& block, Scratch& scratch) {
        std::fill_n(scratch.rows(0), block.count(), 1.0f);
        row_kernels().add_weight_gradient(
            view, block, 1,
            {term.normalization_grad.data() + block.begin, scratch.rows(0), ones.blurred.data(), back.blurred.data(),
             view.scale, term.weight_grad.data()});
      });
    }
    weights_to_features(lattice, features, term.weight_grad.data(), out, parallel_);
  }

  const VisitOrder& order_;
  Parallel& parallel_;
  const int labels_, lanes_;
  const bool need_features_, need_compat_;
  std::vector<std::unique_ptr<Term>> terms_;
  Buffer<float> energy_grad_, unary_grad_;  // [points][lanes]
};

}  // namespace

void DenseCrf::backward(int iterations, const float* grad, QHistory history, const std::vector<const float*>& features,
                        const CrfGradients& out, Parallel& parallel) {
  Beliefs beliefs(*this, iterations, history, parallel);
  // Gradients go through lattices: terms that have a stencil get one for the time.
  std::vector<std::unique_ptr<Pairwise>> with_lattice;
  std::vector<const Pairwise*> terms;
  for (const auto& one : pairwise_) {
    terms.push_back(one.get());
    if (one->stencil == nullptr) continue;
    const Buffer<float> grid = gaussian_features(order_->width, points_ / order_->width, 1, 1, parallel);
    with_lattice.push_back(std::make_unique<Pairwise>(std::make_shared<Kernel>(grid.data(), 2, order_, parallel),
                                                      one->compat.data(), one->kind, labels_, one->normalization,
                                                      parallel));
    terms.back() = with_lattice.back().get();
  }
  Backward backward(terms, *order_, labels_, out, parallel);
  backward.run(iterations, grad, beliefs);
  backward.store(features, out);
}

}  // namespace deeplab_fast
