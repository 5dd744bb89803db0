// The wide inner loops of upsampling. Compiled per instruction set.
#include "isa/isa.h"
#include "upsample/bilinear.h"
#include "upsample/tiles.h"

namespace deeplab_fast {
namespace DEEPLAB_FAST_ISA_NAME {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif

using Mask8 = Vec<8>::mask;

template <int W>
DEEPLAB_FAST_INLINE typename Vec<W>::mask load_integers(const int32_t* from) {
  return read_bytes<typename Vec<W>::mask>(from);
}

// --- Argmax ----------------------------------------------------------------------------------------------------------
//
// In a cell all weights are at least 0, so a class can be the largest somewhere only if at some corner it is not below
// the class whose corners have the largest sum. Mixing rounds monotonically, so this holds for computed scores, too.
// Of many classes a few are left: what was classes x output elements becomes classes x cells.

// 8 neighbouring cells, the first one's left column being `column`.
struct Cells {
  const RowPair& logits;
  int64_t column, right;  // right: column of the right corners, of the first cell

  struct Corners {
    Vec8 corner[4];  // upper left, upper right, lower left, lower right
  };
  DEEPLAB_FAST_INLINE Corners corners_of(int k) const {
    const float *upper = logits.upper + k * logits.stride, *lower = logits.lower + k * logits.stride;
    return {{load8(upper + column), load8(upper + right), load8(lower + column), load8(lower + right)}};
  }
  // The corners of a class of its own for each cell.
  Corners corners_of(const int32_t* classes) const {
    float values[4][8];
    for (int cell = 0; cell < 8; ++cell) {
      const int64_t row = classes[cell] * logits.stride + cell;
      values[0][cell] = logits.upper[row + column], values[1][cell] = logits.upper[row + right];
      values[2][cell] = logits.lower[row + column], values[3][cell] = logits.lower[row + right];
    }
    return {{load8(values[0]), load8(values[1]), load8(values[2]), load8(values[3])}};
  }
};

DEEPLAB_FAST_INLINE bool any(Mask8 mask) {
  uint64_t parts[4];
  __builtin_memcpy(parts, &mask, sizeof(parts));
  return ((parts[0] | parts[1]) | (parts[2] | parts[3])) != 0;
}

// candidates[cell][..]: ascending, the classes that may be the largest somewhere in the cell; all of them where a
// score is not finite, for which the above does not hold.
void find_candidates(const Cells& cells, int32_t* candidates, int* counts) {
  const int classes = cells.logits.classes;
  Vec8 largest = broadcast<8>(-__builtin_inff());
  Mask8 champion{}, not_finite{};
  for (int k = 0; k < classes; ++k) {
    const auto [corner] = cells.corners_of(k);
    const Vec8 sum = (corner[0] + corner[1]) + (corner[2] + corner[3]);
    const Mask8 larger = sum > largest;
    not_finite |= (sum - sum) != 0.0f;
    largest = larger ? sum : largest;
    champion = larger ? Mask8{} + k : champion;
  }
  int32_t champions[8];
  __builtin_memcpy(champions, &champion, sizeof(champions));
  const auto [best] = cells.corners_of(champions);
  for (int cell = 0; cell < 8; ++cell) counts[cell] = 0;
  for (int k = 0; k < classes; ++k) {
    const auto [corner] = cells.corners_of(k);
    Mask8 above{}, equal{};
    for (int i = 0; i < 4; ++i) above |= corner[i] > best[i], equal |= corner[i] == best[i];
    const Mask8 kept = above | (equal & (champion >= k)) | not_finite;  // equal to an earlier class: never first
    if (!any(kept)) continue;
    int32_t keep[8];
    __builtin_memcpy(keep, &kept, sizeof(keep));
    for (int cell = 0; cell < 8; ++cell) {
      candidates[cell * classes + counts[cell]] = k;
      counts[cell] -= keep[cell];  // true is -1
    }
  }
}

// The output elements of one cell.
void choose_in_cell(const ArgmaxRows& work, int64_t column, const int32_t* candidates, int count) {
  const RowPair& logits = work.logits;
  const ColumnTaps& columns = work.columns;
  const int64_t begin = columns.first[column], end = columns.first[column + 1];
  if (count == 1) {
    for (int64_t y = 0; y < work.rows.count; ++y)
      for (int64_t x = begin; x < end; ++x) work.out[y * columns.width + x] = candidates[0];
    return;
  }
  float* corner[4];
  for (int i = 0; i < 4; ++i) corner[i] = work.corners + i * int64_t{logits.classes};
  float *left = corner[3] + logits.classes, *right = left + logits.classes;
  for (int i = 0; i < count; ++i) {
    const int64_t at = candidates[i] * logits.stride + column;
    corner[0][i] = logits.upper[at], corner[1][i] = logits.upper[at + columns.span];
    corner[2][i] = logits.lower[at], corner[3][i] = logits.lower[at + columns.span];
  }
  for (int64_t y = 0; y < work.rows.count; ++y) {
    const float weight0 = work.rows.weight0[y], weight1 = work.rows.weight1[y];
    for (int i = 0; i < count; ++i) {
      left[i] = mix(corner[0][i], corner[2][i], weight0, weight1);
      right[i] = mix(corner[1][i], corner[3][i], weight0, weight1);
    }
    for (int64_t x = begin; x < end; x += 8) {
      const Vec8 to_left = load8(columns.weight0 + x), to_right = load8(columns.weight1 + x);
      Vec8 largest = mix(broadcast<8>(left[0]), broadcast<8>(right[0]), to_left, to_right);
      Mask8 chosen = Mask8{} + candidates[0];
      for (int i = 1; i < count; ++i) {
        const Vec8 score = mix(broadcast<8>(left[i]), broadcast<8>(right[i]), to_left, to_right);
        const Mask8 better = takes_over(score, largest);
        largest = better ? score : largest;
        chosen = better ? Mask8{} + candidates[i] : chosen;
      }
      for (int i = 0; i < up_to_8(end - x); ++i) work.out[y * columns.width + x + i] = chosen[i];
    }
  }
}

void argmax_rows(const ArgmaxRows& work) {
  const int64_t* first = work.columns.first;
  for (int64_t column = 0; column < work.logits.columns; column += 8) {
    const int cells = up_to_8(work.logits.columns - column);
    if (first[column] == first[column + cells]) continue;
    int counts[8];
    find_candidates({work.logits, column, column + work.columns.span}, work.candidates, counts);
    for (int cell = 0; cell < cells; ++cell)
      choose_in_cell(work, column + cell, work.candidates + cell * int64_t{work.logits.classes}, counts[cell]);
  }
}

// --- Softmax ---------------------------------------------------------------------------------------------------------

template <int W>
DEEPLAB_FAST_INLINE typename Vec<W>::type pick(typename Vec<W>::type from, typename Vec<W>::mask lane) {
#if defined(__clang__)
  typename Vec<W>::type result;
  for (int i = 0; i < W; ++i) result[i] = from[lane[i]];
  return result;
#else
  return __builtin_shuffle(from, lane);
#endif
}

// W output columns from `x`: mixes them out of a row of scores.
template <int W>
struct Mixer {
  typename Vec<W>::mask index0, index1;
  typename Vec<W>::type weight0, weight1;
  int64_t base;
  bool near;  // all they are mixed from lies in one vector: so it is where maps grow by a third or more

  DEEPLAB_FAST_INLINE Mixer(const ColumnTaps& columns, int64_t x)
      : index0(load_integers<W>(columns.index0 + x)),
        index1(load_integers<W>(columns.index1 + x)),
        weight0(load<W>(columns.weight0 + x)),
        weight1(load<W>(columns.weight1 + x)),
        base(columns.index0[x]),
        near(columns.index1[x + W - 1] - columns.index0[x] < W) {
    index0 -= static_cast<int32_t>(base), index1 -= static_cast<int32_t>(base);
  }
  template <bool kNear>
  DEEPLAB_FAST_INLINE typename Vec<W>::type operator()(const float* scores) const {
    typename Vec<W>::type left, right;
    if constexpr (kNear) {
      const auto all = load<W>(scores + base);
      left = pick<W>(all, index0), right = pick<W>(all, index1);
    } else {
      for (int i = 0; i < W; ++i) left[i] = scores[base + index0[i]], right[i] = scores[base + index1[i]];
    }
    return mix(left, right, weight0, weight1);
  }
};

// Softmax of W output columns: tile[k][0..W).
template <int W, bool kNear>
void softmax_columns(const SoftmaxRow& work, const Mixer<W>& mixer, float* tile) {
  using V = typename Vec<W>::type;
  const int classes = work.logits.classes;
  V largest = broadcast<W>(-__builtin_inff());
  for (int k = 0; k < classes; ++k) {
    const V score = mixer.template operator()<kNear>(work.scores + k * work.logits.stride);
    store<W>(tile + k * work.tile_width, score);
    largest = Max{}(largest, score);
  }
  V sum = V{};
  for (int k = 0; k < classes; ++k) {
    float* entry = tile + k * work.tile_width;
    const V power = exp_of<W>(load<W>(entry) - largest);  // NaN and +inf become NaN, and so does the sum
    store<W>(entry, power);
    sum = sum + power;
  }
  const V factor = 1.0f / sum;
  for (int k = 0; k < classes; ++k) {
    float* entry = tile + k * work.tile_width;
    store<W>(entry, load<W>(entry) * factor);
  }
}

void write_tile(const float* tile, int64_t tile_width, int classes, const MutableScoreRow& row, int64_t begin,
                int64_t count) {
  by_element(row, [&](auto* data) {
    write_elements(tile, tile_width, classes, data + begin * row.stride_w, row.stride_k, row.stride_w, count);
  });
}

void softmax_row(const SoftmaxRow& work) {
  const RowPair& logits = work.logits;
  for (int64_t i = 0; i < logits.classes * logits.stride; ++i)
    work.scores[i] = mix(logits.upper[i], logits.lower[i], work.weight0, work.weight1);
  for (int64_t begin = 0; begin < work.columns.width; begin += work.tile_width) {
    const int64_t rest = work.columns.width - begin, count = rest < work.tile_width ? rest : work.tile_width;
    for (int64_t x = 0; x < count; x += kLanes) {
      const Mixer<kLanes> mixer(work.columns, begin + x);
      if (mixer.near)
        softmax_columns<kLanes, true>(work, mixer, work.tile + x);
      else
        softmax_columns<kLanes, false>(work, mixer, work.tile + x);
    }
    write_tile(work.tile, work.tile_width, logits.classes, work.out, begin, count);
  }
}

// --- Gradient of softmax ---------------------------------------------------------------------------------------------

void read_tile(const ScoreRow& row, int64_t begin, int64_t count, int classes, float* tile, int64_t tile_width) {
  by_element(row, [&](const auto* data) {
    read_elements(data + begin * row.stride_w, row.stride_k, row.stride_w, count, classes, tile, tile_width);
  });
}

// One row of a tile: upper and lower += the gradient to its scores, times the weights of the row.
void gradient_of_tile(const float* grad, const float* out, int classes, int64_t tile_width, int64_t count,
                      float weight0, float weight1, float* upper, float* lower) {
  using V = Vec<kLanes>::type;
  for (int64_t x = 0; x < count; x += kLanes) {
    V dot = V{};
    for (int64_t at = x; at < classes * tile_width; at += tile_width)
      dot = dot + load<kLanes>(grad + at) * load<kLanes>(out + at);
    for (int64_t at = x; at < classes * tile_width; at += tile_width) {
      const V to_score = softmax_gradient(load<kLanes>(out + at), load<kLanes>(grad + at), dot);
      store<kLanes>(upper + at, load<kLanes>(upper + at) + weight0 * to_score);
      store<kLanes>(lower + at, load<kLanes>(lower + at) + weight1 * to_score);
    }
  }
}

// The adjoint of mixing columns: row[column] += the tile's elements times their weights.
void gather_columns(const ColumnTaps& columns, int64_t begin, int64_t count, const float* tile, float* row) {
  for (int64_t x = begin; x < begin + count;) {
    const int32_t left = columns.index0[x], right = columns.index1[x];
    float to_left = 0.0f, to_right = 0.0f;
    for (; x < begin + count && columns.index0[x] == left; ++x) {
      to_left += columns.weight0[x] * tile[x - begin];
      to_right += columns.weight1[x] * tile[x - begin];
    }
    row[left] += to_left;
    row[right] += to_right;
  }
}

void softmax_gradient_rows(const SoftmaxGradientRows& work) {
  const int classes = work.classes;
  const int64_t tile_size = classes * work.tile_width;
  float *grad = work.tiles, *out = grad + tile_size, *upper = out + tile_size, *lower = upper + tile_size;
  for (int64_t begin = 0; begin < work.columns.width; begin += work.tile_width) {
    const int64_t rest = work.columns.width - begin, count = rest < work.tile_width ? rest : work.tile_width;
    for (int64_t i = 0; i < tile_size; ++i) upper[i] = 0.0f, lower[i] = 0.0f;
    for (int64_t y = 0; y < work.rows.count; ++y) {
      read_tile(row_below(work.grad, y * work.grad_stride_h), begin, count, classes, grad, work.tile_width);
      read_tile(row_below(work.out, y * work.out_stride_h), begin, count, classes, out, work.tile_width);
      gradient_of_tile(grad, out, classes, work.tile_width, count, work.rows.weight0[y], work.rows.weight1[y], upper,
                       lower);
    }
    for (int k = 0; k < classes; ++k) {
      gather_columns(work.columns, begin, count, upper + k * work.tile_width, work.upper + k * work.stride);
      gather_columns(work.columns, begin, count, lower + k * work.tile_width, work.lower + k * work.stride);
    }
  }
}

}  // namespace

extern const UpsampleKernels upsample_kernels;
const UpsampleKernels upsample_kernels{
    DEEPLAB_FAST_SET,
    DEEPLAB_FAST_KERNEL(argmax_rows),
    DEEPLAB_FAST_KERNEL(softmax_row),
    DEEPLAB_FAST_KERNEL(softmax_gradient_rows),
    DEEPLAB_FAST_KERNEL(read_tile),
    DEEPLAB_FAST_KERNEL(write_tile),
};

}  // namespace DEEPLAB_FAST_ISA_NAME
}  // namespace deeplab_fast
