// CUDA kernels between points and vertices of a lattice: splat, blur, slice, of rows of labels. Vertex rows are float
// or 16 bits wide, sums are in float. No atomics: a sum's terms come in one order, whoever computes it.
#pragma once

#include "cuda/common.cuh"
#include "lattice/device_lattice.h"
#include "lattice/normalization.h"

namespace deeplab_fast {
namespace {

// Splatting is a sum over each vertex's entries. As a vertex may have one entry or all of them, sorted entries are cut
// into pieces of this many, a group of threads each. A vertex whose entries lie in one piece is done with it; of one
// that is cut, the piece where it begins sets its row, and later ones leave their sums in `carried`, to be added after.
// Each image is cut on its own (its entries follow each other when sorted), so a batch gives the bits of its images.
constexpr int kPiece = 64;

__host__ __device__ inline int64_t pieces_of(const DeviceLattice& lattice) {
  return lattice.images * ((lattice.points * lattice.corners + kPiece - 1) / kPiece);
}

struct Piece {
  int64_t begin, end;
};
__device__ inline Piece piece_at(const DeviceLattice& lattice, int64_t piece) {
  const int64_t of_image = lattice.points * lattice.corners, pieces = (of_image + kPiece - 1) / kPiece;
  const int64_t image = piece / pieces, begin = image * of_image + (piece - image * pieces) * kPiece;
  const int64_t end = begin + kPiece, last = (image + 1) * of_image;
  return {begin, end < last ? end : last};
}

// rows[vertex] = sum of weight * factor * source[point]; carried: [pieces][labels]. factor: [points] or null.
template <class Source, class Row>
__global__ void splat_kernel(DeviceLattice lattice, int labels, const float* factor, const Source* source, Row* rows,
                             float* carried) {
  const int group = group_of(labels);
  const int64_t pieces = pieces_of(lattice), blocks = (labels + group - 1) / group;
  for (int64_t i = first_item(); i < pieces * blocks * group; i += item_step()) {
    const int64_t piece = i / group % pieces;
    const int label = static_cast<int>(i / group / pieces) * group + static_cast<int>(i % group);
    if (label >= labels) continue;
    const auto [begin, end] = piece_at(lattice, piece);
    int32_t vertex = lattice.sorted_vertex[begin];
    bool is_carried = begin > 0 && lattice.sorted_vertex[begin - 1] == vertex;
    float sum = 0.0f;
    for (int64_t at = begin; at < end; ++at) {
      const int32_t next = lattice.sorted_vertex[at], entry = lattice.sorted_entry[at];
      if (next != vertex) {
        if (is_carried)
          carried[piece * labels + label] = sum;
        else
          store(rows + vertex * int64_t{labels} + label, sum);
        vertex = next, is_carried = false, sum = 0.0f;
      }
      const int64_t point = entry / lattice.corners;
      const float value = float_of(source[point * labels + label]);
      sum += lattice.weight[entry] * (factor == nullptr ? value : factor[point] * value);
    }
    if (is_carried)
      carried[piece * labels + label] = sum;
    else
      store(rows + vertex * int64_t{labels} + label, sum);
  }
}

// Adds what pieces have carried to the vertex of the piece before them, and clears vertices without entries. To keep
// 16-bit rows from rounding at every piece, the sum starts from the first piece's own, computed again.
template <class Source, class Row>
__global__ void add_carried_kernel(DeviceLattice lattice, int labels, const float* factor, const Source* source,
                                   Row* rows, const float* carried) {
  const int64_t pieces = pieces_of(lattice), phantoms = lattice.images * lattice.corners;
  for (int64_t i = first_item(); i < (pieces + phantoms) * labels; i += item_step()) {
    const int64_t piece = i / labels;
    const int label = static_cast<int>(i - piece * labels);
    if (piece >= pieces) {
      const int32_t vertex = lattice.untouched[piece - pieces];
      if (vertex >= 0) store(rows + vertex * int64_t{labels} + label, 0.0f);
      continue;
    }
    const auto [begin, end] = piece_at(lattice, piece);
    if (end == lattice.entries) continue;
    const int32_t vertex = lattice.sorted_vertex[end - 1];
    const bool goes_on = lattice.sorted_vertex[end] == vertex;
    const bool begins_here =
        lattice.sorted_vertex[begin] != vertex || begin == 0 || lattice.sorted_vertex[begin - 1] != vertex;
    if (!goes_on || !begins_here) continue;
    float sum = 0.0f;
    for (int64_t at = begin; at < end; ++at) {
      if (lattice.sorted_vertex[at] != vertex) continue;
      const int32_t entry = lattice.sorted_entry[at];
      const int64_t point = entry / lattice.corners;
      const float value = float_of(source[point * labels + label]);
      sum += lattice.weight[entry] * (factor == nullptr ? value : factor[point] * value);
    }
    for (int64_t later = piece + 1; later < pieces; ++later) {
      if (lattice.sorted_vertex[piece_at(lattice, later).begin] != vertex) break;
      sum += carried[later * labels + label];
    }
    store(rows + vertex * int64_t{labels} + label, sum);
  }
}

// to[v] = from[v] + (from[one neighbour] + from[the other]) / 2 along one axis.
template <class Row>
__global__ void blur_kernel(DeviceLattice lattice, int axis, int labels, const Row* from, Row* to) {
  const int group = group_of(labels);
  const int32_t* one = lattice.neighbour + int64_t{axis} * 2 * lattice.capacity;
  const int32_t* other = one + lattice.capacity;
  const int64_t items = int64_t{*lattice.vertex_count} * group;
  for (int64_t i = first_item(); i < items; i += item_step()) {
    const int64_t vertex = i / group;
    const int32_t up = one[vertex], down = other[vertex];
    for (int label = static_cast<int>(i % group); label < labels; label += group) {
      const float high = up < 0 ? 0.0f : float_of(from[up * int64_t{labels} + label]);
      const float low = down < 0 ? 0.0f : float_of(from[down * int64_t{labels} + label]);
      store(to + vertex * labels + label, float_of(from[vertex * labels + label]) + 0.5f * (high + low));
    }
  }
}

// Sum over a point's vertices.
template <class Row>
__device__ inline float slice(const int32_t* vertex, const float* weight, int corners, int labels, int label,
                              const Row* rows) {
  float sum = 0.0f;
  for (int corner = 0; corner < corners; ++corner)
    sum += weight[corner] * float_of(rows[vertex[corner] * int64_t{labels} + label]);
  return sum;
}

// out[point] = scale * factor * slice, added to what is there if `add`; factor: [points] or null.
template <class Row>
__global__ void slice_kernel(DeviceLattice lattice, int labels, float scale, const float* factor, const Row* rows,
                             bool add, float* out) {
  const int group = group_of(labels);
  for (int64_t i = first_item(); i < lattice.images * lattice.points * group; i += item_step()) {
    const int64_t point = i / group;
    const int32_t* vertex = lattice.vertex + point * lattice.corners;
    const float* weight = lattice.weight + point * lattice.corners;
    const float scaled = factor == nullptr ? scale : scale * factor[point];
    for (int label = static_cast<int>(i % group); label < labels; label += group) {
      const float value = scaled * slice(vertex, weight, lattice.corners, labels, label, rows);
      out[point * labels + label] = add ? out[point * labels + label] + value : value;
    }
  }
}

// From what filtering makes of ones to the factors of a normalisation.
__global__ void normalization_kernel(int64_t points, bool root, float* ones) {
  for (int64_t i = first_item(); i < points; i += item_step()) ones[i] = normalization_factor(ones[i], root);
}

__global__ void fill_kernel(int64_t count, float value, float* out) {
  for (int64_t i = first_item(); i < count; i += item_step()) out[i] = value;
}

// Maps (N, K, P) to rows (N * P, K), times a factor, and back.
template <class Element>
__global__ void rows_of_maps_kernel(int64_t images, int labels, int64_t points, float scale, const Element* maps,
                                    float* rows) {
  for (int64_t i = first_item(); i < images * labels * points; i += item_step()) {
    const int64_t map = i / points, image = map / labels;
    const int64_t point = image * points + (i - map * points);
    rows[point * labels + (map - image * labels)] = scale * float_of(maps[i]);
  }
}
template <class Element>
__global__ void maps_of_rows_kernel(int64_t images, int labels, int64_t points, const float* rows, Element* maps) {
  for (int64_t i = first_item(); i < images * labels * points; i += item_step()) {
    const int64_t map = i / points, image = map / labels;
    const int64_t point = image * points + (i - map * points);
    store(maps + i, rows[point * labels + (map - image * labels)]);
  }
}

// weight_grad[entry] += scale * (<sliced[point], blurred[vertex]> + <splatted[point], back[vertex]>)
__global__ void weight_grad_kernel(DeviceLattice lattice, int labels, float scale, const float* sliced,
                                   const float* splatted, const float* blurred, const float* back, float* weight_grad) {
  const int group = group_of(labels);
  const GroupItem item = group_item(lattice.entries, group);
  for (int64_t at = item.item; at < item.rounded; at += item.step) {
    const int64_t entry = at < lattice.entries ? at : lattice.entries - 1;
    const int64_t point = entry / lattice.corners * labels, vertex = int64_t{lattice.vertex[entry]} * labels;
    float sum = 0.0f;
    for (int label = item.lane; label < labels; label += group)
      sum += sliced[point + label] * blurred[vertex + label] + splatted[point + label] * back[vertex + label];
    sum = group_sum(sum, group);
    if (at < lattice.entries && item.lane == 0) weight_grad[entry] += scale * sum;
  }
}

}  // namespace
}  // namespace deeplab_fast
