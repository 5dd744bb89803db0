#include "lattice/vertex_key.h"

#include <algorithm>
#include <cmath>

namespace deeplab_fast {
namespace {

struct Interval {
  double low = 0, high = 0;
  void add(double factor, double from, double to) {
    low += std::min(factor * from, factor * to);
    high += std::max(factor * from, factor * to);
  }
};

// Coefficient of scaled feature j in elevated coordinate i.
double elevation(int i, int j) {
  return j >= i ? 1.0 : j == i - 1 ? -static_cast<double>(i) : 0.0;
}

}  // namespace

double elevated_bound(int i, int D, const std::vector<float>& feature_low, const std::vector<float>& feature_high) {
  Interval bound;
  for (int j = 0; j < D; ++j) bound.add(elevation(i, j) * embedding_scale(j, D), feature_low[j], feature_high[j]);
  return std::max(std::abs(bound.low), std::abs(bound.high));
}

FieldLayout::FieldLayout(int D, const std::vector<float>& feature_low, const std::vector<float>& feature_high) {
  // Rounding, wrapping, the D steps through a simplex and one blur step move a field by less than this many units.
  constexpr double kMargin = 16;
  // No key passes kMaxKey, so no field passes this, whatever the (pessimistic) interval says.
  constexpr double kLargest = 4.0 * (kMaxKey + 1);
  int used = 0;
  for (int f = 0; f < D; ++f) {
    Interval range;
    for (int j = 0; j < D; ++j) {
      std::vector<double> column(std::max(D + 1, 3));
      for (int i = 0; i <= D; ++i) column[i] = elevation(i, j) / (D + 1);
      range.add(field_of_cell(f, D, column.data(), 1) * embedding_scale(j, D), feature_low[j], feature_high[j]);
    }
    const double margin = kMargin * (f == 2 || D == 1 ? D + 1 : 1);
    const double from = std::floor(std::max(range.low, -kLargest) - margin);
    const double to = std::ceil(std::min(range.high, kLargest) + margin);
    const int width = static_cast<int>(std::ceil(std::log2(to - from + 1)));
    if (used + width > 64) ++words, used = 0;
    low.push_back(static_cast<int64_t>(from));
    word.push_back(words - 1);
    bits.push_back(width);
    used += width;
  }
  // Earlier fields are the more significant ones.
  shift.resize(D);
  for (int f = D - 1, below = 0; f >= 0; --f) {
    if (f + 1 < D && word[f + 1] != word[f]) below = 0;
    shift[f] = below;
    below += bits[f];
  }
}

}  // namespace deeplab_fast
