// CUDA kernels of mean-field inference: slice the filtered Q out of the lattices, add the unary, softmax. A group of
// threads has a point, a label each (or every group-th one).
#pragma once

#include "lattice/permutohedral_filter.cuh"

namespace deeplab_fast {
namespace {

// One pairwise kernel as the fused pass sees it.
template <class Row>
struct SliceTerm {
  const int32_t* vertex;
  const float* weight;
  const float* after;   // [points] factor of the normalisation, or null
  const Row* rows;      // filtered Q
  const float* compat;  // on the device: [1] Potts, [labels] diagonal, [labels][labels] symmetric matrix
  float scale;          // slice_scale
  int32_t corners, compat_dimensions;
};

constexpr int kMostTerms = 4;   // pairwise kernels of a fused pass
constexpr int kMostBlocks = 6;  // of 32 labels each
constexpr float kLowest = -3e38f;

template <class Row>
struct MeanFieldPass {
  int64_t points;
  int32_t labels, terms;
  const float* negative_unary;  // [points][labels]
  SliceTerm<Row> term[kMostTerms];
  Row* q;          // [points][labels], for the next splat, or null
  float* history;  // [points][labels], in full, or null
};

// Q = softmax(-U - sum over terms of compat(filtered Q)).
template <class Row, int kBlocks>
__global__ void mean_field_kernel(MeanFieldPass<Row> pass) {
  const int labels = pass.labels, group = group_of(labels);
  const GroupItem item = group_item(pass.points, group);
  const int lane = item.lane;
  for (int64_t at = item.item; at < item.rounded; at += item.step) {
    const bool real = at < pass.points;
    const int64_t point = real ? at : pass.points - 1;
    float score[kBlocks], filtered[kBlocks];
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const int label = lane + b * group;
      score[b] = label < labels ? pass.negative_unary[point * labels + label] : kLowest;
    }
    for (int k = 0; k < pass.terms; ++k) {
      const SliceTerm<Row>& term = pass.term[k];
      const int32_t* vertex = term.vertex + point * term.corners;
      const float* weight = term.weight + point * term.corners;
      const float scale = term.after == nullptr ? term.scale : term.scale * term.after[point];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        const int label = lane + b * group;
        filtered[b] = label < labels ? scale * slice(vertex, weight, term.corners, labels, label, term.rows) : 0.0f;
        if (label >= labels || term.compat_dimensions == 2) continue;
        // Potts energy is -w F, a diagonal's +v F.
        score[b] += term.compat_dimensions == 0 ? term.compat[0] * filtered[b] : -term.compat[label] * filtered[b];
      }
      if (term.compat_dimensions != 2) continue;
#pragma unroll
      for (int other = 0; other < kBlocks; ++other) {
        for (int from = 0; from < group; ++from) {
          const float value = __shfl_sync(kAllLanes, filtered[other], from, group);
          const int row = other * group + from;
#pragma unroll
          for (int b = 0; b < kBlocks; ++b) {
            const int label = lane + b * group;
            if (row < labels && label < labels) score[b] -= value * term.compat[row * labels + label];
          }
        }
      }
    }
    float highest = kLowest, sum = 0.0f;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) highest = score[b] > highest ? score[b] : highest;
    highest = group_max(highest, group);
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      score[b] = lane + b * group < labels ? expf(score[b] - highest) : 0.0f;
      sum += score[b];
    }
    const float inverse = 1.0f / group_sum(sum, group);
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const int label = lane + b * group;
      if (!real || label >= labels) continue;
      if (pass.q != nullptr) store(pass.q + point * labels + label, score[b] * inverse);
      if (pass.history != nullptr) pass.history[point * labels + label] = score[b] * inverse;
    }
  }
}

// --- Step by step, for any number of labels and terms --------------------------------------------------------------

// rows (points, labels) through a compatibility: out[p] = sign * C rows[p], added to what is there if `add`. Potts is
// -w, as an energy. `out` is not `rows`.
__global__ void transform_kernel(int64_t points, int labels, const float* compat, int compat_dimensions, float sign,
                                 const float* rows, bool add, float* out) {
  for (int64_t i = first_item(); i < points * labels; i += item_step()) {
    const int64_t point = i / labels;
    const int label = static_cast<int>(i - point * labels);
    float value = 0.0f;
    if (compat_dimensions == 0) value = -compat[0] * rows[i];
    if (compat_dimensions == 1) value = compat[label] * rows[i];
    for (int row = 0; compat_dimensions == 2 && row < labels; ++row)
      value += rows[point * labels + row] * compat[row * int64_t{labels} + label];
    out[i] = add ? out[i] + sign * value : sign * value;
  }
}

// Q = softmax(scores), of rows; q and history as in MeanFieldPass. They may be `scores`.
template <class Row>
__global__ void softmax_kernel(int64_t points, int labels, const float* scores, Row* q, float* history) {
  const int group = group_of(labels);
  const GroupItem item = group_item(points, group);
  for (int64_t at = item.item; at < item.rounded; at += item.step) {
    const bool real = at < points;
    const float* row = scores + (real ? at : points - 1) * labels;
    float highest = kLowest, sum = 0.0f;
    for (int label = item.lane; label < labels; label += group) highest = row[label] > highest ? row[label] : highest;
    highest = group_max(highest, group);
    for (int label = item.lane; label < labels; label += group) sum += expf(row[label] - highest);
    const float inverse = 1.0f / group_sum(sum, group);
    for (int label = item.lane; real && label < labels; label += group) {
      const float value = expf(row[label] - highest) * inverse;
      if (q != nullptr) store(q + at * labels + label, value);
      if (history != nullptr) history[at * labels + label] = value;
    }
  }
}

// m -> (m + m') / 2
__global__ void symmetric_kernel(int labels, const float* matrix, float* out) {
  for (int64_t i = first_item(); i < int64_t{labels} * labels; i += item_step()) {
    const int64_t row = i / labels, column = i - row * labels;
    out[i] = 0.5f * (matrix[i] + matrix[column * labels + row]);
  }
}

}  // namespace
}  // namespace deeplab_fast
