// The inner loops over rows of vertices, compiled once per instruction set (rows_isa.cpp). A row is `lanes` floats, one
// vertex's labels or channels. Each kernel works on one range of one task; the callers cut the ranges and own the
// memory.
#pragma once

#include <cstdint>

#include "lattice/visit_order.h"

namespace deeplab_fast {

// Floats in a row of `channels` values: whole vectors on every instruction set.
inline int row_lanes(int channels) {
  if (channels <= 1) return 1;
  if (channels <= 4) return 4;
  return (channels + 7) / 8 * 8;
}

// Floats beyond the last point's weights that are read with them.
constexpr int kWeightPadding = 8;

// With as many corners the vertices of a block are numbered, for rows of one lane.
constexpr int kMostNumberedCorners = 8;

// A lattice as splat and slice see it. The points of a block that lie in one simplex follow each other, so that the
// rows of its D+1 vertices (their corners) are read or written once for all of them.
struct LatticeView {
  int32_t corners;
  bool scattered;                // there are nearly as many vertices as points: first splats are frequent
  const int64_t* first_simplex;  // [blocks + 1]
  const uint16_t* size;          // [simplices] points of the block that lie in it
  // Several lanes, or many corners:
  const int32_t* vertex;  // [simplices][corners] row to slice from
  const int32_t* row;     // [simplices][corners] row to splat into; complemented (< 0) if the first to do so
  // One lane and few corners, whose rows are added to only:
  const uint16_t* corner;                   // [simplices][corners] number among the block's vertices
  const int64_t* first_of_block;            // [blocks + 1] of those vertices:
  const int32_t *block_vertex, *block_row;  // their rows to slice from and to splat into; complemented or not
  const uint16_t* place;                    // [points] simplex after simplex: the point's place in its block
  const float* weight;  // [points][corners] simplex after simplex: barycentric; kWeightPadding more are read
  const float* before;  // [points] in visiting order: factor before the splat, or null
  const float* after;   // [points] in visiting order: factor after the slice, or null
  float scale;          // of the slice, and of a Potts compatibility
};

// Blur of consecutive vertices along one axis, out of place. Vertex v is at base + v * stride in each of the buffers.
struct BlurRow {
  int64_t begin, end;              // vertices
  const int32_t *previous, *next;  // [vertices] neighbours, or `none`
  int32_t none;
  const float *centre_base, *previous_base, *next_base;
  int64_t in_stride;
  float* out_base;
  int64_t out_stride;
  int32_t lanes;
};

// What a block of points adds to the gradient of a loss to the barycentric weights. Rows are [count][lanes].
struct WeightGradient {
  const float* sliced;    // rows: the gradient to what is sliced
  const float* splatted;  // rows: what was splatted
  const float* blurred;   // vertex rows: filtered, of what was splatted
  const float* back;      // vertex rows: filtered in reverse, of the gradient
  float scale;
  float* weight_grad;  // [points][corners] simplex after simplex, added to
};

struct RowKernels {
  const char* set;
  // Of the points p of a block: rows[row[p][j]] += weight[p][j] * before[p] * source[p], or = at the first splat
  void (*splat)(const LatticeView& view, const PointBlock& block, int lanes, const float* source, float* rows);
  // out[p] = scale * after[p] * sum_j weight[p][j] * rows[vertex[p][j]]
  void (*slice)(const LatticeView& view, const PointBlock& block, int lanes, const float* rows, float* out);
  // Blurs chains in place (see Lattice::Chains); `lanes` of a row of `stride` floats.
  void (*blur)(const int32_t* chain, int64_t count, int lanes, int64_t stride, float* rows);
  void (*blur_row)(const BlurRow& row);
  // Rows of one lane: out[v] = in[v] + (in[previous[v]] + in[next[v]]) / 2, for v in [begin, end).
  void (*blur_values)(const int32_t* previous, const int32_t* next, int64_t begin, int64_t end, const float* in,
                      float* out);
  // rows[target[i]] += rows[first + i], for i in [begin, end)
  void (*fold)(const int32_t* target, int64_t begin, int64_t end, int64_t first, int lanes, float* rows);
  void (*add_weight_gradient)(const LatticeView& view, const PointBlock& block, int lanes,
                              const WeightGradient& gradient);
};
const RowKernels& row_kernels();

}  // namespace deeplab_fast
