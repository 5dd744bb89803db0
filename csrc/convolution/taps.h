// The ASPP sum, sum over branches b of conv2d(x, weight_b, dilation = rate_b) with "same" padding, without the taps
// that lie outside the map: at DeepLab's rates they are 30 % of the tap-pixels of a 65 x 65 map, and half at 41 x 41.
//
// The taps of all branches are one list of offsets; taps of equal offset (the branches' centres) count once, with
// their weights added. Each tap is a product of panels (panel.h) over the rectangle of pixels for which it lies inside.
#pragma once

#include <cstdint>
#include <vector>

#include "base/maps.h"
#include "base/parallel.h"

namespace deeplab_fast {

// One branch: kernel height and width (odd), and the rate along each.
struct Branch {
  int64_t kernel_height, kernel_width, rate_h, rate_w;
};

// A branch's weight, (K, C, kernel_height, kernel_width) with any strides.
struct BranchWeight {
  const void* data;
  Element element;
  int64_t stride_k, stride_c, stride_h, stride_w;
};

// Offsets at which some branch has a tap; the centre is one of them.
int64_t aspp_tap_count(const std::vector<Branch>& branches);

// Floats that the packed weights take.
int64_t aspp_packed_size(const std::vector<Branch>& branches, int64_t classes, int64_t channels);

// The weights in the order in which `aspp_forward` reads them, on this processor.
void aspp_pack(const std::vector<Branch>& branches, const std::vector<BranchWeight>& weights, int64_t classes,
               int64_t channels, float* packed, Parallel& parallel);

// out (N, K, H, W) of x (N, C, H, W); bias: [K], or null.
void aspp_forward(const std::vector<Branch>& branches, const Maps& x, const float* packed, const float* bias,
                  const MutableMaps& out, Parallel& parallel);

// Gradient to x (N, C, H, W), from grad (N, K, H, W), that to the result.
void aspp_backward_x(const std::vector<Branch>& branches, const std::vector<BranchWeight>& weights, const Maps& grad,
                     const MutableMaps& to_x, Parallel& parallel);

// Gradients to the weights: to_weights[b] is (K, C, kernel_height, kernel_width), contiguous.
void aspp_backward_weights(const std::vector<Branch>& branches, const Maps& grad, const Maps& x,
                           const std::vector<float*>& to_weights, Parallel& parallel);

// The sum as one matrix product and a shift, where the processor multiplies 16-bit matrices far faster than it does
// anything else: out(p) = bias + sum over taps t of products(p + offset_t)[t]. products is (N, H * W, taps * K), the
// taps in the order of make_taps (tap_list.h).
void aspp_shift_sum(const std::vector<Branch>& branches, const void* products, Element element, const float* bias,
                    const MutableMaps& out, Parallel& parallel);

// Its transpose: columns(p)[t] = grad(p - offset_t), 0 where that is outside; (N, H * W, taps * K), element of grad.
void aspp_shift_gather(const std::vector<Branch>& branches, const Maps& grad, void* columns, Parallel& parallel);

}  // namespace deeplab_fast
