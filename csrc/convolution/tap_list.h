// The taps of an ASPP, and which pixels they reach.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "convolution/taps.h"

namespace deeplab_fast {

// Position (i, j) of the kernel of a branch.
struct TapSource {
  int64_t branch, i, j;
};

// out(h, w) += weight · x(h + dy, w + dx)
struct Tap {
  int64_t dy, dx;
  std::vector<TapSource> sources;
};

// The centre first: it reaches every pixel, so it is what a sum can begin with.
inline std::vector<Tap> make_taps(const std::vector<Branch>& branches) {
  std::vector<Tap> taps{{0, 0, {}}};
  for (size_t b = 0; b < branches.size(); ++b)
    for (int64_t i = 0; i < branches[b].kernel_height; ++i)
      for (int64_t j = 0; j < branches[b].kernel_width; ++j) {
        const int64_t dy = (i - branches[b].kernel_height / 2) * branches[b].rate_h;
        const int64_t dx = (j - branches[b].kernel_width / 2) * branches[b].rate_w;
        auto same =
            std::find_if(taps.begin(), taps.end(), [&](const Tap& tap) { return tap.dy == dy && tap.dx == dx; });
        if (same == taps.end()) same = taps.insert(taps.end(), Tap{dy, dx, {}});
        same->sources.push_back({static_cast<int64_t>(b), i, j});
      }
  return taps;
}

// The pixels (h, w) whose (h + dy, w + dx) lies in a map of this size; empty where end <= begin.
struct Reach {
  int64_t top, bottom, left, right;
  bool empty() const { return top >= bottom || left >= right; }
};
inline Reach reach(const Tap& tap, int64_t height, int64_t width) {
  return {std::max<int64_t>(0, -tap.dy), std::min(height, height - tap.dy), std::max<int64_t>(0, -tap.dx),
          std::min(width, width - tap.dx)};
}

// Number of taps that reach each pixel before p: entry p, for p in [0, height * width].
inline std::vector<int64_t> work_before(const std::vector<Tap>& taps, int64_t height, int64_t width) {
  std::vector<int64_t> work(static_cast<size_t>(height * width + 1), 0);
  for (const Tap& tap : taps) {
    const Reach to = reach(tap, height, width);
    for (int64_t h = to.top; h < to.bottom; ++h)
      for (int64_t w = to.left; w < to.right; ++w) ++work[static_cast<size_t>(h * width + w + 1)];
  }
  for (size_t p = 1; p < work.size(); ++p) work[p] += work[p - 1];
  return work;
}

}  // namespace deeplab_fast
