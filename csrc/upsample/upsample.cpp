#include "upsample/upsample.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "base/buffer.h"
#include "base/share_out.h"
#include "upsample/bilinear.h"
#include "upsample/upsample_kernels.h"

namespace deeplab_fast {

namespace {

template <class To, class Pointer>
ScoreRowOf<To> row_of(const MapsOf<Pointer>& scores, int64_t n, int64_t y) {
  const int64_t at = (n * scores.stride_n + y * scores.stride_h) * bytes_of(scores.element);
  if constexpr (std::is_same_v<To, void*>)
    return {static_cast<char*>(scores.data) + at, scores.element, scores.stride_c, scores.stride_w};
  else
    return {static_cast<const char*>(scores.data) + at, scores.element, scores.stride_c, scores.stride_w};
}

// Columns of a tile such that the whole of it stays in the first-level cache, or nearly.
int64_t tile_width_for(int64_t classes, int64_t tiles) {
  const int64_t columns = 8192 / (classes * tiles) / kOverrun * kOverrun;
  return std::clamp<int64_t>(columns, kOverrun, 256);
}

// What ColumnTaps points to.
class ColumnTables {
 public:
  ColumnTables(int64_t in, int64_t out)
      : width_(out),
        span_(static_cast<int32_t>(axis_of(in, out).span)),
        index_(2 * (out + kOverrun)),
        weight_(2 * (out + kOverrun)),
        first_(in + 1) {
    const Axis axis = axis_of(in, out);
    const int64_t length = out + kOverrun;
    for (int64_t x = 0; x < length; ++x) {
      const BilinearTap tap = tap_of(axis, std::min(x, out - 1));
      index_[x] = static_cast<int32_t>(tap.index0), index_[length + x] = static_cast<int32_t>(tap.index1);
      weight_[x] = tap.weight0, weight_[length + x] = tap.weight1;
    }
    for (int64_t column = 0; column <= in; ++column) first_[column] = first_output(axis, column);
  }
  ColumnTaps taps() const {
    const int64_t length = width_ + kOverrun;
    return {width_,        index_.data(), index_.data() + length, weight_.data(), weight_.data() + length,
            first_.data(), span_};
  }

 private:
  int64_t width_;
  int32_t span_;
  Buffer<int32_t> index_;
  Buffer<float> weight_;
  Buffer<int64_t> first_;
};

// The output rows of one row of cells: their number and weights.
class RowTables {
 public:
  RowTables(const Axis& axis, int64_t cell_row)
      : first_(first_output(axis, cell_row)), count_(first_output(axis, cell_row + 1) - first_), weight_(2 * count_) {
    for (int64_t y = 0; y < count_; ++y) {
      const BilinearTap tap = tap_of(axis, first_ + y);
      weight_[y] = tap.weight0, weight_[count_ + y] = tap.weight1;
    }
  }
  int64_t first() const { return first_; }
  RowTaps taps() const { return {count_, weight_.data(), weight_.data() + count_}; }

 private:
  int64_t first_, count_;
  Buffer<float> weight_;
};

// Two rows of logits as the kernels take them.
class RowLoader {
 public:
  explicit RowLoader(const Maps& logits)
      : logits_(logits),
        stride_((logits.width + kOverrun - 1) / kOverrun * kOverrun + kOverrun),
        memory_(2 * logits.channels * stride_) {}

  // Rows index0 and index1 of image n, each read once if asked for again.
  RowPair load(int64_t n, const BilinearTap& rows) {
    if (rows.index0 != loaded_[0] || n != image_) read(n, rows.index0, 0);
    if (rows.index1 != loaded_[1] || n != image_) read(n, rows.index1, 1);
    image_ = n;
    return {row(0), row(1), stride_, logits_.width, static_cast<int32_t>(logits_.channels)};
  }
  int64_t stride() const { return stride_; }

 private:
  float* row(int which) { return memory_.data() + which * logits_.channels * stride_; }
  void read(int64_t n, int64_t y, int which) {
    const int classes = static_cast<int>(logits_.channels);
    upsample_kernels().read_tile(row_of<const void*>(logits_, n, y), 0, logits_.width, classes, row(which), stride_);
    for (int64_t k = 0; k < classes; ++k) {
      float* scores = row(which) + k * stride_;
      std::fill(scores + logits_.width, scores + stride_, scores[logits_.width - 1]);
    }
    loaded_[which] = y;
  }

  const Maps& logits_;
  int64_t stride_;
  Buffer<float> memory_;
  int64_t image_ = -1, loaded_[2] = {-1, -1};
};

}  // namespace

void upsample_argmax(const Maps& logits, int64_t height, int64_t width, int64_t* out, Parallel& parallel) {
  struct Memory {
    RowLoader loader;
    Buffer<int32_t> candidates;
    Buffer<float> corners;
  };
  const Axis axis = axis_of(logits.height, height);
  const ColumnTables columns(logits.width, width);
  const auto make = [&] {
    return Memory{RowLoader(logits), Buffer<int32_t>(8 * logits.channels), Buffer<float>(6 * logits.channels)};
  };
  share_out_with(parallel, logits.batch * logits.height, make, [&](int64_t task, Memory& memory) {
    const int64_t n = task / logits.height;
    const RowTables rows(axis, task % logits.height);
    if (rows.taps().count == 0) return;
    const RowPair pair = memory.loader.load(n, tap_of(axis, rows.first()));
    upsample_kernels().argmax_rows({pair, columns.taps(), rows.taps(), out + (n * height + rows.first()) * width,
                                    memory.candidates.data(), memory.corners.data()});
  });
}

void upsample_softmax(const Maps& logits, const MutableMaps& out, Parallel& parallel) {
  struct Memory {
    RowLoader loader;
    Buffer<float> scores, tile;
  };
  constexpr int64_t kRows = 4;  // of one task: enough to read each row of logits about once
  const Axis axis = axis_of(logits.height, out.height);
  const ColumnTables columns(logits.width, out.width);
  const int64_t bands = (out.height + kRows - 1) / kRows;
  const int64_t tile_width = tile_width_for(logits.channels, 1);
  const auto make = [&] {
    RowLoader loader(logits);
    const int64_t size = logits.channels * loader.stride();
    return Memory{std::move(loader), Buffer<float>(size), Buffer<float>(logits.channels * tile_width)};
  };
  share_out_with(parallel, logits.batch * bands, make, [&](int64_t task, Memory& memory) {
    const int64_t n = task / bands, begin = task % bands * kRows;
    for (int64_t y = begin; y < std::min(begin + kRows, out.height); ++y) {
      const BilinearTap rows = tap_of(axis, y);
      const RowPair pair = memory.loader.load(n, rows);
      upsample_kernels().softmax_row({pair, columns.taps(), rows.weight0, rows.weight1, row_of<void*>(out, n, y),
                                      memory.scores.data(), memory.tile.data(), tile_width});
    }
  });
}

// Each row of cells has a part of the gradient to its upper and to its lower row of logits; a second pass adds the two
// that belong to the same row, so that the order of additions is always the same.
void upsample_softmax_backward(const Maps& grad, const Maps& out, const MutableMaps& to_logits, Parallel& parallel) {
  const int64_t batch = to_logits.batch, height = to_logits.height, width = to_logits.width;
  const int classes = static_cast<int>(to_logits.channels);
  const Axis axis = axis_of(height, out.height);
  const ColumnTables columns(width, out.width);
  const int64_t stride = (width + kOverrun - 1) / kOverrun * kOverrun, row_size = classes * stride;
  const int64_t tile_width = tile_width_for(classes, 4);
  Buffer<float> parts(2 * batch * height * row_size);
  const auto part = [&](int64_t row, int which) { return parts.data() + (2 * row + which) * row_size; };
  const auto make = [&] { return Buffer<float>(4 * classes * tile_width); };
  share_out_with(parallel, batch * height, make, [&](int64_t row, Buffer<float>& tiles) {
    const int64_t n = row / height;
    const RowTables rows(axis, row % height);
    std::fill(part(row, 0), part(row, 0) + 2 * row_size, 0.0f);
    if (rows.taps().count == 0) return;
    const ScoreRow grads = row_of<const void*>(grad, n, rows.first()), outs = row_of<const void*>(out, n, rows.first());
    upsample_kernels().softmax_gradient_rows({grads, outs, grad.stride_h, out.stride_h, classes, stride, columns.taps(),
                                              rows.taps(), part(row, 0), part(row, 1), tiles.data(), tile_width});
  });
  share_out(parallel, batch * height, [&](int64_t row) {
    const int64_t n = row / height, y = row % height;
    float* sum = part(row, 0);
    const auto add = [&](const float* lower) {
      for (int64_t i = 0; i < row_size; ++i) sum[i] += lower[i];
    };
    if (axis.span == 1 && y > 0) add(part(row - 1, 1));
    if (axis.span == 0 || y == height - 1) add(part(row, 1));  // the lower row of these cells is their upper one
    upsample_kernels().write_tile(sum, stride, classes, row_of<void*>(to_logits, n, y), 0, width);
  });
}

}  // namespace deeplab_fast
