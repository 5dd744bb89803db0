#include "convolution/winograd.h"

#include <algorithm>
#include <vector>

#include "base/buffer.h"
#include "base/share_out.h"
#include "convolution/panel.h"
#include "convolution/winograd_kernels.h"

namespace deeplab_fast {

namespace {

// Elements of U, V and M, each a product of matrices over the channels.
constexpr int kElements = 16;
// Tiles taken at once, at most. U passes by once for each block of them: from the third-level cache, at 4 bytes a
// nanosecond for this many. Few enough that one element of V stays in the second-level cache meanwhile.
constexpr int64_t kTileBlock = 48;
// Fewer are not worth a task of their own.
constexpr int64_t kLeastTiles = 12;
// Blocks are a multiple of this, so that two or four threads finish together.
constexpr int64_t kBlockMultiple = 4;
// Channels summed before they are added to those before: a panel of them stays in the first-level cache, and the
// rounding error of a sum of sums is smaller.
constexpr int64_t kSumLength = 256;
// Floats between elements, so that the same place in all of them does not fall into the same sets of the cache.
constexpr int64_t kSkew = 16;

// Output channels come in panels (panel.h); U is [element][panel][c][lane], the last panel filled with zeros.
struct Panels {
  int64_t lanes, count;

  explicit Panels(int64_t out_channels)
      : lanes(panel_kernels().shape.middle()), count((out_channels + lanes - 1) / lanes) {}
};

// Where tiles begin along one axis: pixels of equal residue modulo the rate follow each other.
std::vector<int64_t> tile_starts(int64_t size, int64_t rate) {
  std::vector<int64_t> starts;
  for (int64_t residue = 0; residue < std::min(rate, size); ++residue)
    for (int64_t start = residue; start < size; start += 2 * rate) starts.push_back(start);
  return starts;
}

// Maps with the channels of a pixel side by side.
template <class Pointer>
struct PixelRows {
  Pointer data;
  int64_t stride_n, stride_h, stride_w;
  Pointer at(int64_t n, int64_t h, int64_t w) const { return data + n * stride_n + h * stride_h + w * stride_w; }
};

template <class Pointer, class AnyMaps>
PixelRows<Pointer> rows_of(const AnyMaps& maps) {
  return {static_cast<Pointer>(maps.data), maps.stride_n, maps.stride_h, maps.stride_w};
}

PixelRows<float*> rows_in(Buffer<float>& memory, const MutableMaps& like) {
  memory.reset(like.batch * like.pixels() * like.channels);
  return {memory.data(), like.pixels() * like.channels, like.width * like.channels, like.channels};
}

// A copy in `memory` where they are not like that.
PixelRows<const float*> packed_rows(const Maps& maps, Buffer<float>& memory, Parallel& parallel) {
  if (maps.stride_c == 1) return rows_of<const float*>(maps);
  memory.reset(maps.batch * maps.pixels() * maps.channels);
  const int64_t row = maps.width * maps.channels;
  parallel_for(parallel, maps.batch * maps.height, [&](int64_t i) {
    pack_row(maps, i / maps.height, i % maps.height, 0, maps.channels, maps.channels, memory.data() + i * row);
  });
  return {memory.data(), maps.height * row, row, maps.channels};
}

// One convolution; `run` does a block of tiles.
class Convolution {
 public:
  Convolution(const Maps& x, const float* packed, const float* bias, bool relu, int64_t rate_h, int64_t rate_w,
              int64_t out_channels)
      : height_(x.height),
        width_(x.width),
        channels_(x.channels),
        out_channels_(out_channels),
        rate_h_(rate_h),
        rate_w_(rate_w),
        relu_(relu),
        packed_(packed),
        bias_(bias),
        panels_(out_channels),
        starts_h_(tile_starts(x.height, rate_h)),
        starts_w_(tile_starts(x.width, rate_w)),
        tiles_(x.batch * static_cast<int64_t>(starts_h_.size() * starts_w_.size())),
        zeros_(static_cast<size_t>(x.channels), 0.0f) {}

  PixelRows<const float*> x{}, residual{};  // residual.data: null if there is none
  PixelRows<float*> out{};

  int64_t blocks() const {
    const int64_t blocks = (tiles_ + kTileBlock - 1) / kTileBlock;
    const int64_t rounded = (blocks + kBlockMultiple - 1) / kBlockMultiple * kBlockMultiple;
    return std::max<int64_t>(1, std::min(rounded, tiles_ / kLeastTiles));
  }
  // Floats that `run` needs.
  int64_t scratch() const { return kElements * (input_stride() + product_stride()); }

  void run(int64_t block, float* scratch) const {
    const Range tiles = part_of(tiles_, blocks(), block);
    float *inputs = scratch, *products = scratch + kElements * input_stride();
    for (int64_t t = tiles.begin; t < tiles.end; ++t)
      transform_input(place_of(t), inputs + (t - tiles.begin) * channels_);
    for (int64_t e = 0; e < kElements; ++e)
      multiply(tiles.end - tiles.begin, inputs + e * input_stride(),
               packed_ + e * panels_.count * panels_.lanes * channels_, products + e * product_stride());
    for (int64_t t = tiles.begin; t < tiles.end; ++t)
      transform_output(place_of(t), products + (t - tiles.begin) * panels_.lanes);
  }

 private:
  struct Place {
    int64_t n, h, w;
  };
  Place place_of(int64_t tile) const {
    const int64_t across = static_cast<int64_t>(starts_w_.size()), down = static_cast<int64_t>(starts_h_.size());
    return {tile / across / down, starts_h_[static_cast<size_t>(tile / across % down)],
            starts_w_[static_cast<size_t>(tile % across)]};
  }
  bool inside(int64_t h, int64_t w) const { return h >= 0 && h < height_ && w >= 0 && w < width_; }

  // V is [element][tile][c], M [element][panel][tile][lane].
  int64_t input_stride() const { return kTileBlock * channels_ + kSkew; }
  int64_t product_stride() const { return kTileBlock * panels_.count * panels_.lanes + kSkew; }

  void transform_input(const Place& tile, float* to) const {
    InputTile work{{}, channels_, to, input_stride()};
    for (int e = 0; e < kElements; ++e) {
      const int64_t h = tile.h + (e / 4 - 1) * rate_h_, w = tile.w + (e % 4 - 1) * rate_w_;
      work.pixels[e] = inside(h, w) ? x.at(tile.n, h, w) : zeros_.data();
    }
    winograd_kernels().transform_input(work);
  }

  // One element: M = V U of `count` tiles.
  void multiply(int64_t count, const float* inputs, const float* weights, float* products) const {
    const int lanes = static_cast<int>(panels_.lanes);
    // Groups of nearly equal size: the product of a few rows is slower a row.
    const int64_t most = panel_kernels().shape.rows_for(lanes), groups = (count + most - 1) / most;
    const float* rows[kMaxPanelRows];
    float* sums[kMaxPanelRows];
    for (int64_t panel = 0; panel < panels_.count; ++panel, products += kTileBlock * lanes)
      for (int64_t c = 0; c < channels_; c += kSumLength) {
        const int64_t length = std::min(kSumLength, channels_ - c);
        for (int64_t g = 0; g < groups; ++g) {
          const Range group = part_of(count, groups, g);
          for (int64_t t = group.begin; t < group.end; ++t) {
            rows[t - group.begin] = inputs + t * channels_ + c;
            sums[t - group.begin] = products + t * lanes;
          }
          panel_kernels().panel_product(
              {static_cast<int>(group.end - group.begin), lanes, 1, length, rows, &weights, sums, c > 0});
        }
        weights += length * lanes;
      }
  }

  void transform_output(const Place& tile, const float* products) const {
    OutputTile work{products, product_stride(), kTileBlock * panels_.lanes, out_channels_, panels_.lanes, bias_, {}, {},
                    relu_};
    for (int pixel = 0; pixel < 4; ++pixel) {
      const int64_t h = tile.h + pixel / 2 * rate_h_, w = tile.w + pixel % 2 * rate_w_;
      if (!inside(h, w)) continue;
      work.out[pixel] = out.at(tile.n, h, w);
      if (residual.data != nullptr) work.residual[pixel] = residual.at(tile.n, h, w);
    }
    winograd_kernels().transform_output(work);
  }

  const int64_t height_, width_, channels_, out_channels_, rate_h_, rate_w_;
  const bool relu_;
  const float *const packed_, *const bias_;
  const Panels panels_;
  const std::vector<int64_t> starts_h_, starts_w_;
  const int64_t tiles_;
  const std::vector<float> zeros_;  // a pixel outside the map
};

}  // namespace

int64_t winograd_packed_size(int64_t out_channels, int64_t channels) {
  const Panels panels(out_channels);
  return kElements * panels.count * panels.lanes * channels;
}

void winograd_pack(const WinogradWeight& weight, const float* scale, int64_t out_channels, int64_t channels,
                   float* packed, Parallel& parallel) {
  const Panels panels(out_channels);
  share_out(parallel, panels.count, [&](int64_t panel) {
    const int64_t first = panel * panels.lanes, count = std::min(panels.lanes, out_channels - first);
    std::vector<float> taps(static_cast<size_t>(9 * panels.lanes), 0.0f);  // of one input channel
    float* to = packed + panel * panels.lanes * channels;
    for (int64_t c = 0; c < channels; ++c, to += panels.lanes) {
      for (int64_t lane = 0; lane < count; ++lane) {
        const float* from = weight.data + (first + lane) * weight.stride_k + c * weight.stride_c;
        const float factor = scale == nullptr ? 1.0f : scale[first + lane];
        for (int64_t tap = 0; tap < 9; ++tap)
          taps[static_cast<size_t>(tap * panels.lanes + lane)] =
              factor * from[tap / 3 * weight.stride_h + tap % 3 * weight.stride_w];
      }
      winograd_kernels().transform_weight(taps.data(), panels.lanes, to, panels.count * panels.lanes * channels);
    }
  });
}

void winograd_forward(const Maps& x, const float* packed, const float* bias, const Maps* residual, bool relu,
                      int64_t rate_h, int64_t rate_w, const MutableMaps& out, Parallel& parallel) {
  Convolution convolution(x, packed, bias, relu, rate_h, rate_w, out.channels);
  Buffer<float> x_memory, residual_memory, out_memory;
  convolution.x = packed_rows(x, x_memory, parallel);
  if (residual != nullptr) convolution.residual = packed_rows(*residual, residual_memory, parallel);
  const bool direct = out.stride_c == 1;
  convolution.out = direct ? rows_of<float*>(out) : rows_in(out_memory, out);

  const auto make = [&] { return Buffer<float>(convolution.scratch()); };
  share_out_with(parallel, convolution.blocks(), make,
                 [&](int64_t block, Buffer<float>& scratch) { convolution.run(block, scratch.data()); });
  if (direct) return;
  parallel_for(parallel, out.batch * out.height, [&](int64_t i) {
    unpack_row(out_memory.data() + i * out.width * out.channels, out.channels, i / out.height, i % out.height, 0,
               out.channels, out);
  });
}

}  // namespace deeplab_fast
