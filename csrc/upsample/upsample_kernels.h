// The wide inner loops of upsampling (upsample_isa.cpp), compiled once per instruction set. The callers cut the ranges
// and own the memory. "Row" and "column" are of the logits' grid where not said otherwise; a cell lies between
// neighbouring rows and columns, and the output elements in it are mixed from its four corners.
#pragma once

#include <cstdint>

#include "base/element.h"

namespace deeplab_fast {

// Tables of output columns and rows of scores are longer than what they hold by this, so that vectors may run over.
constexpr int kOverrun = 16;

// One row of scores in a tensor.
template <class Pointer>
struct ScoreRowOf {
  Pointer data;
  Element element;
  int64_t stride_k, stride_w;
};
using ScoreRow = ScoreRowOf<const void*>;
using MutableScoreRow = ScoreRowOf<void*>;

// The row whose elements come `elements` later.
DEEPLAB_FAST_ALWAYS_INLINE ScoreRow row_below(const ScoreRow& row, int64_t elements) {
  return {static_cast<const char*>(row.data) + elements * bytes_of(row.element), row.element, row.stride_k,
          row.stride_w};
}

// Two rows of logits in float32: [classes][stride], `columns` of them filled and kOverrun more that hold anything.
struct RowPair {
  const float *upper, *lower;
  int64_t stride, columns;
  int32_t classes;
};

// Where output columns look: entries of BilinearTap, one an output column.
struct ColumnTaps {
  int64_t width;
  const int32_t *index0, *index1;
  const float *weight0, *weight1;
  const int64_t* first;  // [columns + 1] the output columns of cell c are first[c] .. first[c + 1]
  int32_t span;
};

// The output rows of one row of cells.
struct RowTaps {
  int64_t count;
  const float *weight0, *weight1;  // of the upper and the lower row of logits
};

struct ArgmaxRows {
  RowPair logits;
  ColumnTaps columns;
  RowTaps rows;
  int64_t* out;         // [rows][width]
  int32_t* candidates;  // [8][classes] scratch
  float* corners;       // [6][classes] scratch
};

struct SoftmaxRow {
  RowPair logits;
  ColumnTaps columns;
  float weight0, weight1;  // of the upper and the lower row of logits
  MutableScoreRow out;
  float* scores;       // [classes][stride of logits] scratch
  float* tile;         // [classes][tile_width] scratch
  int64_t tile_width;  // a multiple of kOverrun
};

// upper and lower += the gradient to the two rows of logits, from that to the output rows of their cells.
struct SoftmaxGradientRows {
  ScoreRow grad, out;  // the first output row
  int64_t grad_stride_h, out_stride_h;
  int32_t classes;
  int64_t stride;  // columns of the logits
  ColumnTaps columns;
  RowTaps rows;
  float *upper, *lower;  // [classes][stride]
  float* tiles;          // [4][classes][tile_width] scratch
  int64_t tile_width;    // a multiple of kOverrun
};

struct UpsampleKernels {
  const char* set;
  void (*argmax_rows)(const ArgmaxRows& work);
  void (*softmax_row)(const SoftmaxRow& work);
  void (*softmax_gradient_rows)(const SoftmaxGradientRows& work);
  // tile[k][x] = row(k, begin + x) for x < count, 0 up to the next multiple of kOverrun; and the reverse.
  void (*read_tile)(const ScoreRow& row, int64_t begin, int64_t count, int classes, float* tile, int64_t tile_width);
  void (*write_tile)(const float* tile, int64_t tile_width, int classes, const MutableScoreRow& row, int64_t begin,
                     int64_t count);
};
const UpsampleKernels& upsample_kernels();

}  // namespace deeplab_fast
