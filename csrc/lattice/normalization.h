// The factor of a normalisation, for the CPU and for CUDA kernels.
#pragma once

#include <math.h>

#include "lattice/geometry.h"

namespace deeplab_fast {

// From n, what filtering makes of ones: 1 / (n + 1e-20), or its square root for a factor before and one after.
DEEPLAB_FAST_HD float normalization_factor(float n, bool root) {
  const double sum = static_cast<double>(n) + 1e-20;
  return static_cast<float>(1.0 / (root ? sqrt(sum) : sum));
}

}  // namespace deeplab_fast
