// The inner loops of mean-field inference and of its backward pass, compiled once per instruction set
// (mean_field_isa.cpp, mean_field_backward_isa.cpp).
#pragma once

#include <cstdint>

#include "crf/grid_stencil.h"
#include "lattice/row_kernels.h"
#include "lattice/visit_order.h"

namespace deeplab_fast {

// A pairwise term as the pixel pass sees it.
enum class Compat : int32_t { kPotts, kDiagonal, kMatrix };
struct PairwiseView : LatticeView {
  const float* blurred;        // rows, this iteration's filtered Q
  float* next;                 // rows, receives the splat of the new Q
  const StencilView* stencil;  // if there is no lattice; `blurred` and `next` are padded images of Q then
  Compat compat;
  const float* matrix;  // kDiagonal: [lanes]; kMatrix: [labels][lanes]; row l multiplies F(Q)_l
};

struct PixelPass {
  const PointBlock *blocks, *blocks_end;
  int32_t labels, lanes;        // lanes: labels rounded up to whole vectors
  const float* negative_unary;  // [points][lanes] in visiting order, the highest 0, padding very negative
  const float* highest;         // [points] in visiting order: what was subtracted for that
  const float* multiplicity;    // [lanes] labels a lane stands for, 0 in the padding; null: one each
  const PairwiseView* pairwise;
  int32_t pairwise_count;
  bool slice;       // add the pairwise terms (false: the start, Q = softmax(-U))
  bool splat;       // scatter the new Q into each pairwise term's `next`
  bool normalize;   // softmax (false: leave -U minus pairwise, for the KL divergence)
  bool attractive;  // no pairwise term lowers an energy: each pixel has one of 0 or more
  float* out;       // [points][out_labels] or null: where to store Q
  int32_t out_labels;
  const int32_t* lane_of_label;  // [out_labels] which lane a label is stored from; null: its own
  float* scratch;                // pixel_pass_scratch(lanes) floats
};

// Two labels under Potts compatibility: one scalar per vertex, see DenseCrf::binary_inference.
struct BinaryPass {
  const PointBlock *blocks, *blocks_end;
  const float* score;            // [points] in visiting order: what label 0 has over label 1 before the pairwise terms
  const PairwiseView* pairwise;  // Potts
  int32_t pairwise_count;
  bool slice, splat;
  float* out;  // [points][2] or null
};

struct MeanFieldKernels {
  const char* set;
  bool wide;  // vectors are so wide that a stencil takes less time than its lattice, with many labels, too
  int (*pixel_pass_scratch)(int lanes);
  void (*pixel_pass)(const PixelPass& pass);
  void (*binary_pass)(const BinaryPass& pass);
};
const MeanFieldKernels& mean_field_kernels();

// On rows [count][lanes] of a block.
struct MeanFieldBackwardKernels {
  const char* set;
  // energy_grad = -q * (grad - <grad, q>), the gradient of q = softmax(-energy)
  void (*softmax_backward)(int count, int lanes, const float* q, const float* grad, float* energy_grad);
  // to[p] = factor[p] * from[p] (factor null: 1), added to what is there if `add`
  void (*scale_rows)(int count, int lanes, const float* factor, const float* from, bool add, float* to);
  // to[p] = from[p] * matrix, of [labels][lanes]; or with labels 0, of a diagonal [lanes]
  void (*transform_rows)(int count, int labels, int lanes, const float* matrix, const float* from, float* to);
  // sums[p] += scale * <a[p], b[p]>
  void (*row_products)(int count, int lanes, float scale, const float* a, const float* b, float* sums);
  // sums[lane] = sum over p of a[p][lane] * b[p][lane]
  void (*lane_products)(int count, int lanes, const float* a, const float* b, float* sums);
  // sums[l][lane] = sum over p of a[p][l] * b[p][lane]
  void (*outer_products)(int count, int labels, int lanes, const float* a, const float* b, float* sums);
};
const MeanFieldBackwardKernels& mean_field_backward_kernels();

}  // namespace deeplab_fast
