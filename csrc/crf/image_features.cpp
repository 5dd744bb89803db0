#include "crf/image_features.h"

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

}  // namespace deeplab_fast
