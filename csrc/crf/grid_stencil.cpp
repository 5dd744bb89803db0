#include "crf/grid_stencil.h"

#include <algorithm>
#include <memory>

#include "crf/image_features.h"
#include "lattice/lattice.h"
#include "lattice/normalization.h"

namespace deeplab_fast {
namespace {

// Vectors may read so many floats beyond the last pixel of a line, or of an image.
constexpr int64_t kOverrun = 32;
// Coordinates beyond lose digits in the lattice's own arithmetic, and with them its symmetry.
constexpr int64_t kMostSide = 4096;

}  // namespace

bool GridStencil::suits(const VisitOrder& order, float sx, float sy) {
  if (sx != 1 || sy != 1 || order.width <= 0) return false;
  const int64_t height = order.points / order.width;
  return height > kClasses + 2 * kReach && height <= kMostSide && order.width <= kMostSide;
}

bool GridStencil::are_grid(const float* features, int dimensions, const VisitOrder& order) {
  if (dimensions != 2 || !suits(order, 1, 1)) return false;
  const float *x = features, *y = features + order.points;
  for (int64_t i = 0; i < order.points; i += order.width, x += order.width, y += order.width) {
    const auto line = static_cast<float>(i / order.width);
    bool same = true;
    for (int64_t column = 0; column < order.width; ++column)
      same &= x[column] == static_cast<float>(column) && y[column] == line;
    if (!same) return false;
  }
  return true;
}

// All taps of all pixels at once: every kSide-th pixel in both directions is 1 in one of kTaps channels.
GridStencil::GridStencil(int64_t width, int64_t height, Parallel& parallel)
    : width_(width), coefficient_(kClasses * kTaps * width) {
  const int64_t lines = kClasses + (height - kClasses) % 3, points = lines * width;
  const Buffer<float> features = gaussian_features(width, lines, 1, 1, parallel);
  const Lattice lattice(features.data(), 2, std::make_shared<VisitOrder>(points, width), parallel);
  Buffer<float> combs(kTaps * points);
  std::fill(combs.begin(), combs.end(), 0.0f);
  const auto channel_of = [](int64_t x, int64_t y) { return y % kSide * kSide + x % kSide; };
  for (int64_t y = 0; y < lines; ++y)
    for (int64_t x = 0; x < width; ++x) combs[channel_of(x, y) * points + y * width + x] = 1;
  filter(lattice, lattice.view(kTaps, parallel), combs.data(), kTaps, Blur::kForward, combs.data(), parallel);
  float* to = coefficient_.data();
  for (int64_t c = 0; c < kClasses; ++c)
    for (int64_t tap = 0; tap < kTaps; ++tap)
      for (int64_t x = 0; x < width; ++x) {
        const int64_t y = c <= kBorder ? c : lines - kClasses + c;
        const int64_t from_y = y + tap / kSide - kReach, from_x = x + tap % kSide - kReach;
        const bool inside = from_y >= 0 && from_y < lines && from_x >= 0 && from_x < width;
        *to++ = inside ? combs[channel_of(from_x, from_y) * points + y * width + x] : 0.0f;
      }
}

double GridStencil::sum(int line_class, int64_t x) const {
  double total = 0;
  for (int tap = 0; tap < kTaps; ++tap) total += coefficient(line_class, tap, x);
  return total;
}

NormalizedStencil::NormalizedStencil(const GridStencil& stencil, bool before, bool after, bool root)
    : width_(stencil.width()), coefficient_(kClasses * kTaps * width_) {
  std::vector<float> of_source(kClasses * width_), of_target(kClasses * width_);
  for (int c = 0; c < kClasses; ++c)
    for (int64_t x = 0; x < width_; ++x) {
      const float factor = normalization_factor(static_cast<float>(stencil.sum(c, x)), root);
      of_source[c * width_ + x] = before ? factor : 1.0f;
      of_target[c * width_ + x] = after ? factor : 1.0f;
    }
  float* to = coefficient_.data();
  for (int c = 0; c < kClasses; ++c)
    for (int tap = 0; tap < kTaps; ++tap) {
      // Lines of other classes than c that a line of class c looks at are at a border, or all of the one between.
      const int source_class = std::clamp(c + tap / kSide - kReach, 0, kClasses - 1), dx = tap % kSide - kReach;
      for (int64_t x = 0; x < width_; ++x) {
        const int64_t source = std::clamp<int64_t>(x + dx, 0, width_ - 1);
        *to++ = stencil.coefficient(c, tap, x) * of_target[c * width_ + x] * of_source[source_class * width_ + source];
      }
    }
}

StencilView NormalizedStencil::view(int64_t height, bool pixels_as_lanes) {
  StencilView view{};
  view.width = width_, view.height = height, view.line = width_ + 2 * kReach, view.pitch = width_ + kOverrun;
  if (pixels_as_lanes) {
    arranged_.assign(kClasses * kTaps * view.pitch, 0.0f);
    for (int64_t i = 0; i < kClasses * kTaps; ++i)
      std::copy_n(&coefficient_[i * width_], width_, &arranged_[i * view.pitch]);
  } else {
    arranged_.resize(coefficient_.size());
    for (int64_t c = 0; c < kClasses; ++c)
      for (int64_t tap = 0; tap < kTaps; ++tap)
        for (int64_t x = 0; x < width_; ++x)
          arranged_[(c * width_ + x) * kTaps + tap] = coefficient_[(c * kTaps + tap) * width_ + x];
  }
  view.coefficient = arranged_.data();
  return view;
}

float NormalizedStencil::largest_sum() const {
  float largest = 0;
  for (int64_t c = 0; c < kClasses; ++c)
    for (int64_t x = 0; x < width_; ++x) {
      float sum = 0;
      for (int64_t tap = 0; tap < kTaps; ++tap) sum += coefficient_[(c * kTaps + tap) * width_ + x];
      largest = std::max(largest, sum);
    }
  return largest;
}

Buffer<float> padded_image(const StencilView& view, int lanes) {
  constexpr int64_t kReach = StencilView::kReach;
  const int64_t lines = view.height + 2 * kReach, line = view.line * lanes;
  Buffer<float> image(lines * line + kOverrun);
  std::fill_n(image.data(), kReach * line, 0.0f);
  for (int64_t y = kReach; y < lines - kReach; ++y) {
    std::fill_n(image.data() + y * line, kReach * lanes, 0.0f);
    std::fill_n(image.data() + (y + 1) * line - kReach * lanes, kReach * lanes, 0.0f);
  }
  std::fill_n(image.data() + (lines - kReach) * line, kReach * line + kOverrun, 0.0f);
  return image;
}

void copy_to_image(const StencilView& view, const PointBlock& block, int lanes, const float* rows, float* image) {
  block.each_line([&](int32_t place, int64_t point, int32_t count) {
    const int64_t x = point % view.width + StencilView::kReach, y = point / view.width + StencilView::kReach;
    std::copy_n(rows + int64_t{place} * lanes, int64_t{count} * lanes, image + (y * view.line + x) * lanes);
  });
}

}  // namespace deeplab_fast
