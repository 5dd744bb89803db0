// The inner loops of the lattice's geometry, compiled once per instruction set (geometry_isa.cpp).
#pragma once

#include <cstdint>

#include "lattice/visit_order.h"

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

struct GeometryKernels {
  const char* set;
  // features[d * stride + i], i in [begin, begin + count), count <= kPointBlock
  void (*locate)(int dimensions, const float* features, int64_t stride, int64_t begin, int count, const float* scale,
                 SimplexBlock out);
  FeatureRange (*feature_range)(const float* values, int64_t count);
};
const GeometryKernels& geometry_kernels();

}  // namespace deeplab_fast
