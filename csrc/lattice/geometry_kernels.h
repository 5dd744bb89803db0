// The inner loops of the lattice's geometry, compiled once per instruction set (geometry_isa.cpp).
#pragma once

#include <cstdint>

namespace deeplab_fast {

// Points located by one call of `locate`.
constexpr int kPointBlock = 64;

// What `locate` finds of so many points, coordinate after coordinate.
struct SimplexBlock {
  int32_t* cell;    // [D+1][kPointBlock]
  int32_t* rank;    // [D+1][kPointBlock]
  float* weight;    // [D+1][kPointBlock] barycentric
  uint64_t* ranks;  // [kPointBlock] all ranks in four bits each, the last lowest; of more than 16 the last
  uint64_t* key;    // [kPointBlock] of the vertex of remainder 0, if it is asked for
  float* scratch;   // [7 (D+1)][kLocateLanes], aligned to 64 bytes

  static constexpr int kLocateLanes = 16;
  // Floats for all of them, in one aligned block.
  static int64_t size(int D) { return int64_t{D + 1} * (3 * kPointBlock + 7 * kLocateLanes) + 4 * kPointBlock; }
  static SimplexBlock in(float* memory, int D) {
    const int64_t each = int64_t{D + 1} * kPointBlock;
    auto* ints = reinterpret_cast<int32_t*>(memory);
    auto* words = reinterpret_cast<uint64_t*>(memory + 3 * each);
    return {ints, ints + each, memory + 2 * each, words, words + kPointBlock, memory + 3 * each + 4 * kPointBlock};
  }
};

// How fields of a vertex make a key of one word: the sum of (field - low) << shift (vertex_key.h).
struct OneWordKey {
  const int64_t* low;
  const int* shift;
};

struct FeatureRange {
  float low, high;
  bool finite;
};

struct GeometryKernels {
  const char* set;
  // features[d * stride + i], i in [begin, begin + count), count <= kPointBlock; `key`: null if not asked for
  void (*locate)(int dimensions, const float* features, int64_t stride, int64_t begin, int count, const float* scale,
                 const OneWordKey* key, SimplexBlock out);
  FeatureRange (*feature_range)(const float* values, int64_t count);
};
const GeometryKernels& geometry_kernels();

}  // namespace deeplab_fast
