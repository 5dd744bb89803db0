// 3 x 3 convolution of stride 1, at any rate, "same" padding, float32, with 2.25 times fewer multiplications: F(2x2,
// 3x3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016 (section 4.1; U, V, M, Y as
// there).
//
// Pixels whose row and column are the same modulo the rate form a map of their own, in which the convolution is dense.
// A tile is 2 x 2 output pixels of such a map, which depend on 4 x 4 of its input pixels. Nothing is rearranged for
// that: neighbours in a tile are merely `rate` apart.
//
// An infinity or a NaN of the input, or a sum that overflows, spreads to all four output pixels of a tile it enters.
#pragma once

#include <cstdint>

#include "base/maps.h"
#include "base/parallel.h"

namespace deeplab_fast {

// A weight (K, C, 3, 3), float32, with any strides in elements.
struct WinogradWeight {
  const float* data;
  int64_t stride_k, stride_c, stride_h, stride_w;
};

// Floats that the packed weight takes.
int64_t winograd_packed_size(int64_t out_channels, int64_t channels);

// U, as `winograd_forward` reads it on this processor, of the weight times scale[k]; scale: [K], or null.
void winograd_pack(const WinogradWeight& weight, const float* scale, int64_t out_channels, int64_t channels,
                   float* packed, Parallel& parallel);

// out (N, K, H, W) = convolution of x (N, C, H, W) + bias + residual, then ReLU if `relu`. bias: [K], or null;
// residual: (N, K, H, W), or null; it may be `out`. All float32 and of any strides, best with stride_c = 1.
void winograd_forward(const Maps& x, const float* packed, const float* bias, const Maps* residual, bool relu,
                      int64_t rate_h, int64_t rate_w, const MutableMaps& out, Parallel& parallel);

}  // namespace deeplab_fast
