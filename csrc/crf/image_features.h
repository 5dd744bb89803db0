// Features of the points of an image.
#pragma once

#include <cstdint>

#include "base/buffer.h"
#include "base/parallel.h"

namespace deeplab_fast {

// Features of pydensecrf's 2-D kernels: [2][H*W] (x/sx, y/sy); [5][H*W] with (r/sr, g/sg, b/sb) of an (H,W,3) image.
Buffer<float> gaussian_features(int64_t width, int64_t height, float sx, float sy, Parallel& parallel);
Buffer<float> bilateral_features(int64_t width, int64_t height, float sx, float sy, const float sigma_rgb[3],
                                 const uint8_t* image, Parallel& parallel);

}  // namespace deeplab_fast
