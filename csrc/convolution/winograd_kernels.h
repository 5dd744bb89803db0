// The transforms of the Winograd convolution (winograd_isa.cpp), compiled once per instruction set. Element (i, j) of a
// 4 x 4 matrix is number 4 i + j, pixel (i, j) of a 2 x 2 tile number 2 i + j.
#pragma once

#include <cstdint>

namespace deeplab_fast {

// out[e * stride + c] = V = Bt d B of channel c < channels.
struct InputTile {
  const float* pixels[16];  // each: its channels side by side
  int64_t channels;
  float* out;
  int64_t stride;
};

// Y = At M A, + bias + residual, ReLU.
struct OutputTile {
  const float* products;  // [panel][e][lane], panels and elements apart by the strides below
  int64_t element_stride, panel_stride;
  int64_t channels, lanes;   // lanes: of a panel
  const float* bias;         // [channels], or null
  const float* residual[4];  // each: the pixel's channels side by side; null: none
  float* out[4];             // likewise; null: the pixel lies outside the map
  bool relu;
};

struct WinogradKernels {
  const char* set;
  void (*transform_input)(const InputTile& tile);
  void (*transform_output)(const OutputTile& tile);
  // out[e * stride + lane] = U = G g Gt of weights[3 i + j][lane]
  void (*transform_weight)(const float* weights, int64_t lanes, float* out, int64_t stride);
};
const WinogradKernels& winograd_kernels();

}  // namespace deeplab_fast
