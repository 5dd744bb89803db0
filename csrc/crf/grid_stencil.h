// The spatial kernel of an image at a deviation of one pixel, without its lattice.
//
// The lattice of the features (x, y) is mapped onto itself by a shift of one line: (1, 1, -2), what a step in y adds to
// the elevated coordinates, is a step between its vertices. So splat, blur and slice together are a sum over pixels
// nearby whose coefficients depend on x alone, but for lines near the upper and lower border, which have vertices
// beyond missing. Coefficients are what the lattice of an image of the same width and a few lines makes of single
// pixels: borders included, and equal to those of the whole image up to rounding. (Pixels of the first column lie on
// vertices, and which simplex they are said to be in, so which vertices exist in the lower corner, repeats every three
// lines: hence an image with as many lines, modulo three.)
#pragma once

#include <cstdint>
#include <vector>

#include "base/buffer.h"
#include "base/parallel.h"
#include "lattice/visit_order.h"

namespace deeplab_fast {

// Taps are numbered dy * kSide + dx, from -kReach on; with |dy| = kReach only |dx| <= kCornerReach occur.
struct StencilShape {
  static constexpr int kReach = 3, kSide = 2 * kReach + 1, kTaps = kSide * kSide, kCornerReach = 1;
  // Lines are of classes: so many at each border are of one of their own, all others of the one between.
  static constexpr int kBorder = 2 * kReach + 1, kClasses = 2 * kBorder + 1;

  static int class_of(int64_t y, int64_t height) {
    return static_cast<int>(y < kBorder ? y : y >= height - kBorder ? y - height + kClasses : kBorder);
  }
};

// As the pixel pass sees it. Images are padded: pixel (x, y) of `line` pixels a line lies at (x + kReach, y + kReach).
struct StencilView : StencilShape {
  // [kClasses][width][kTaps], or for two labels, which take pixels as lanes, [kClasses][kTaps][pitch]
  const float* coefficient;
  int64_t width, height, line, pitch;
};

class GridStencil : public StencilShape {
 public:
  // Whether an image of that order has one at those deviations.
  static bool suits(const VisitOrder& order, float sx, float sy);
  // Whether features[d * points + i] are (x, y).
  static bool are_grid(const float* features, int dimensions, const VisitOrder& order);

  GridStencil(int64_t width, int64_t height, Parallel& parallel);

  int64_t width() const { return width_; }
  float coefficient(int line_class, int tap, int64_t x) const {
    return coefficient_[(int64_t{line_class} * kTaps + tap) * width_ + x];
  }
  // What it makes of ones.
  double sum(int line_class, int64_t x) const;

 private:
  int64_t width_;
  Buffer<float> coefficient_;  // [kClasses][kTaps][width]
};

// A stencil with a pairwise term's normalisation multiplied into it.
class NormalizedStencil : public StencilShape {
 public:
  // With factors of the source pixels, of the target pixels, or both (normalization_factor).
  NormalizedStencil(const GridStencil& stencil, bool before, bool after, bool root);

  // For images of `height`, with coefficients in the order that several labels or two take.
  StencilView view(int64_t height, bool pixels_as_lanes);
  // The largest sum of a pixel's coefficients.
  float largest_sum() const;

 private:
  int64_t width_;
  std::vector<float> coefficient_;  // [kClasses][kTaps][width]
  std::vector<float> arranged_;
};

// Padded images of `lanes` floats a pixel, before and after an iteration; the padding is zero.
Buffer<float> padded_image(const StencilView& view, int lanes);
// Rows [block.count()][lanes] to their pixels of one.
void copy_to_image(const StencilView& view, const PointBlock& block, int lanes, const float* rows, float* image);

}  // namespace deeplab_fast
