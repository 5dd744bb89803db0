// The wide inner loops, compiled once per instruction set from the same sources (geometry_isa.cpp, panel_isa.cpp,
// rows_isa.cpp, mean_field_isa.cpp) and chosen at run time. Everything behind this table works on one range of one
// task; the callers cut the ranges and own the memory.
#pragma once

#include <cstdint>

#include "panel.h"
#include "visit_order.h"

namespace deeplab_fast {

// Points located by one call of `locate`.
constexpr int kPointBlock = VisitOrder::kTile;

struct SimplexBlock {
  int32_t* cell;   // [D+1][kPointBlock]
  int32_t* rank;   // [D+1][kPointBlock]
  float* delta;    // [D+1][kPointBlock]
  float* scratch;  // [5 (D+1)][kLocateLanes], aligned to 64 bytes

  static constexpr int kLocateLanes = 8;
  // Floats for all four, in one aligned block.
  static int64_t size(int D) { return int64_t{D + 1} * (3 * kPointBlock + 5 * kLocateLanes); }
  static SimplexBlock in(float* memory, int D) {
    const int64_t each = int64_t{D + 1} * kPointBlock;
    auto* ints = reinterpret_cast<int32_t*>(memory);
    return {ints, ints + each, memory + 2 * each, memory + 3 * each};
  }
};

struct FeatureRange {
  float low, high;
  bool finite;
};

// One pairwise kernel as the pixel pass sees it. A row is `lanes` floats, one vertex's labels.
enum class Compat : int32_t { kPotts, kDiagonal, kMatrix };
struct Taps {
  int32_t count;          // vertices a point touches, D+1
  bool scattered;         // there are nearly as many vertices as points: neighbouring points share few
  const int32_t* vertex;  // [points][count] row to slice from
  const int32_t* row;     // [points][count] row to splat into; complemented (< 0) where it is the first to do so
  const float* weight;    // [points][count] barycentric
  const float* before;    // [points] factor before the splat, or null
  const float* after;     // [points] factor after the slice, or null
  const float* blurred;   // rows, this iteration's filtered Q
  float* next;            // rows, receives the splat of the new Q
  Compat compat;
  float scale;          // Potts: compat weight and slice scale; else the slice scale
  const float* matrix;  // kDiagonal: [lanes]; kMatrix: [labels][lanes]; row l multiplies F(Q)_l
};

// Blur of consecutive vertices along one axis, out of place. Vertex v is at base + v * stride in each of the buffers.
struct BlurRow {
  int64_t begin, end;              // vertices
  const int32_t *previous, *next;  // [vertices] neighbours, < 0: none
  const float *centre_base, *previous_base, *next_base;
  int64_t in_stride;
  float* out_base;
  int64_t out_stride;
  int32_t lanes;
};

struct PixelPass {
  const PointTile *tiles, *tiles_end;
  int32_t labels, lanes;        // lanes: labels rounded up to whole vectors
  const float* negative_unary;  // [points][lanes], padding very negative
  const float* multiplicity;    // [lanes] labels a lane stands for, 0 in the padding
  const Taps* kernels;
  int32_t kernel_count;
  bool slice;      // add the pairwise terms (false: the start, Q = softmax(-U))
  bool splat;      // scatter the new Q into each kernel's `next`
  bool normalize;  // softmax (false: leave -U minus pairwise, for the KL divergence)
  float* out;      // [points][out_labels] or null: where to store Q
  int32_t out_labels;
  const int32_t* lane_of_label;  // [out_labels] which lane a label is stored from; null: its own
  float* scratch;                // pixel_pass_scratch(lanes) floats
};

// Two labels under Potts compatibility: one scalar per vertex, see DenseCrf::binary_inference.
struct BinaryPass {
  const PointTile *tiles, *tiles_end;
  const float* score;   // [points] what label 0 has over label 1 before the pairwise terms
  const Taps* kernels;  // Potts
  int32_t kernel_count;
  bool slice, splat;
  float* out;  // [points][2] or null
};

// What a tile of points adds to the gradients of one pairwise term. Rows are [count][lanes].
struct WeightGradient {
  const float* sliced;    // rows: the gradient to what is sliced
  const float* splatted;  // rows: what was splatted
  const float* blurred;   // vertex rows: filtered, of what was splatted
  const float* back;      // vertex rows: filtered in reverse, of the gradient
  float scale;
  float* weight_grad;  // [points][taps.count], added to
};

struct Isa {
  const char* name;
  // features[d * stride + i], i in [begin, begin + count), count <= kPointBlock
  void (*locate)(int dimensions, const float* features, int64_t stride, int64_t begin, int count, const float* scale,
                 SimplexBlock out);
  FeatureRange (*feature_range)(const float* values, int64_t count);
  // rows[row[p][j]] += weight[p][j] * before[p] * source[p], or = at the first splat into that row
  void (*splat)(const Taps& taps, PointTile tile, int lanes, const float* source, float* rows);
  // out[p] = scale * after[p] * sum_j weight[p][j] * rows[vertex[p][j]]
  void (*slice)(const Taps& taps, PointTile tile, int lanes, const float* rows, float* out);
  // Blurs chains in place (see Lattice::Chains); `lanes` of a row of `stride` floats.
  void (*blur)(const int32_t* chain, int64_t count, int lanes, int64_t stride, float* rows);
  void (*blur_row)(const BlurRow& row);
  // rows[target[i]] += rows[first + i], for i in [begin, end)
  void (*fold)(const int32_t* target, int64_t begin, int64_t end, int64_t first, int lanes, float* rows);
  int (*pixel_pass_scratch)(int lanes);
  void (*pixel_pass)(const PixelPass& pass);
  void (*binary_pass)(const BinaryPass& pass);
  // The backward pass, on rows [count][lanes] of a tile (mean_field_backward_isa.cpp).
  // energy_grad = -q * (grad - <grad, q>), the gradient of q = softmax(-energy)
  void (*softmax_backward)(int count, int lanes, const float* q, const float* grad, float* energy_grad);
  // to[p] = factor[p] * from[p] (factor null: 1), added to what is there if `add`
  void (*scale_rows)(int count, int lanes, const float* factor, const float* from, bool add, float* to);
  // to[p] = from[p] * matrix, of [labels][lanes]; or with labels 0, of a diagonal [lanes]
  void (*transform_rows)(int count, int labels, int lanes, const float* matrix, const float* from, float* to);
  // sums[p] += scale * <a[p], b[p]>
  void (*row_products)(int count, int lanes, float scale, const float* a, const float* b, float* sums);
  // sums[lane] = sum over p of a[p][lane] * b[p][lane]; sums[l][lane] = sum over p of a[p][l] * b[p][lane]
  void (*lane_products)(int count, int lanes, const float* a, const float* b, float* sums);
  void (*outer_products)(int count, int labels, int lanes, const float* a, const float* b, float* sums);
  void (*add_weight_gradient)(const Taps& taps, PointTile tile, int lanes, const WeightGradient& gradient);
  const PanelShape* panel_shape;
  void (*panel_product)(const PanelProduct& product);
  void (*dot_product)(const DotProduct& product);
  void (*add_lanes)(const float* sums, int64_t count, float* out);
};

// The best table this processor runs, or the one the environment variable DEEPLAB_FAST_ISA names
// (baseline, avx2, avx512). Throws std::invalid_argument when that one is unknown or not to be had.
const Isa& isa();

// Floats in a row of `channels` values: whole vectors on every instruction set.
inline int row_lanes(int channels) {
  if (channels <= 1) return 1;
  if (channels <= 4) return 4;
  return (channels + 7) / 8 * 8;
}

}  // namespace deeplab_fast
