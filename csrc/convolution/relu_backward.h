// The backward pass of a convolution's epilogue: ReLU's mask and the gradient of the bias in one pass.
#pragma once

#include "base/maps.h"
#include "base/parallel.h"

namespace deeplab_fast {

// masked = grad where out > 0, else 0; sums[c] = sum of masked over batch and pixels. Shapes are those of `out`.
void relu_backward(const Maps& grad, const Maps& out, const MutableMaps& masked, float* sums, Parallel& parallel);

}  // namespace deeplab_fast
