// Bilinear upsampling (align_corners=False) of logits, fused with argmax or softmax over classes.
//
// No map of all scores at full size is held: a task makes one row of scores, or one cell of them, and reduces it.
#pragma once

#include <cstdint>

#include "base/parallel.h"

namespace deeplab_fast {

enum class ScoreType : int32_t { kFloat, kHalf, kBfloat16 };

// (N, K, H, W) of any strides, counted in elements.
template <class Pointer>
struct ScoresOf {
  Pointer data;
  ScoreType type;
  int64_t batch, classes, height, width;
  int64_t stride_n, stride_k, stride_h, stride_w;
};
using Scores = ScoresOf<const void*>;
using MutableScores = ScoresOf<void*>;

// All need classes, heights and widths of at least 1 that fit in 31 bits. Results are bitwise the same for any number
// of threads.

// out[n][y][x]: the class of the largest score; NaN counts as the largest, among equals the first class wins. Scores
// that differ by no more than rounding may be taken as equal or not.
void upsample_argmax(const Scores& logits, int64_t height, int64_t width, int64_t* out, Parallel& parallel);

// out = softmax over classes of the upsampled logits, in float32 whatever the types.
void upsample_softmax(const Scores& logits, const MutableScores& out, Parallel& parallel);

// Gradient to the logits, from that to the softmax and the softmax itself.
void upsample_softmax_backward(const Scores& grad, const Scores& out, const MutableScores& to_logits,
                               Parallel& parallel);

}  // namespace deeplab_fast
