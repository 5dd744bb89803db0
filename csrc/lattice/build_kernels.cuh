// CUDA kernels that build the permutohedral lattices of a batch. No launch in here, so that tests run them on the host.
//
//   1. every point finds its simplex, and writes down the keys of its vertices;
//   2. every entry (a point's vertex) looks for its key in a hash table, whose slots hold the smallest entry of a key;
//   3. these entries are counted through, which numbers the vertices in the order of their first points;
//   4. every entry gets its vertex's number, and every vertex its neighbours'.
// No result depends on the order in which threads come by. Compiled with -fmad=false: see geometry.h.
#pragma once

#include "cuda/common.cuh"
#include "lattice/device_lattice.h"
#include "lattice/geometry.h"

namespace deeplab_fast {
namespace {

constexpr int32_t kEmpty = 0x7f7f7f7f;            // more than any entry; what memset writes with 0x7f
constexpr int32_t kNotFinite = 1, kOverflow = 2;  // bits of the status

// What building works on. When points are no multiple of 4, pydensecrf embeds another point at feature 0 (see
// build.cpp): the entries of such phantoms, one point an image, follow those of all points.
struct LatticeBuild {
  const float* features;  // [images][dimensions][points]
  int32_t dimensions, corners, key_stride;
  int64_t images, points, phantoms;   // phantoms: of an image, 0 or 1
  int64_t table;                      // slots of one image, a power of two
  float scale[kMaxDeviceDimensions];  // embedding_scale

  float* weight;           // [entries]
  int16_t* keys;           // [all entries][key_stride], coordinates 0..D-1, then zeros
  int32_t* status;         // [1]
  int32_t* slots;          // [images][table]
  int32_t* slot_of_entry;  // [all entries] within the image's table
  int32_t* number;         // [all entries + 1] first 1 for a vertex's smallest entry, else 0; then how many come before
  int32_t* owner;          // [vertices] their smallest entries
  int32_t* vertex;         // [entries]
  int32_t* neighbour;      // [corners][2][capacity]
  int32_t* untouched;      // [images * corners]
  int64_t capacity;

  __host__ __device__ int64_t entries() const { return images * points * corners; }
  __host__ __device__ int64_t all_entries() const { return entries() + images * phantoms * corners; }
  __host__ __device__ int64_t image_of(int64_t entry) const {
    return entry < entries() ? entry / (points * corners) : (entry - entries()) / corners;
  }
};

// 1. A thread a point.
template <int kD>
__global__ void locate_points_kernel(LatticeBuild build) {
  constexpr int kMost = kD > 0 ? kD : kMaxDeviceDimensions;
  const int D = kD > 0 ? kD : build.dimensions;
  const int64_t real = build.images * build.points, count = real + build.images * build.phantoms;
  for (int64_t point = first_item(); point < count; point += item_step()) {
    float feature[kMost], cell[kMost + 1], rank[kMost + 1], delta[kMost + 1], elevated[kMost + 1];
    const int64_t image = point < real ? point / build.points : 0;
    const float* from = build.features + image * D * build.points + (point - image * build.points);
    bool finite = true, in_range = true;
#pragma unroll
    for (int d = 0; d < D; ++d) {
      feature[d] = point < real ? from[d * build.points] : 0.0f;
      finite = finite && feature[d] * 0.0f == 0.0f;
    }
    locate_simplex<kD, float>(feature, build.scale, D, cell, rank, delta, elevated);
    constexpr float kLimit = kMaxKey;
#pragma unroll
    for (int i = 0; i <= D; ++i) in_range = in_range && fabsf(cell[i]) * (D + 1) <= kLimit - (D + 1);
    int16_t* keys = build.keys + point * (D + 1) * build.key_stride;
    if (!finite || !in_range) {
      atomicOr(build.status, finite ? kOverflow : kNotFinite);
      for (int i = 0; i < (D + 1) * build.key_stride; ++i) keys[i] = 0;
      for (int k = 0; k <= D; ++k) build.weight[point * (D + 1) + k] = nanf("");
      continue;
    }
    for (int k = 0; k <= D; ++k) {
      // The weight is the difference of the coordinates of ranks D-k and D-k+1 (barycentric_weights).
      float here = 0.0f, next = 0.0f;
      // A key is stored 16 bytes at a time: every store of a warp goes out on its own.
      uint32_t pairs[(kMost + 7) / 8 * 4] = {};
#pragma unroll
      for (int i = 0; i <= D; ++i) {
        const int r = static_cast<int>(rank[i]);
        here = r == D - k ? delta[i] : here;
        next = r == (k == 0 ? 0 : D - k + 1) ? delta[i] : next;
        // The canonical simplex: vertex k adds k, or k - (D+1) to the coordinates of the last k ranks.
        const int coordinate = static_cast<int>(cell[i]) * (D + 1) + k - (r > D - k ? D + 1 : 0);
        if (i < D) pairs[i / 2] |= static_cast<uint32_t>(static_cast<uint16_t>(coordinate)) << (i % 2 * 16);
      }
      auto* to = reinterpret_cast<uint4*>(keys + k * build.key_stride);
#pragma unroll
      for (int i = 0; i < (D + 7) / 8; ++i)
        store(to + i, {pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]});
      const float weight = k == 0 ? here + (1.0f - next) : here - next;
      if (point < real) build.weight[point * (D + 1) + k] = weight;
    }
  }
}

// A key in memory, and the one a step along an axis from it.
struct StoredKey {
  const int16_t* key;
  __device__ int32_t operator()(int i) const { return key[i]; }
};
struct SteppedKey {
  const int16_t* key;
  int axis, dimensions, sign;
  // A step changes the axis's coordinate by D, and all others by 1, the other way.
  __device__ int32_t operator()(int i) const { return key[i] + sign * (i == axis ? dimensions : -1); }
};

template <class Key>
__device__ inline uint32_t hash_of(const Key& key, int dimensions) {
  uint32_t hash = 0;
  for (int i = 0; i < dimensions; ++i) hash = (hash ^ static_cast<uint32_t>(key(i))) * 0x9E3779B1u;
  hash ^= hash >> 15;
  return (hash * 0x85EBCA6Bu) ^ (hash >> 13);
}
template <class Key>
__device__ inline bool same_key(const Key& key, const int16_t* other, int dimensions) {
  bool same = true;
  for (int i = 0; i < dimensions; ++i) same = same && key(i) == other[i];
  return same;
}

// 2. A thread an entry. A slot once taken stays with its key, so whoever finds the same key there lowers its entry.
__global__ void insert_keys_kernel(LatticeBuild build) {
  for (int64_t entry = first_item(); entry < build.all_entries(); entry += item_step()) {
    const StoredKey key{build.keys + entry * build.key_stride};
    int32_t* slots = build.slots + build.image_of(entry) * build.table;
    const uint32_t last = static_cast<uint32_t>(build.table - 1);
    uint32_t slot = hash_of(key, build.dimensions) & last;
    const int32_t own = static_cast<int32_t>(entry);
    while (true) {
      // Most entries find their key there, held by a smaller one: they need no atomic operation.
      int32_t held = slots[slot];
      if (held == kEmpty) held = atomicCAS(slots + slot, kEmpty, own);
      if (held == kEmpty) break;
      if (same_key(key, build.keys + held * int64_t{build.key_stride}, build.dimensions)) {
        if (held > own) atomicMin(slots + slot, own);
        break;
      }
      slot = (slot + 1) & last;
    }
    build.slot_of_entry[entry] = static_cast<int32_t>(slot);
  }
}

// 3. Marks the smallest entries; a scan then numbers them.
__global__ void mark_owners_kernel(LatticeBuild build) {
  for (int64_t entry = first_item(); entry <= build.all_entries(); entry += item_step()) {
    if (entry == build.all_entries()) {
      build.number[entry] = 0;  // to become the number of vertices
      continue;
    }
    const int64_t slot = build.image_of(entry) * build.table + build.slot_of_entry[entry];
    build.number[entry] = build.slots[slot] == entry;
  }
}

// 4. `number` counts owners before each entry now.
__global__ void number_entries_kernel(LatticeBuild build) {
  for (int64_t entry = first_item(); entry < build.all_entries(); entry += item_step()) {
    const int64_t slot = build.image_of(entry) * build.table + build.slot_of_entry[entry];
    const int32_t owner = build.slots[slot], vertex = build.number[owner];
    if (owner == entry) build.owner[vertex] = owner;
    if (entry < build.entries())
      build.vertex[entry] = vertex;
    else
      build.untouched[entry - build.entries()] = owner == entry ? vertex : -1;
  }
}

// A thread a vertex and axis.
__global__ void find_neighbours_kernel(LatticeBuild build, const int32_t* vertex_count) {
  const int64_t items = int64_t{*vertex_count} * build.corners;
  for (int64_t item = first_item(); item < items; item += item_step()) {
    const int64_t vertex = item / build.corners;
    const int axis = static_cast<int>(item - vertex * build.corners);
    const int64_t owner = build.owner[vertex];
    const int32_t* slots = build.slots + build.image_of(owner) * build.table;
    const uint32_t last = static_cast<uint32_t>(build.table - 1);
    for (int side = 0; side < 2; ++side) {
      const SteppedKey key{build.keys + owner * build.key_stride, axis, build.dimensions, side == 0 ? 1 : -1};
      uint32_t slot = hash_of(key, build.dimensions) & last;
      int32_t found = -1;
      while (slots[slot] != kEmpty) {
        const int32_t held = slots[slot];
        if (same_key(key, build.keys + held * int64_t{build.key_stride}, build.dimensions)) {
          found = build.number[held];
          break;
        }
        slot = (slot + 1) & last;
      }
      build.neighbour[(int64_t{axis} * 2 + side) * build.capacity + vertex] = found;
    }
  }
}

// For the sort of entries by vertex.
__global__ void count_entries_kernel(int64_t entries, int32_t* entry) {
  for (int64_t i = first_item(); i < entries; i += item_step()) entry[i] = static_cast<int32_t>(i);
}

// From gradients to the weights, [entries], to those to the features: a thread a point.
template <int kD>
__global__ void weights_to_features_kernel(LatticeBuild build, const float* weight_grad, float* feature_grad) {
  constexpr int kMost = kD > 0 ? kD : kMaxDeviceDimensions;
  const int D = kD > 0 ? kD : build.dimensions;
  for (int64_t point = first_item(); point < build.images * build.points; point += item_step()) {
    float feature[kMost], cell[kMost + 1], rank[kMost + 1], delta[kMost + 1], elevated[kMost + 1];
    const int64_t image = point / build.points, offset = image * D * build.points + (point - image * build.points);
    for (int d = 0; d < D; ++d) feature[d] = build.features[offset + d * build.points];
    locate_simplex<kD, float>(feature, build.scale, D, cell, rank, delta, elevated);
    weights_backward(weight_grad + point * (D + 1), rank, build.scale, D, delta, feature_grad + offset, build.points);
  }
}

}  // namespace
}  // namespace deeplab_fast
