// Labels that need no computation of their own.
//
// Under Potts compatibility a label meets the others only in the softmax's sum. Labels with one and the same unary
// therefore have the same Q in every iteration: one of them is computed, counted as many times as it stands for. That
// is exact, and common: a softmax clipped at 1e-5 leaves most of 182 classes with a constant unary.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/buffer.h"
#include "base/parallel.h"
#include "lattice/row_kernels.h"
#include "lattice/visit_order.h"

namespace deeplab_fast {

// Floats in a pixel's row of labels, whole vectors also for one.
inline int label_lanes(int labels) {
  return row_lanes(std::max(labels, 2));
}

// Unary energies in the form the pixel pass reads: pixel-major in visiting order, negated, one lane per group of
// labels, and shifted so that the likeliest label of each pixel has 0, which changes no softmax and lets most do
// without a search for the maximum.
struct UnaryRows {
  int labels = 0;
  bool finite = true;                // no NaN or infinity in the energies given
  std::vector<int> group_of_label;   // [labels]
  std::vector<int> labels_of_group;  // [groups] how many
  Buffer<float> negative;            // [points][label_lanes(groups)]
  Buffer<float> highest;             // [points] what was subtracted

  int groups() const { return static_cast<int>(labels_of_group.size()); }
  bool collapsed() const { return groups() < labels; }
};

// unary[l * points + i]; null stands for zero throughout. Groups labels with equal unary.
UnaryRows group_equal_labels(const float* unary, int labels, const VisitOrder& order, Parallel& parallel);

// The same unary with a lane for every label.
UnaryRows expand_groups(const UnaryRows& rows, int64_t points, Parallel& parallel);

// Also groups labels whose Q provably stays at or below `epsilon` everywhere and always. With d_l the least amount by
// which label l's energy exceeds the pixel's lowest, and `pairwise` a bound of the sum over kernels of weight times
// filtered ones, exp(-d_l + pairwise * epsilon) <= epsilon is enough, by induction over the iterations. The group's
// unary is that of its members' mean probability. Returns rows with fewer lanes, or an empty UnaryRows if there is
// nothing to gain.
UnaryRows group_unlikely_labels(const UnaryRows& rows, int64_t points, float epsilon, float pairwise,
                                Parallel& parallel);

}  // namespace deeplab_fast
