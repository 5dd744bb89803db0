#include "crf/label_groups.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "lattice/row_kernels.h"

namespace deeplab_fast {
namespace {

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

namespace {

// Rows of one block, of the labels `first` (of each group its first); returns whether all energies are finite.
bool fill_rows(const float* unary, const std::vector<int>& first, int64_t points, const PointBlock& block, int lanes,
               UnaryRows& rows) {
  const auto groups = static_cast<int>(first.size());
  float* highest = rows.highest.data() + block.begin;
  float* negative = rows.negative.data() + block.begin * lanes;
  std::fill_n(highest, block.count(), unary == nullptr ? 0.0f : -std::numeric_limits<float>::infinity());
  bool finite = true;
  for (int g = 0; g < groups && unary != nullptr; ++g)
    block.each_line([&](int32_t place, int64_t point, int32_t count) {
      const float* from = unary + first[g] * points + point;
      finite &= finite_values(from, count);
      for (int32_t i = 0; i < count; ++i) highest[place + i] = std::max(highest[place + i], -from[i]);
    });
  for (int g = 0; g < lanes; ++g)
    block.each_line([&](int32_t place, int64_t point, int32_t count) {
      const float* from = g < groups && unary != nullptr ? unary + first[g] * points + point : nullptr;
      float* to = negative + int64_t{place} * lanes + g;
      for (int32_t i = 0; i < count; ++i)
        to[int64_t{i} * lanes] = from != nullptr ? -from[i] - highest[place + i] : g < groups ? 0.0f : kPadding;
    });
  return finite;
}

}  // namespace

UnaryRows group_equal_labels(const float* unary, int labels, const VisitOrder& order, Parallel& parallel) {
  UnaryRows rows;
  rows.labels = labels;
  rows.group_of_label.assign(labels, 0);
  std::vector<int> first;
  const int64_t points = order.points;
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
  const int lanes = label_lanes(rows.groups());
  rows.negative.reset(points * lanes), rows.highest.reset(points);
  std::atomic<bool> finite{true};
  parallel_for(parallel, order.chunks(), [&](int64_t chunk) {
    for (const PointBlock* block = order.begin(chunk); block < order.end(chunk); ++block)
      if (!fill_rows(unary, first, points, *block, lanes, rows)) finite = false;
  });
  rows.finite = finite;
  return rows;
}

UnaryRows expand_groups(const UnaryRows& rows, int64_t points, Parallel& parallel) {
  UnaryRows expanded;
  expanded.labels = rows.labels;
  expanded.labels_of_group.assign(rows.labels, 1);
  for (int l = 0; l < rows.labels; ++l) expanded.group_of_label.push_back(l);
  const int from_lanes = label_lanes(rows.groups()), lanes = label_lanes(rows.labels);
  expanded.finite = rows.finite;
  expanded.negative.reset(points * lanes), expanded.highest.reset(points);
  std::copy(rows.highest.begin(), rows.highest.end(), expanded.highest.begin());
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
  const int groups = rows.groups(), lanes = label_lanes(groups);
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
  const int new_lanes = label_lanes(kept + 1);
  const auto members = static_cast<float>(result.labels_of_group[kept]);
  result.finite = rows.finite;
  result.negative.reset(points * new_lanes), result.highest.reset(points);
  std::copy(rows.highest.begin(), rows.highest.end(), result.highest.begin());
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
