#include "base/buffer.h"
#include "base/share_out.h"
#include "convolution/panel.h"
#include "convolution/tap_list.h"
#include "convolution/taps.h"

namespace deeplab_fast {
namespace {

// Pixels whose tables of rows are held at once.
constexpr int64_t kPixelChunk = 16384;
// Terms that are added up at once. Longer sums are made of such, or they would lose more by rounding than stock
// PyTorch's do.
constexpr int64_t kTerms = 256;
// Panels packed together: reading so few channels of a channels_last map page by page is slow, and gets faster by that.
constexpr int64_t kPanelsTogether = 4;

// The rows of grad that enter each tile of pixels of the gradient to x: to_x(p) = sum over taps of weightᵀ · grad(p -
// offset). A tile has the taps that enter any of its pixels; a pixel that one does not enter gets a row of zeros.
class TileTable {
 public:
  struct Tile {
    int64_t first, count;     // pixels
    int64_t entry, segments;  // where its taps begin, and how many there are
  };

  // Pixels [begin, end) of a batch of maps; grad holds rows of `classes` floats, and a row of zeros.
  TileTable(const std::vector<Tap>& taps, int64_t height, int64_t width, Range pixels, int64_t rows, const float* grad,
            const float* zeros, int64_t classes) {
    int64_t entry = 0, pointer = 0;
    for (int64_t first = pixels.begin; first < pixels.end; first += rows) {
      const int64_t count = std::min(rows, pixels.end - first);
      Tile tile{first, count, entry, 0};
      int64_t row[kMaxPanelRows], column[kMaxPanelRows];
      for (int64_t m = 0; m < count; ++m) {
        row[m] = (first + m) / width % height;
        column[m] = (first + m) % width;
      }
      for (size_t t = 0; t < taps.size(); ++t) {
        bool any = false;
        rows_.resize(static_cast<size_t>(pointer + count));
        for (int64_t m = 0; m < count; ++m) {
          const int64_t h = row[m] - taps[t].dy, w = column[m] - taps[t].dx;
          const bool inside = h >= 0 && h < height && w >= 0 && w < width;
          const int64_t source = first + m - taps[t].dy * width - taps[t].dx;
          rows_[static_cast<size_t>(pointer + m)] = inside ? grad + source * classes : zeros;
          any |= inside;
        }
        if (!any) continue;
        taps_.push_back(static_cast<int32_t>(t));
        pointer += count;
        ++entry;
      }
      tile.segments = entry - tile.entry;
      pointers_.push_back(pointer - tile.segments * count);
      tiles_.push_back(tile);
    }
  }

  int64_t size() const { return static_cast<int64_t>(tiles_.size()); }
  const Tile& tile(int64_t i) const { return tiles_[static_cast<size_t>(i)]; }
  const int32_t* taps(int64_t i) const { return taps_.data() + tile(i).entry; }
  const float* const* rows(int64_t i) const { return rows_.data() + pointers_[static_cast<size_t>(i)]; }

 private:
  std::vector<Tile> tiles_;
  std::vector<int64_t> pointers_;   // by tile: where its rows begin
  std::vector<int32_t> taps_;       // by tile and segment
  std::vector<const float*> rows_;  // by tile, segment and pixel of the tile
};

// out[tap][k][lane], lane for channel: the weights of a panel of channels, taps of equal offset added.
void pack_channels(const std::vector<Tap>& taps, const std::vector<BranchWeight>& weights, int64_t classes, Range panel,
                   int64_t lanes, float* out) {
  std::fill(out, out + static_cast<int64_t>(taps.size()) * classes * lanes, 0.0f);
  for (const Tap& tap : taps) {
    for (const TapSource& source : tap.sources) {
      const BranchWeight& weight = weights[static_cast<size_t>(source.branch)];
      const Maps element{weight.data, weight.element, 0, 0, 0, 0, 0, 0, 0, 0};
      by_element(element, [&](const auto* data) {
        const auto* origin =
            data + source.i * weight.stride_h + source.j * weight.stride_w + panel.begin * weight.stride_c;
        for (int64_t k = 0; k < classes; ++k)
          for (int64_t c = 0; c < panel.end - panel.begin; ++c)
            out[k * lanes + c] += to_float(origin[k * weight.stride_k + c * weight.stride_c]);
      });
    }
    out += classes * lanes;
  }
}

}  // namespace

void aspp_backward_x(const std::vector<Branch>& branches, const std::vector<BranchWeight>& weights, const Maps& grad,
                     const MutableMaps& to_x, Parallel& parallel) {
  const std::vector<Tap> taps = make_taps(branches);
  const int64_t classes = grad.channels, pixels = grad.pixels(), channels = to_x.channels;
  const int64_t lanes = panel_kernels().shape.middle(), panels = (channels + lanes - 1) / lanes;
  const int64_t images = std::max<int64_t>(1, kPixelChunk / pixels);  // at once
  const int64_t together = std::max<int64_t>(1, kTerms / classes);    // taps
  const int64_t panel_size = static_cast<int64_t>(taps.size()) * classes * lanes;
  Buffer<float> rows((std::min(images, grad.batch) * pixels + 1) * classes);
  float* zeros = rows.data() + rows.size() - classes;
  std::fill(zeros, zeros + classes, 0.0f);
  for (int64_t n = 0; n < grad.batch; n += images) {
    const int64_t batch = std::min(images, grad.batch - n);
    parallel_for(parallel, batch * grad.height, [&](int64_t row) {
      pack_row(grad, n + row / grad.height, row % grad.height, 0, classes, classes,
               rows.data() + row * grad.width * classes);
    });
    const TileTable table(taps, grad.height, grad.width, {0, batch * pixels},
                          panel_kernels().shape.rows_for(static_cast<int>(lanes)), rows.data(), zeros, classes);
    share_out(parallel, panels, [&](int64_t i) {
      const Range panel{i * lanes, std::min((i + 1) * lanes, channels)};
      Buffer<float> weight(panel_size), sums(batch * pixels * lanes);
      pack_channels(taps, weights, classes, panel, lanes, weight.data());
      std::vector<const float*> segment(taps.size());
      float* out[kMaxPanelRows];
      for (int64_t t = 0; t < table.size(); ++t) {
        const TileTable::Tile& tile = table.tile(t);
        for (int64_t s = 0; s < tile.segments; ++s)
          segment[static_cast<size_t>(s)] = weight.data() + table.taps(t)[s] * classes * lanes;
        for (int64_t m = 0; m < tile.count; ++m) out[m] = sums.data() + (tile.first + m) * lanes;
        for (int64_t s = 0; s < tile.segments; s += together)
          panel_kernels().panel_product({static_cast<int>(tile.count), static_cast<int>(lanes),
                                         std::min(together, tile.segments - s), classes, table.rows(t) + s * tile.count,
                                         segment.data() + s, out, s > 0});
      }
      for (int64_t row = 0; row < batch * grad.height; ++row)
        unpack_row(sums.data() + row * grad.width * lanes, lanes, n + row / grad.height, row % grad.height, panel.begin,
                   panel.end - panel.begin, to_x);
    });
  }
}

namespace {

// One image's part of the gradient to the weights of a panel of channels: sums[tap][k][lane] += sum over pixels of
// grad[k][p] · x[p + offset][lane].
class WeightProduct {
 public:
  WeightProduct(const std::vector<Tap>& taps, int64_t classes, int64_t height, int64_t width, int64_t lanes)
      : taps_(taps),
        classes_(classes),
        height_(height),
        width_(width),
        lanes_(lanes),
        most_(panel_kernels().shape.rows_for(static_cast<int>(lanes))),
        rows_(static_cast<size_t>(height * most_)),
        panels_(static_cast<size_t>(height)) {}

  void run(const float* grad, const float* x, float* sums) {
    const int64_t groups = (classes_ + most_ - 1) / most_;
    for (const Tap& tap : taps_) {
      const Reach to = reach(tap, height_, width_);
      if (!to.empty()) {
        const int64_t shift = tap.dy * width_ + tap.dx;
        for (int64_t h = to.top; h < to.bottom; ++h)
          panels_[static_cast<size_t>(h - to.top)] = x + (h * width_ + to.left + shift) * lanes_;
        for (int64_t g = 0; g < groups; ++g) run_group(part_of(classes_, groups, g), to, grad, sums);
      }
      sums += classes_ * lanes_;
    }
  }

 private:
  void run_group(Range group, const Reach& to, const float* grad, float* sums) {
    const int64_t count = group.end - group.begin;
    float* out[kMaxPanelRows];
    for (int64_t m = 0; m < count; ++m) {
      out[m] = sums + (group.begin + m) * lanes_;
      const float* row = grad + (group.begin + m) * height_ * width_ + to.left;
      for (int64_t h = to.top; h < to.bottom; ++h)
        rows_[static_cast<size_t>((h - to.top) * count + m)] = row + h * width_;
    }
    const int64_t length = to.right - to.left, height = to.bottom - to.top;
    const int64_t together = std::max<int64_t>(1, kTerms / length);  // rows
    for (int64_t h = 0; h < height; h += together)
      panel_kernels().panel_product({static_cast<int>(count), static_cast<int>(lanes_), std::min(together, height - h),
                                     length, rows_.data() + h * count, panels_.data() + h, out, true});
  }

  const std::vector<Tap>& taps_;
  const int64_t classes_, height_, width_, lanes_, most_;
  std::vector<const float*> rows_, panels_;
};

// From sums[tap][k][lane] to the weights' own layout; taps of equal offset get the same.
void store_weights(const std::vector<Branch>& branches, const std::vector<Tap>& taps, const float* sums,
                   int64_t classes, int64_t channels, Range panel, int64_t lanes,
                   const std::vector<float*>& to_weights) {
  for (const Tap& tap : taps) {
    for (const TapSource& source : tap.sources) {
      const Branch& branch = branches[static_cast<size_t>(source.branch)];
      const int64_t size = branch.kernel_height * branch.kernel_width;
      float* to = to_weights[static_cast<size_t>(source.branch)] + source.i * branch.kernel_width + source.j;
      for (int64_t k = 0; k < classes; ++k)
        for (int64_t c = panel.begin; c < panel.end; ++c)
          to[(k * channels + c) * size] = sums[k * lanes + c - panel.begin];
    }
    sums += classes * lanes;
  }
}

}  // namespace

void aspp_backward_weights(const std::vector<Branch>& branches, const Maps& grad, const Maps& x,
                           const std::vector<float*>& to_weights, Parallel& parallel) {
  const std::vector<Tap> taps = make_taps(branches);
  const int64_t classes = grad.channels, pixels = grad.pixels(), channels = x.channels;
  const int64_t lanes = panel_kernels().shape.middle(), together = lanes * kPanelsTogether;
  const int64_t tap_sums = static_cast<int64_t>(taps.size()) * classes * lanes;
  // grad[n][k][pixel]
  Buffer<float> maps(grad.batch * classes * pixels);
  const MutableMaps by_class{maps.data(), Element::kFloat,  grad.batch, classes,    grad.height,
                             grad.width,  classes * pixels, pixels,     grad.width, 1};
  parallel_for(parallel, grad.batch * grad.height, [&](int64_t row) {
    const int64_t n = row / grad.height, h = row % grad.height;
    std::vector<float> packed(static_cast<size_t>(grad.width * classes));
    pack_row(grad, n, h, 0, classes, classes, packed.data());
    unpack_row(packed.data(), classes, n, h, 0, classes, by_class);
  });
  share_out(parallel, (channels + together - 1) / together, [&](int64_t i) {
    const Range all{i * together, std::min((i + 1) * together, channels)};
    const int64_t panels = (all.end - all.begin + lanes - 1) / lanes;
    Buffer<float> packed(panels * pixels * lanes), sums(panels * tap_sums);
    std::fill(packed.begin(), packed.end(), 0.0f);
    std::fill(sums.begin(), sums.end(), 0.0f);
    WeightProduct product(taps, classes, x.height, x.width, lanes);
    for (int64_t n = 0; n < x.batch; ++n) {
      for (int64_t h = 0; h < x.height; ++h)
        for (int64_t panel = 0; panel < panels; ++panel) {
          const int64_t first = all.begin + panel * lanes;
          pack_row(x, n, h, first, std::min(lanes, all.end - first), lanes,
                   packed.data() + (panel * pixels + h * x.width) * lanes);
        }
      for (int64_t panel = 0; panel < panels; ++panel)
        product.run(maps.data() + n * classes * pixels, packed.data() + panel * pixels * lanes,
                    sums.data() + panel * tap_sums);
    }
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t first = all.begin + panel * lanes;
      store_weights(branches, taps, sums.data() + panel * tap_sums, classes, channels,
                    {first, std::min(first + lanes, all.end)}, lanes, to_weights);
    }
  });
}

}  // namespace deeplab_fast
