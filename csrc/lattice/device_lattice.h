// Permutohedral lattices on a GPU: the tables that kernels read. Plain pointers, so that tests can fill them.
#pragma once

#include <cstdint>

namespace deeplab_fast {

// Lattices of a batch of images, as one lattice: images share no vertex. All pointers are to the device's memory.
// An entry is one of the D+1 vertices of a point: entry = point * corners + corner, point counting through the batch.
struct DeviceLattice {
  int32_t dimensions, corners;  // corners: D + 1
  int64_t images, points;       // points of one image
  int64_t entries;              // images * points * corners, less than 2^30
  int64_t capacity;             // vertices that there is memory for

  const int32_t* vertex_count;   // [1] how many there are
  const int32_t* vertex;         // [entries]
  const float* weight;           // [entries] barycentric coordinates; NaN where features are not valid
  const int32_t* sorted_vertex;  // [entries] the vertices of all entries, ascending,
  const int32_t* sorted_entry;   // [entries] and the entries in that order, ascending within a vertex
  const int32_t* neighbour;      // [corners][2][capacity] along each axis; -1: none
  const int32_t* untouched;      // [images * corners] vertices that exist though no point touches them; -1: none

  int64_t all_points() const { return images * points; }
};

}  // namespace deeplab_fast
