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

// Calls body(Constant<lines>(), line) for the lines of a block, several of one class at once where there are.
template <class Body>
DEEPLAB_FAST_INLINE void each_line_group(const StencilView& stencil, const PointBlock& block, Body&& body) {
  constexpr int kLines = 4;
  const int64_t y = block.first / stencil.width;
  for (int32_t line = 0; line < block.height;) {
    const auto class_at = [&](int later) { return StencilView::class_of(y + line + later, stencil.height); };
    if (line + kLines <= block.height && class_at(0) == class_at(kLines - 1)) {
      body(Constant<kLines>(), line);
      line += kLines;
    } else {
      body(Constant<1>(), line);
      ++line;
    }
  }
}

template <int kLanes>
DEEPLAB_FAST_INLINE void stencil_slice(const StencilView& stencil, const PointBlock& block, float scale,
                                       const float* image, int64_t lanes, const float* from, float* to) {
  const int64_t x = block.first % stencil.width, y = block.first / stencil.width;
  for_parts<kLanes>([&](auto part, int lane) {
    each_line_group(stencil, block, [&](auto lines, int line) {
      stencil_lines<lines.value, decltype(part)>(stencil, block, line * block.width, x, y + line, scale, image + lane,
                                                 lanes, from + lane, to + lane);
    });
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

// One label: pixels are lanes. A part of a block with what its sums read, copied to memory of fixed strides, so that
// all of it lies at constant distances.
struct StencilTile {
  static constexpr int R = StencilView::kReach, kSide = 32, kPitch = kSide + 16;
  static_assert(kPitch >= kSide + 2 * R && kPitch % kWidest == 0 && kSide % kWidest == 0);
  float tap[StencilView::kTaps][kPitch];
  float pixel[kSide + 2 * R][kPitch];

  DEEPLAB_FAST_INLINE void take_taps(const float* coefficient, int64_t pitch) {
    for (int t = 0; t < StencilView::kTaps; ++t)
      for (int i = 0; i < kSide; i += kWidest) store<kWidest>(tap[t] + i, load<kWidest>(coefficient + t * pitch + i));
  }
  DEEPLAB_FAST_INLINE void take_pixels(const float* image, int64_t line, int lines) {
    for (int y = 0; y < lines + 2 * R; ++y)
      for (int i = 0; i < kPitch; i += kWidest) store<kWidest>(pixel[y] + i, load<kWidest>(image + y * line + i));
  }

  // Sums of kWidest pixels beside each other on each of kLines lines: column by column of the taps, so that their
  // coefficients and the pixels that several lines look at are loaded once.
  template <int kLines>
  DEEPLAB_FAST_INLINE void sum(int line, int column, typename Vec<kWidest>::type* sums) const {
    const float *taps = tap[0] + column, *pixels = pixel[line] + column;
#pragma GCC unroll 8
    for (int dx = 0; dx <= 2 * R; ++dx) {
      const int reach = dx < R - StencilView::kCornerReach || dx > R + StencilView::kCornerReach ? R - 1 : R;
      typename Vec<kWidest>::type of_line[StencilView::kSide];
#pragma GCC unroll 8
      for (int dy = R - reach; dy <= R + reach; ++dy)
        of_line[dy] = load<kWidest>(taps + (dy * StencilView::kSide + dx) * kPitch);
#pragma GCC unroll 16
      for (int source = R - reach; source < kLines + R + reach; ++source) {
        const auto values = load<kWidest>(pixels + source * kPitch + dx);
#pragma GCC unroll 8
        for (int l = 0; l < kLines; ++l)
          if (source - l >= R - reach && source - l <= R + reach) sums[l] = sums[l] + of_line[source - l] * values;
      }
    }
  }
};

DEEPLAB_FAST_INLINE void stencil_slice_one(const StencilView& stencil, const PointBlock& block, const float* image,
                                           float* sliced) {
  constexpr int kSide = StencilTile::kSide;
  alignas(64) StencilTile tile;
  for (int column = 0; column < block.width; column += kSide) {
    const int columns = block.width - column < kSide ? block.width - column : kSide;
    const int64_t x = block.first % stencil.width + column, y = block.first / stencil.width;
    int taken = -1, top = -kSide;
    each_line_group(stencil, block, [&](auto lines, int line) {
      constexpr int kLines = decltype(lines)::value;
      const int of_line = StencilView::class_of(y + line, stencil.height);
      if (of_line != taken)
        tile.take_taps(stencil.coefficient + of_line * StencilView::kTaps * stencil.pitch + x, stencil.pitch);
      taken = of_line;
      if (line + kLines > top + kSide) {
        top = line;
        const int left = block.height - top;
        tile.take_pixels(image + (y + top) * stencil.line + x, stencil.line, left < kSide ? left : kSide);
      }
      for (int i = 0; i < columns; i += kWidest) {
        typename Vec<kWidest>::type sums[kLines];
        for (auto& one : sums) one = broadcast<kWidest>(0.0f);
        tile.template sum<kLines>(line - top, i, sums);
        for (int l = 0; l < kLines; ++l) {
          float* to = sliced + (line + l) * block.width + column + i;
          if (i + kWidest <= columns)
            store<kWidest>(to, sums[l]);
          else
            __builtin_memcpy(to, &sums[l], sizeof(float) * (columns - i));
        }
      }
    });
  }
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
