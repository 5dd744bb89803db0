// Bilinear upsampling (align_corners=False) of logits, fused with argmax or softmax over classes.
//
// No map of all scores at full size is held: a task makes one row of scores, or one cell of them, and reduces it.
#pragma once

#include <cstdint>

#include "base/maps.h"
#include "base/parallel.h"

namespace deeplab_fast {

// Maps of scores are (N, K, H, W), K the classes. All need classes, heights and widths of at least 1 that fit in 31
// bits. Results are bitwise the same for any number of threads.

// out[n][y][x]: the class of the largest score; NaN counts as the largest, among equals the first class wins. Maps
// that differ by no more than rounding may be taken as equal or not.
void upsample_argmax(const Maps& logits, int64_t height, int64_t width, int64_t* out, Parallel& parallel);

// out = softmax over classes of the upsampled logits, in float32 whatever the types.
void upsample_softmax(const Maps& logits, const MutableMaps& out, Parallel& parallel);

// Gradient to the logits, from that to the softmax and the softmax itself.
void upsample_softmax_backward(const Maps& grad, const Maps& out, const MutableMaps& to_logits, Parallel& parallel);

}  // namespace deeplab_fast
