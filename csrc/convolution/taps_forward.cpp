#include "base/buffer.h"
#include "base/share_out.h"
#include "convolution/panel.h"
#include "convolution/tap_list.h"
#include "convolution/taps.h"

namespace deeplab_fast {
namespace {

// Channels taken at once. The sums of a pixel are read and written once for each block and tap.
constexpr int64_t kChannelBlock = 1024;
// Pixels taken at once: their channels stay in the first-level cache while the classes' weights pass by.
constexpr int64_t kPixelBlock = 12;
// Between pixels, so that those of a tile do not all fall into the same sets of the cache.
constexpr int64_t kSkew = 16;
// Pieces of work for each thread, so that one that is held up leaves its share to the others.
constexpr int64_t kPiecesPerThread = 4;
constexpr int64_t kLeastPixels = 32;

// Channels of one block, and as whole registers.
struct ChannelBlock {
  int64_t begin, end, padded_begin, padded;
};

ChannelBlock channel_block(int64_t channels, int64_t i) {
  const int64_t begin = i * kChannelBlock, end = std::min(begin + kChannelBlock, channels);
  const int64_t unit = panel_kernels().shape.unit;
  return {begin, end, begin, (end - begin + unit - 1) / unit * unit};
}

int64_t channel_blocks(int64_t channels) {
  return (channels + kChannelBlock - 1) / kChannelBlock;
}

int64_t padded_channels(int64_t channels) {
  const ChannelBlock last = channel_block(channels, channel_blocks(channels) - 1);
  return last.padded_begin + last.padded;
}

// Classes come in panels of two registers, classes in the lanes, as far as they fill those. The rest would leave lanes
// empty, so there channels are in the lanes, to be added up at the end; that takes more loads a product.
struct ClassSplit {
  int64_t lanes, in_panels, rest, unit;
  int64_t sums() const { return in_panels + rest * unit; }  // floats a pixel
};

ClassSplit split(int64_t classes) {
  const PanelShape& shape = panel_kernels().shape;
  const int64_t lanes = shape.middle(), in_panels = classes / lanes * lanes;
  return {lanes, in_panels, classes - in_panels, shape.unit};
}

// Where the weights of class k begin, and how far apart those of successive channels are: [panel][c][lane], then groups
// of the other classes as [group][c / unit][k of the group][c % unit].
struct ClassRow {
  int64_t begin, step, within;  // `step` for every `within` channels, which lie side by side

  ClassRow(const ClassSplit& classes, const ChannelBlock& block, int64_t k) {
    if (k < classes.in_panels) {
      begin = k / classes.lanes * classes.lanes * block.padded + k % classes.lanes;
      step = classes.lanes;
      within = 1;
      return;
    }
    const int64_t other = k - classes.in_panels, group = other / kMaxDotClasses * kMaxDotClasses;
    begin = (classes.in_panels + group) * block.padded + (other - group) * classes.unit;
    step = std::min<int64_t>(kMaxDotClasses, classes.rest - group) * classes.unit;
    within = classes.unit;
  }
};

// The weights of one tap and block of channels.
template <class T>
void pack_tap(const BranchWeight& weight, const T* data, const TapSource& source, bool first, const ChannelBlock& block,
              int64_t classes, float* out) {
  const T* origin = data + source.i * weight.stride_h + source.j * weight.stride_w + block.begin * weight.stride_c;
  const ClassSplit parts = split(classes);
  for (int64_t k = 0; k < classes; ++k) {
    const ClassRow row(parts, block, k);
    const T* from = origin + k * weight.stride_k;
    float* to = out + row.begin;
    for (int64_t c = 0; c < block.padded; c += row.within, to += row.step)
      for (int64_t i = c; i < c + row.within; ++i) {
        const float value = i < block.end - block.begin ? to_float(from[i * weight.stride_c]) : 0.0f;
        to[i - c] = first ? value : to[i - c] + value;
      }
  }
}

// A block of channels of one image, the channels of a pixel side by side.
struct ImageBlock {
  const float* data;
  int64_t stride_h, stride_w, length;
};

// One tap for pixels that it reaches: sums += x[pixel][c] · weights[k][c].
class TapProduct {
 public:
  TapProduct(const ImageBlock& x, int64_t width, const ClassSplit& classes, float* sums)
      : x_(x), width_(width), classes_(classes), sums_(sums) {}

  // The pixels of [pixels.begin, pixels.end) that the tap reaches.
  void run(const Tap& tap, const Reach& to, Range pixels, const float* weights, bool add) {
    for (int64_t h = std::max(to.top, pixels.begin / width_); h < to.bottom && h * width_ < pixels.end; ++h) {
      const int64_t begin = std::max(h * width_ + to.left, pixels.begin);
      const int64_t end = std::min(h * width_ + to.right, pixels.end);
      const float* from = x_.data + (h + tap.dy) * x_.stride_h + (begin - h * width_ + tap.dx) * x_.stride_w;
      for (int64_t p = begin; p < end; ++p, from += x_.stride_w) {
        from_[count_] = from;
        to_[count_] = sums_ + p * classes_.sums();
        if (++count_ == kPixelBlock) flush(weights, add);
      }
    }
    flush(weights, add);
  }

 private:
  // A block of pixels may go on in the next row, so that few are incomplete.
  void flush(const float* weights, bool add) {
    const PanelShape& shape = panel_kernels().shape;
    const int lanes = static_cast<int>(classes_.lanes), rows = shape.rows_for(lanes);
    float* sums[kPixelBlock];
    for (int64_t k = 0; k < classes_.in_panels; k += lanes, weights += x_.length * lanes) {
      for (int m = 0; m < count_; ++m) sums[m] = to_[m] + k;
      for (int m = 0; m < count_; m += rows)
        panel_kernels().panel_product(
            {std::min(rows, count_ - m), lanes, 1, x_.length, from_ + m, &weights, sums + m, add});
    }
    for (int64_t k = 0; k < classes_.rest; k += kMaxDotClasses) {
      const int together = static_cast<int>(std::min<int64_t>(kMaxDotClasses, classes_.rest - k));
      for (int m = 0; m < count_; ++m) sums[m] = to_[m] + classes_.in_panels + k * classes_.unit;
      for (int m = 0; m < count_; m += shape.rows[together])
        panel_kernels().dot_product({std::min(shape.rows[together], count_ - m), together, x_.length, from_ + m,
                                     weights + k * x_.length, sums + m, add});
    }
    count_ = 0;
  }

  const ImageBlock x_;
  const int64_t width_;
  const ClassSplit classes_;
  float* const sums_;
  const float* from_[kPixelBlock];
  float* to_[kPixelBlock];
  int count_ = 0;
};

int64_t packed_stride(const ChannelBlock& block) {
  return block.padded + kSkew;
}

ImageBlock pack_block(const Maps& x, int64_t n, const ChannelBlock& block, float* packed, Parallel& parallel) {
  const int64_t stride = packed_stride(block);
  parallel_for(parallel, x.height, [&](int64_t h) {
    float* row = packed + h * x.width * stride;
    pack_row(x, n, h, block.begin, block.end - block.begin, stride, row);
    for (int64_t w = 0; w < x.width; ++w)
      std::fill(row + w * stride + block.end - block.begin, row + w * stride + block.padded, 0.0f);
  });
  return {packed, x.width * stride, stride, block.padded};
}

}  // namespace

int64_t aspp_tap_count(const std::vector<Branch>& branches) {
  return static_cast<int64_t>(make_taps(branches).size());
}

int64_t aspp_packed_size(const std::vector<Branch>& branches, int64_t classes, int64_t channels) {
  return static_cast<int64_t>(make_taps(branches).size()) * classes * padded_channels(channels);
}

void aspp_pack(const std::vector<Branch>& branches, const std::vector<BranchWeight>& weights, int64_t classes,
               int64_t channels, float* packed, Parallel& parallel) {
  const std::vector<Tap> taps = make_taps(branches);
  const int64_t count = static_cast<int64_t>(taps.size());
  share_out(parallel, channel_blocks(channels) * count, [&](int64_t i) {
    const ChannelBlock block = channel_block(channels, i / count);
    float* to = packed + (block.padded_begin * count + i % count * block.padded) * classes;
    bool first = true;
    for (const TapSource& source : taps[static_cast<size_t>(i % count)].sources) {
      const BranchWeight& weight = weights[static_cast<size_t>(source.branch)];
      const Maps element{weight.data, weight.element, 0, 0, 0, 0, 0, 0, 0, 0};
      by_element(element, [&](const auto* data) { pack_tap(weight, data, source, first, block, classes, to); });
      first = false;
    }
  });
}

void aspp_forward(const std::vector<Branch>& branches, const Maps& x, const float* packed, const float* bias,
                  const MutableMaps& out, Parallel& parallel) {
  const std::vector<Tap> taps = make_taps(branches);
  const int64_t count = static_cast<int64_t>(taps.size()), classes = out.channels, pixels = x.pixels();
  const ClassSplit parts = split(classes);
  const std::vector<int64_t> work = work_before(taps, x.height, x.width);
  const int64_t pieces = std::max<int64_t>(1, std::min(parallel.threads() * kPiecesPerThread, pixels / kLeastPixels));
  // The pixel at which a piece of equal work begins.
  const auto border = [&](int64_t i) {
    return std::lower_bound(work.begin(), work.end(), work.back() * i / pieces) - work.begin();
  };
  Buffer<float> packed_x(pixels * packed_stride(channel_block(x.channels, 0))), sums(pixels * parts.sums());
  for (int64_t n = 0; n < x.batch; ++n) {
    for (int64_t b = 0; b < channel_blocks(x.channels); ++b) {
      const ChannelBlock block = channel_block(x.channels, b);
      const ImageBlock from = pack_block(x, n, block, packed_x.data(), parallel);
      share_out(parallel, pieces, [&](int64_t piece) {
        const Range range{border(piece), piece + 1 == pieces ? pixels : border(piece + 1)};
        TapProduct product(from, x.width, parts, sums.data());
        for (int64_t t = 0; t < count; ++t) {
          const Tap& tap = taps[static_cast<size_t>(t)];
          const Reach to = reach(tap, x.height, x.width);
          if (!to.empty())
            product.run(tap, to, range, packed + (block.padded_begin * count + t * block.padded) * classes,
                        b > 0 || t > 0);
        }
      });
    }
    parallel_for(parallel, x.height, [&](int64_t h) {
      std::vector<float> row(static_cast<size_t>(x.width * classes));
      for (int64_t w = 0; w < x.width; ++w) {
        const float* from = sums.data() + (h * x.width + w) * parts.sums();
        float* to = row.data() + w * classes;
        std::copy(from, from + parts.in_panels, to);
        panel_kernels().add_lanes(from + parts.in_panels, parts.rest, to + parts.in_panels);
        for (int64_t k = 0; bias != nullptr && k < classes; ++k) to[k] += bias[k];
      }
      unpack_row(row.data(), classes, n, h, 0, classes, out);
    });
  }
}

}  // namespace deeplab_fast
