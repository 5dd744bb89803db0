// The inner loops of the lattice's geometry, compiled once per instruction set (geometry_isa.cpp).
#pragma once

#include <cstdint>

#include "lattice/visit_order.h"

namespace deeplab_fast {

// Points located by one call of `locate`.
constexpr int kPointBlock = VisitOrder::kTile;

struct SimplexBlock {
  int32_t* cell;  // [D+1][kPointBlock]
  int32_t* rank;  // [D+1][kPointBlock]
  float* delta;   // [D+1][kPointBlock]
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
