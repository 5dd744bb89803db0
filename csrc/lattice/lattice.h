// The permutohedral lattice of one set of points: which vertices exist, which of them every point touches and with what
// weight, and who neighbours whom. Built once, used by every filtering with the same features.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "base/buffer.h"
#include "base/parallel.h"
#include "lattice/row_kernels.h"
#include "lattice/visit_order.h"

namespace deeplab_fast {

// One blur axis: vertices form chains of neighbours, and blurring a chain in place reads and writes each row once.
// `order` lists all chains of two or more vertices, one after another; the first of a chain is bit-complemented (< 0).
struct Chains {
  Buffer<int32_t> order;
  std::vector<int64_t> cuts;  // starts of the pieces that tasks take, each the start of a chain; and the end
};

// How coordinates of a vertex are packed into words of 64 bits: see vertex_key.h.
struct PackedKeys {
  std::vector<int64_t> low;
  std::vector<int> word, shift, bits;
  static constexpr int kPadding = 8;
  int words = 1;
  Buffer<uint64_t> keys;  // [vertices][words], ascending; and so many that are larger than all
};

struct Lattice {
  // features[d * points + i], float32. Throws std::invalid_argument for features that are not finite or too large.
  Lattice(const float* features, int dimensions, std::shared_ptr<const VisitOrder> order, Parallel& parallel);

  std::shared_ptr<const VisitOrder> order;
  int dimensions;
  int corners;  // vertices a point touches: dimensions + 1
  int64_t points;
  int64_t vertices = 0;
  int64_t extra = 0;

  // The points of a block, grouped by the simplex that they lie in; a block's simplices by how many points they have.
  std::vector<int64_t> first_simplex;  // [blocks + 1]
  Buffer<uint16_t> simplex_size;       // [simplices] points of the block
  // Vertices of a block are numbered in the order in which its simplices have them.
  Buffer<uint16_t> corner;              // [simplices][corners] numbers, if it has_numbered_corners()
  std::vector<int64_t> first_of_block;  // [blocks + 1] into the following two
  Buffer<int32_t> block_vertex;         // [vertices of each block], or [simplices][corners] if it has not
  // Points are splatted in chunks, by several threads at once. The first chunk to touch a vertex owns its row; another
  // chunk has an extra row (numbered from `vertices` up) that is added to the vertex's row afterwards, in chunk order.
  // The first splat into a row, in visiting order, has its number complemented (< 0): it sets the row, the others add.
  Buffer<int32_t> block_row;        // as block_vertex: the vertex, or the chunk's extra row for it
  Buffer<uint16_t> place;           // [points] simplex after simplex: a point's place in its block
  Buffer<float> weight;             // [points][corners] in that order: barycentric coordinates; and kWeightPadding
  Buffer<int32_t> extra_vertex;     // [extra] ascending
  std::vector<int32_t> empty_rows;  // rows of vertices that no point touches
  Buffer<int32_t> neighbour;        // [corners][2][vertices] previous and next along each axis, or none()
  // Of two dimensions: vertices lie on lines of constant field 0 (vertex_key.h), in the order of their numbers, and a
  // step along an axis leads one or two lines on. So all three blurs can follow each other a few lines apart.
  std::vector<int64_t> line_start;  // [lines + 1] first vertex
  PackedKeys packed;

  bool has_numbered_corners() const { return corners <= kMostNumberedCorners; }
  int64_t rows() const { return vertices + extra; }
  // Floats of a buffer for all rows; a last row stands for vertices that there are not.
  int64_t row_floats(int lanes) const { return (rows() + 1) * lanes; }
  int32_t none() const { return static_cast<int32_t>(rows()); }
  const int32_t* previous(int64_t axis) const { return neighbour.data() + 2 * axis * vertices; }
  const int32_t* next(int64_t axis) const { return previous(axis) + vertices; }
  // [corners], made when rows of several lanes are blurred first; not for two dimensions.
  const std::vector<Chains>& chains(Parallel& parallel) const;
  // For rows of so many channels; gradients to the weights take the rows of kSeveral.
  static constexpr int64_t kSeveral = 2;
  LatticeView view(int64_t channels, Parallel& parallel) const;
  // [points][corners], in the order of the points.
  void unpack_vertices(int32_t* out) const;
  void unpack_weights(float* out) const;
  // [vertices][dimensions] coordinates (the last one, minus their sum, is left out) and [corners][2][vertices]
  // neighbours.
  void unpack_keys(int32_t* keys) const;
  void neighbours(int32_t* out) const;

 private:
  // Calls body(block, point, simplex, position), the point's position among the points simplex after simplex.
  template <class Body>
  void each_point(Body&& body) const {
    for (const PointBlock& block : order->blocks) {
      int64_t position = block.begin;
      for (int64_t simplex = first_simplex[block.number]; simplex < first_simplex[block.number + 1]; ++simplex)
        for (int left = simplex_size[simplex]; left > 0; --left, ++position)
          body(block.number, block.point(place[position]), simplex, position);
    }
  }

  // Made when they are needed first: a single channel takes neither.
  struct SimplexRows {
    Buffer<int32_t> vertex, row;  // [simplices][corners]
  };
  const SimplexRows& simplex_rows(Parallel& parallel) const;

  mutable std::once_flag chains_made_, simplex_rows_made_;
  mutable std::vector<Chains> chains_;
  mutable SimplexRows simplex_rows_;
};

// Call before splatting: clears the rows that no splat will set; single values all, which are only added to.
void clear_rows(const Lattice& lattice, int lanes, float* rows);

// Sums the chunks' extra rows into their vertices, then blurs along all axes (in reverse order: the adjoint). `spare`
// is a buffer of the same size, or empty (it is allocated if needed); its content is lost.
void fold_and_blur(const Lattice& lattice, int lanes, Buffer<float>& rows, Buffer<float>& spare, bool reverse,
                   Parallel& parallel);

// Values on the vertices of one lattice: what is sliced from now, and what is splatted to be sliced next.
struct VertexRows {
  Buffer<float> blurred, next;

  // Call before splatting into `next`.
  void prepare(const Lattice& lattice, int lanes) {
    if (next.size() == 0) next.reset(lattice.row_floats(lanes));
    clear_rows(lattice, lanes, next.data());
  }
  // What was splatted becomes what is sliced.
  void blur(const Lattice& lattice, int lanes, bool reverse, Parallel& parallel) {
    fold_and_blur(lattice, lanes, next, blurred, reverse, parallel);
    std::swap(next, blurred);
  }
};

// The filter A, its adjoint A' (axes blurred in reverse order), or A + A', which splats and slices once.
enum class Blur { kForward, kReverse, kBothWays };

// out[c][i] = the lattice's Gaussian filter of values[c][i], both with `points` columns, with the factors that `view`
// has (lattice.view(channels, parallel): none but slice_scale). `out` may be `values`.
void filter(const Lattice& lattice, const LatticeView& view, const float* values, int64_t channels, Blur blur,
            float* out, Parallel& parallel);

// Gradients to features, features[d * points + i] (those of the lattice), in backward.cpp.
// feature_grad[d * points + i] = d loss / d features, from weight_grad[points][corners] = d loss / d weight (the
// barycentric weights).
void weights_to_features(const Lattice& lattice, const float* features, const float* weight_grad, float* feature_grad,
                         Parallel& parallel);
// The same from grad[c][i] = d loss / d out, of out = filter(values).
void filter_backward_features(const Lattice& lattice, const float* features, const float* grad, const float* values,
                              int64_t channels, bool reverse, float* feature_grad, Parallel& parallel);

}  // namespace deeplab_fast
