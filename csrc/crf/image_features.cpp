// Features of images, and the layout of results.
#include <algorithm>

#include "crf/dense_crf.h"

namespace deeplab_fast {
namespace {

void position_features(int64_t width, int64_t height, float sx, float sy, float* features, Parallel& parallel) {
  const int64_t points = width * height;
  parallel_for(parallel, height, [&](int64_t y) {
    for (int64_t x = 0; x < width; ++x) {
      features[y * width + x] = static_cast<float>(x) / sx;
      features[points + y * width + x] = static_cast<float>(y) / sy;
    }
  });
}

}  // namespace

Buffer<float> gaussian_features(int64_t width, int64_t height, float sx, float sy, Parallel& parallel) {
  Buffer<float> features(2 * width * height);
  position_features(width, height, sx, sy, features.data(), parallel);
  return features;
}

Buffer<float> bilateral_features(int64_t width, int64_t height, float sx, float sy, const float sigma_rgb[3],
                                 const uint8_t* image, Parallel& parallel) {
  const int64_t points = width * height;
  Buffer<float> features(5 * points);
  position_features(width, height, sx, sy, features.data(), parallel);
  parallel_for(parallel, height, [&](int64_t y) {
    for (int64_t i = y * width; i < (y + 1) * width; ++i)
      for (int c = 0; c < 3; ++c) features[(2 + c) * points + i] = static_cast<float>(image[3 * i + c]) / sigma_rgb[c];
  });
  return features;
}

void to_label_major(const float* q, int labels, int64_t points, float* out, Parallel& parallel) {
  constexpr int64_t kTile = 64, kTask = 4096;
  parallel_for(parallel, (points + kTask - 1) / kTask, [&](int64_t task) {
    const int64_t end = std::min(points, (task + 1) * kTask);
    for (int64_t tile = task * kTask; tile < end; tile += kTile)
      for (int l = 0; l < labels; ++l)
        for (int64_t i = tile; i < std::min(end, tile + kTile); ++i) out[l * points + i] = q[i * labels + l];
  });
}

}  // namespace deeplab_fast
