// The transforms of the Winograd convolution, channels in the lanes. Compiled per instruction set.
#include "convolution/winograd_kernels.h"
#include "isa/isa.h"
#include "isa/simd.h"

namespace deeplab_fast {
namespace DEEPLAB_FAST_ISA_NAME {
namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

// --- One dimension of each transform: of the values at, and to, `step` apart -----------------------------------------

template <class V>
DEEPLAB_FAST_INLINE void input_line(V* d, int step) {
  const V d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step];
  d[0] = d0 - d2;
  d[step] = d1 + d2;
  d[2 * step] = d2 - d1;
  d[3 * step] = d1 - d3;
}

template <class V>
DEEPLAB_FAST_INLINE void output_line(const V* m, int step, V* y, int y_step) {
  y[0] = (m[0] + m[step]) + m[2 * step];
  y[y_step] = (m[step] - m[2 * step]) - m[3 * step];
}

template <class V>
DEEPLAB_FAST_INLINE void weight_line(const V* g, int step, V* u, int u_step) {
  const V outer = g[0] + g[2 * step];
  u[0] = g[0];
  u[u_step] = (outer + g[step]) * 0.5f;
  u[2 * u_step] = (outer - g[step]) * 0.5f;
  u[3 * u_step] = g[2 * step];
}

// --- Both dimensions, of W channels from c ---------------------------------------------------------------------------

template <int W>
DEEPLAB_FAST_INLINE void input_channels(const InputTile& tile, int64_t c) {
  typename Vec<W>::type d[16];
  for (int e = 0; e < 16; ++e) d[e] = load<W>(tile.pixels[e] + c);
  for (int j = 0; j < 4; ++j) input_line(d + j, 4);
  for (int i = 0; i < 4; ++i) input_line(d + 4 * i, 1);
  for (int e = 0; e < 16; ++e) store<W>(tile.out + e * tile.stride + c, d[e]);
}

template <int W>
DEEPLAB_FAST_INLINE void output_channels(const OutputTile& tile, const float* products, int64_t c) {
  using V = typename Vec<W>::type;
  V half[8], y[4];
  for (int i = 0; i < 4; ++i) {
    V m[4];
    for (int j = 0; j < 4; ++j) m[j] = load<W>(products + (4 * i + j) * tile.element_stride);
    output_line(m, 1, half + 2 * i, 1);
  }
  for (int j = 0; j < 2; ++j) output_line(half + j, 2, y + j, 2);
  for (int pixel = 0; pixel < 4; ++pixel) {
    if (tile.out[pixel] == nullptr) continue;
    V value = y[pixel];
    if (tile.bias != nullptr) value += load<W>(tile.bias + c);
    if (tile.residual[pixel] != nullptr) value += load<W>(tile.residual[pixel] + c);
    if (tile.relu) value = value < V{} ? V{} : value;  // NaN stays
    store<W>(tile.out[pixel] + c, value);
  }
}

template <int W>
DEEPLAB_FAST_INLINE void weight_lanes(const float* weights, int64_t lanes, int64_t lane, float* out, int64_t stride) {
  typename Vec<W>::type g[9], half[12], u[16];
  for (int e = 0; e < 9; ++e) g[e] = load<W>(weights + e * lanes + lane);
  for (int j = 0; j < 3; ++j) weight_line(g + j, 3, half + j, 3);
  for (int i = 0; i < 4; ++i) weight_line(half + 3 * i, 1, u + 4 * i, 1);
  for (int e = 0; e < 16; ++e) store<W>(out + e * stride + lane, u[e]);
}

}  // namespace

void transform_input(const InputTile& tile) {
  int64_t c = 0;
  for (; c + kWidth <= tile.channels; c += kWidth) input_channels<kWidth>(tile, c);
  for (; c < tile.channels; ++c) input_channels<1>(tile, c);
}

void transform_output(const OutputTile& tile) {
  const float* panel = tile.products;
  for (int64_t begin = 0; begin < tile.channels; begin += tile.lanes, panel += tile.panel_stride) {
    const int64_t rest = tile.channels - begin, count = rest < tile.lanes ? rest : tile.lanes;
    int64_t lane = 0;
    for (; lane + kWidth <= count; lane += kWidth) output_channels<kWidth>(tile, panel + lane, begin + lane);
    for (; lane < count; ++lane) output_channels<1>(tile, panel + lane, begin + lane);
  }
}

void transform_weight(const float* weights, int64_t lanes, float* out, int64_t stride) {
  for (int64_t lane = 0; lane < lanes; lane += kWidth) weight_lanes<kWidth>(weights, lanes, lane, out, stride);
}

extern const WinogradKernels winograd_kernels;
const WinogradKernels winograd_kernels{
    DEEPLAB_FAST_SET,
    DEEPLAB_FAST_KERNEL(transform_input),
    DEEPLAB_FAST_KERNEL(transform_output),
    DEEPLAB_FAST_KERNEL(transform_weight),
};

}  // namespace DEEPLAB_FAST_ISA_NAME
}  // namespace deeplab_fast
