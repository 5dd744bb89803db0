#include "crf/label_groups.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "lattice/row_kernels.h"

namespace deeplab_fast {
namespace {

constexpr int64_t kTile = 64;       // points transposed at a time
constexpr int64_t kTask = 4096;     // points per task
constexpr float kPadding = -1e30f;  // energy of the lanes that are no label: exp gives 0

int64_t tasks(int64_t points) {
  return (points + kTask - 1) / kTask;
}

bool equal_rows(const float* a, const float* b, int64_t points) {
  // Most labels differ at once; look at a few points spread over the image before reading all of it.
  for (int64_t i = 0; i < points; i += points / 16 + 1)
    if (a[i] != b[i]) return false;
  return std::memcmp(a, b, sizeof(float) * points) == 0;
}

// Looks at the exponents as integers, which the compiler makes vector code of.
bool finite_values(const float* values, int64_t count) {
  constexpr uint32_t kExponent = 0x7f800000;
  uint32_t not_finite = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof(bits));
    not_finite |= (bits & kExponent) == kExponent;
  }
  return not_finite == 0;
}

}  // namespace

UnaryRows group_equal_labels(const float* unary, int labels, int64_t points, Parallel& parallel) {
  UnaryRows rows;
  rows.labels = labels;
  rows.group_of_label.assign(labels, 0);
  std::vector<int> first;
  for (int l = 0; l < labels; ++l) {
    size_t group = 0;
    // Two labels are never worth merging: they have a path of their own.
    while (group < first.size() &&
           !(unary == nullptr || (labels > 2 && equal_rows(unary + first[group] * points, unary + l * points, points))))
      ++group;
    if (unary == nullptr && labels <= 2) group = first.size();
    if (group == first.size()) first.push_back(l), rows.labels_of_group.push_back(0);
    rows.group_of_label[l] = static_cast<int>(group);
    ++rows.labels_of_group[group];
  }
  const int groups = rows.groups(), lanes = row_lanes(groups);
  rows.negative.reset(points * lanes);
  std::atomic<bool> finite{true};
  parallel_for(parallel, tasks(points), [&](int64_t task) {
    const int64_t end = std::min(points, (task + 1) * kTask);
    bool all_finite = true;
    for (int64_t tile = task * kTask; tile < end; tile += kTile) {
      const int64_t tile_end = std::min(end, tile + kTile);
      for (int g = 0; g < lanes; ++g) {
        float* to = rows.negative.data() + g;
        const float* from = g < groups && unary != nullptr ? unary + first[g] * points : nullptr;
        if (from != nullptr) all_finite &= finite_values(from + tile, tile_end - tile);
        for (int64_t i = tile; i < tile_end; ++i)
          to[i * lanes] = from != nullptr ? -from[i] : g < groups ? 0.0f : kPadding;
      }
    }
    if (!all_finite) finite = false;
  });
  rows.finite = finite;
  return rows;
}

UnaryRows expand_groups(const UnaryRows& rows, int64_t points, Parallel& parallel) {
  UnaryRows expanded;
  expanded.labels = rows.labels;
  expanded.labels_of_group.assign(rows.labels, 1);
  for (int l = 0; l < rows.labels; ++l) expanded.group_of_label.push_back(l);
  const int from_lanes = row_lanes(rows.groups()), lanes = row_lanes(rows.labels);
  expanded.negative.reset(points * lanes);
  parallel_for(parallel, tasks(points), [&](int64_t task) {
    for (int64_t i = task * kTask; i < std::min(points, (task + 1) * kTask); ++i) {
      float* to = &expanded.negative[i * lanes];
      for (int l = 0; l < rows.labels; ++l) to[l] = rows.negative[i * from_lanes + rows.group_of_label[l]];
      std::fill(to + rows.labels, to + lanes, kPadding);
    }
  });
  return expanded;
}

UnaryRows group_unlikely_labels(const UnaryRows& rows, int64_t points, float epsilon, float pairwise,
                                Parallel& parallel) {
  const int groups = rows.groups(), lanes = row_lanes(groups);
  const int64_t count = tasks(points);
  std::vector<std::vector<float>> least(count);
  parallel_for(parallel, count, [&](int64_t task) {
    least[task].assign(groups, std::numeric_limits<float>::infinity());
    for (int64_t i = task * kTask; i < std::min(points, (task + 1) * kTask); ++i) {
      const float* row = &rows.negative[i * lanes];
      const float highest = *std::max_element(row, row + groups);
      for (int g = 0; g < groups; ++g) least[task][g] = std::min(least[task][g], highest - row[g]);
    }
  });
  const float enough = -std::log(epsilon) + pairwise * epsilon;
  std::vector<int> target(groups, -1);
  int kept = 0, merged = 0;
  for (int g = 0; g < groups; ++g) {
    float margin = std::numeric_limits<float>::infinity();
    for (const auto& part : least) margin = std::min(margin, part[g]);
    if (margin >= enough) {
      ++merged;
    } else {
      target[g] = kept++;
    }
  }
  UnaryRows result;
  if (merged < 2) return result;
  result.labels = rows.labels;
  result.labels_of_group.assign(kept + 1, 0);
  for (int l = 0; l < rows.labels; ++l) {
    const int group = target[rows.group_of_label[l]];
    result.group_of_label.push_back(group < 0 ? kept : group);
    ++result.labels_of_group[result.group_of_label.back()];
  }
  const int new_lanes = row_lanes(kept + 1);
  const auto members = static_cast<float>(result.labels_of_group[kept]);
  result.negative.reset(points * new_lanes);
  parallel_for(parallel, count, [&](int64_t task) {
    for (int64_t i = task * kTask; i < std::min(points, (task + 1) * kTask); ++i) {
      const float* row = &rows.negative[i * lanes];
      float* to = &result.negative[i * new_lanes];
      const float highest = *std::max_element(row, row + groups);
      float sum = 0;
      for (int g = 0; g < groups; ++g) {
        if (target[g] >= 0)
          to[target[g]] = row[g];
        else
          sum += static_cast<float>(rows.labels_of_group[g]) * std::exp(row[g] - highest);
      }
      to[kept] = std::max(highest + std::log(sum / members), kPadding);
      std::fill(to + kept + 1, to + new_lanes, kPadding);
    }
  });
  return result;
}

}  // namespace deeplab_fast
