// CUDA kernels of the backward pass of mean-field inference (the formulas are in dense_crf_backward.cpp).
#pragma once

#include "crf/dense_crf.cuh"

namespace deeplab_fast {
namespace {

// energy_grad = -q (grad - <grad, q>), of rows; added to unary_grad.
__global__ void softmax_backward_kernel(int64_t points, int labels, const float* q, const float* grad,
                                        float* energy_grad, float* unary_grad) {
  const int group = group_of(labels);
  const GroupItem item = group_item(points, group);
  for (int64_t at = item.item; at < item.rounded; at += item.step) {
    const int64_t row = (at < points ? at : points - 1) * labels;
    float mean = 0.0f;
    for (int label = item.lane; label < labels; label += group) mean += q[row + label] * grad[row + label];
    mean = group_sum(mean, group);
    for (int label = item.lane; at < points && label < labels; label += group) {
      const float value = q[row + label] * (mean - grad[row + label]);
      energy_grad[row + label] = value;
      unary_grad[row + label] += value;
    }
  }
}

// sums[point] += <a, b>, of rows.
__global__ void row_products_kernel(int64_t points, int labels, const float* a, const float* b, float* sums) {
  const int group = group_of(labels);
  const GroupItem item = group_item(points, group);
  for (int64_t at = item.item; at < item.rounded; at += item.step) {
    const int64_t row = (at < points ? at : points - 1) * labels;
    float sum = 0.0f;
    for (int label = item.lane; label < labels; label += group) sum += a[row + label] * b[row + label];
    sum = group_sum(sum, group);
    if (at < points && item.lane == 0) sums[at] += sum;
  }
}

// to[p] = factor[p] * from[p], of rows, added to what is there if `add`; factor null: 1.
__global__ void scale_rows_kernel(int64_t points, int labels, const float* factor, const float* from, bool add,
                                  float* to) {
  for (int64_t i = first_item(); i < points * labels; i += item_step()) {
    const float value = factor == nullptr ? from[i] : factor[i / labels] * from[i];
    to[i] = add ? to[i] + value : value;
  }
}

// From the factors' gradients, each times its factor, to that of what filtering makes of ones: see store_features.
__global__ void normalization_backward_kernel(int64_t points, bool root, const float* norm, float* grad) {
  for (int64_t i = first_item(); i < points; i += item_step()) grad[i] *= root ? -0.5f * norm[i] * norm[i] : -norm[i];
}

// Compatibilities: sums over points of products of rows, in pieces of points whose sums are added in a second step.
constexpr int kSumPiece = 512;

__host__ __device__ inline int64_t sum_pieces(int64_t points) {
  return (points + kSumPiece - 1) / kSumPiece;
}

// partial[piece][l] = sum of a[p][l] * b[p][l]; for a matrix partial[piece][l][m] = sum of a[p][l] * b[p][m].
__global__ void products_kernel(int64_t points, int labels, bool matrix, const float* a, const float* b,
                                float* partial) {
  const int64_t pieces = sum_pieces(points), size = matrix ? int64_t{labels} * labels : labels;
  for (int64_t i = first_item(); i < pieces * size; i += item_step()) {
    const int64_t piece = i / size, element = i - piece * size;
    const int64_t left = matrix ? element / labels : element, right = matrix ? element - left * labels : element;
    const int64_t begin = piece * kSumPiece, end = begin + kSumPiece < points ? begin + kSumPiece : points;
    float sum = 0.0f;
    for (int64_t point = begin; point < end; ++point) sum += a[point * labels + left] * b[point * labels + right];
    partial[i] = sum;
  }
}

// sums[i] += sum of partial[piece][i], in double.
__global__ void add_products_kernel(int64_t pieces, int64_t size, const float* partial, double* sums) {
  for (int64_t i = first_item(); i < size; i += item_step()) {
    double sum = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) sum += partial[piece * size + i];
    sums[i] += sum;
  }
}

// The gradient to a compat, from the sums of its iterations.
__global__ void compat_grad_kernel(int labels, int compat_dimensions, const double* sums, float* out) {
  const int64_t size = compat_dimensions == 0 ? 1 : compat_dimensions == 1 ? labels : int64_t{labels} * labels;
  for (int64_t i = first_item(); i < size; i += item_step()) {
    if (compat_dimensions == 0) {
      double sum = 0;
      for (int label = 0; label < labels; ++label) sum += sums[label];
      out[i] = static_cast<float>(-sum);
    } else if (compat_dimensions == 1) {
      out[i] = static_cast<float>(sums[i]);
    } else {
      const int64_t row = i / labels, column = i - row * labels;
      out[i] = static_cast<float>(0.5 * (sums[i] + sums[column * labels + row]));
    }
  }
}

}  // namespace
}  // namespace deeplab_fast
