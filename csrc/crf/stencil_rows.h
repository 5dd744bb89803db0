// The passes of a stencil (grid_stencil.h) over the pixels of a block. Included only by *_isa.cpp files.
#pragma once

#include "crf/mean_field_kernels.h"
#include "lattice/simplex_rows.h"

namespace deeplab_fast {
namespace DEEPLAB_FAST_ISA_NAME {

// Calls body(place, x, y) for the lines of a block of an image.
template <class Body>
DEEPLAB_FAST_INLINE void each_image_line(const StencilView& stencil, const PointBlock& block, Body&& body) {
  const int64_t x = block.first % stencil.width, y = block.first / stencil.width;
  for (int32_t line = 0; line < block.height; ++line) body(line * block.width, x, y + line);
}

// Sums of kLines pixels below each other, all of one class: each pixel of the image is loaded once for all of them.
template <int kLines, class B>
DEEPLAB_FAST_INLINE void add_taps(const float* coefficient, const float* image, int64_t lanes, int64_t line_floats,
                                  B* sum) {
  constexpr int R = StencilView::kReach, kSide = StencilView::kSide;
#pragma GCC unroll 16
  for (int source = -R; source < kLines + R; ++source) {
#pragma GCC unroll 8
    for (int dx = -R; dx <= R; ++dx) {
      const bool corner = dx < -StencilView::kCornerReach || dx > StencilView::kCornerReach;
      if (corner && (source == -R || source == kLines + R - 1)) continue;
      const B pixel = B::from(image + (source + R) * line_floats + (dx + R) * lanes);
#pragma GCC unroll 8
      for (int line = 0; line < kLines; ++line) {
        const int dy = source - line;
        if (dy < -R || dy > R || (corner && (dy == -R || dy == R))) continue;
        sum[line].add_scaled(coefficient[(dy + R) * kSide + dx + R], pixel);
      }
    }
  }
}

// to[place] = from[place] + scale * the stencil's sum, `first` being the first lane of those that the part takes.
template <int kLines, class B>
DEEPLAB_FAST_INLINE void stencil_lines(const StencilView& stencil, const PointBlock& block, int place, int64_t x,
                                       int64_t y, float scale, const float* image, int64_t lanes, const float* from,
                                       float* to) {
  const int64_t line_floats = stencil.line * lanes;
  const float* source = image + y * line_floats + x * lanes;
  const float* coefficient = stencil.coefficient + (StencilView::class_of(y, stencil.height) * stencil.width + x) *
                                                       int64_t{StencilView::kTaps};
  for (int32_t i = 0; i < block.width; ++i, source += lanes, coefficient += StencilView::kTaps) {
    B sum[kLines];
    for (B& one : sum) one = B::zero();
    add_taps<kLines>(coefficient, source, lanes, line_floats, sum);
    for (int line = 0; line < kLines; ++line) {
      const int64_t at = (place + i + line * block.width) * lanes;
      B energy = B::from(from + at);
      energy.add_scaled(scale, sum[line]);
      energy.to(to + at);
    }
  }
}

template <int kLanes>
DEEPLAB_FAST_INLINE void stencil_slice(const StencilView& stencil, const PointBlock& block, float scale,
                                       const float* image, int64_t lanes, const float* from, float* to) {
  constexpr int kLines = 4;
  const int64_t x = block.first % stencil.width, y = block.first / stencil.width;
  for_parts<kLanes>([&](auto part, int lane) {
    using B = decltype(part);
    for (int32_t line = 0; line < block.height;) {
      const auto class_at = [&](int later) { return StencilView::class_of(y + line + later, stencil.height); };
      if (line + kLines <= block.height && class_at(0) == class_at(kLines - 1)) {
        stencil_lines<kLines, B>(stencil, block, line * block.width, x, y + line, scale, image + lane, lanes,
                                 from + lane, to + lane);
        line += kLines;
      } else {
        stencil_lines<1, B>(stencil, block, line * block.width, x, y + line, scale, image + lane, lanes, from + lane,
                            to + lane);
        ++line;
      }
    }
  });
}

// Stores get(place, lane, Block()) of every pixel of the block in the image.
template <int kLanes, class Get>
DEEPLAB_FAST_INLINE void stencil_splat(const StencilView& stencil, const PointBlock& block, float* image, int64_t lanes,
                                       Get&& get) {
  constexpr int R = StencilView::kReach;
  each_image_line(stencil, block, [&](int place, int64_t x, int64_t y) {
    float* to = image + ((y + R) * stencil.line + x + R) * lanes;
    for (int32_t i = 0; i < block.width; ++i, to += lanes)
      for_parts<kLanes>([&](auto part, int lane) { get(place + i, lane, part).to(to + lane); });
  });
}

// One label: pixels are lanes. May write a vector beyond the last of `sliced`.
DEEPLAB_FAST_INLINE void stencil_slice_one(const StencilView& stencil, const PointBlock& block, const float* image,
                                           float* sliced) {
  constexpr int R = StencilView::kReach, kSide = StencilView::kSide, W = kWidest;
  each_image_line(stencil, block, [&](int place, int64_t x, int64_t y) {
    const float* coefficient =
        stencil.coefficient + StencilView::class_of(y, stencil.height) * StencilView::kTaps * stencil.pitch + x;
    const float* source = image + y * stencil.line + x;
    for (int32_t i = 0; i < block.width; i += W) {
      typename Vec<W>::type sum = broadcast<W>(0.0f);
      for (int dy = -R; dy <= R; ++dy) {
        const int reach = dy == -R || dy == R ? StencilView::kCornerReach : R;
        for (int dx = -reach; dx <= reach; ++dx)
          sum = sum + load<W>(coefficient + ((dy + R) * kSide + dx + R) * stencil.pitch + i) *
                          load<W>(source + (dy + R) * stencil.line + dx + R + i);
      }
      store<W>(sliced + place + i, sum);
    }
  });
}
DEEPLAB_FAST_INLINE void stencil_splat_one(const StencilView& stencil, const PointBlock& block, const float* value,
                                           float* image) {
  constexpr int R = StencilView::kReach;
  each_image_line(stencil, block, [&](int place, int64_t x, int64_t y) {
    __builtin_memcpy(image + (y + R) * stencil.line + x + R, value + place, sizeof(float) * block.width);
  });
}

}  // namespace DEEPLAB_FAST_ISA_NAME
}  // namespace deeplab_fast
