#include "crf/pairwise_energy.h"

#include <algorithm>

namespace deeplab_fast {

BilinearScaling::Direction::Direction(int64_t from_size, double factor)
    : from(from_size),
      to(static_cast<int64_t>(static_cast<double>(from_size) * factor)),
      same(factor == 1.0),
      start(from_size + 1) {
  const Axis axis{from, to, static_cast<float>(1.0 / factor), same ? 0 : 1};
  for (int64_t i = 0; i < to; ++i) {
    taps.push_back(tap_of(axis, i));
    ++start[taps[i].index0 + 1];
    ++start[taps[i].index1 + 1];
    halves &= taps[i].index0 == 2 * i && taps[i].index1 == 2 * i + 1 && taps[i].weight0 == 0.5f;
  }
  for (int64_t i = 0; i < from; ++i) start[i + 1] += start[i];
  looks.resize(2 * to);
  weight.resize(2 * to);
  std::vector<int64_t> next(start.begin(), start.end() - 1);
  const auto add = [&](int64_t source, int64_t i, float part) {
    looks[next[source]] = i;
    weight[next[source]++] = part;
  };
  for (int64_t i = 0; i < to; ++i) {
    add(taps[i].index0, i, taps[i].weight0);
    add(taps[i].index1, i, taps[i].weight1);
  }
}

BilinearScaling::BilinearScaling(int64_t height, int64_t width, double factor)
    : y_(height, factor), x_(width, factor) {}

void BilinearScaling::scale(const float* plane, float* scaled) const {
  if (y_.same) {
    std::copy_n(plane, points(), scaled);
    return;
  }
  std::vector<float> mixed(x_.from);
  for (int64_t y = 0; y < y_.to; ++y, scaled += x_.to) {
    const BilinearTap& row = y_.taps[y];
    const float* above = plane + row.index0 * x_.from;
    const float* below = plane + row.index1 * x_.from;
    for (int64_t x = 0; x < x_.from; ++x) mixed[x] = row.weight0 * above[x] + row.weight1 * below[x];
    scale_row(mixed.data(), scaled);
  }
}

void BilinearScaling::scale_row(const float* row, float* scaled) const {
  if (x_.halves) {
    for (int64_t x = 0; x < x_.to; ++x) scaled[x] = 0.5f * row[2 * x] + 0.5f * row[2 * x + 1];
    return;
  }
  for (int64_t x = 0; x < x_.to; ++x) {
    const BilinearTap& tap = x_.taps[x];
    scaled[x] = tap.weight0 * row[tap.index0] + tap.weight1 * row[tap.index1];
  }
}

void BilinearScaling::scale_row_back(const float* scaled, float times, float* row) const {
  if (x_.halves) {
    for (int64_t x = 0; x < x_.to; ++x) row[2 * x] = row[2 * x + 1] = 0.5f * times * scaled[x];
    std::fill(row + 2 * x_.to, row + x_.from, 0.0f);
    return;
  }
  for (int64_t x = 0; x < x_.from; ++x) {
    float sum = 0;
    for (int64_t i = x_.start[x]; i < x_.start[x + 1]; ++i) sum += x_.weight[i] * scaled[x_.looks[i]];
    row[x] = times * sum;
  }
}

void BilinearScaling::scale_back(const float* scaled, float times, float* plane) const {
  if (y_.same) {
    std::transform(scaled, scaled + points(), plane, [times](float value) { return times * value; });
    return;
  }
  std::vector<float> wide(y_.to * x_.from);
  for (int64_t y = 0; y < y_.to; ++y) scale_row_back(scaled + y * x_.to, times, wide.data() + y * x_.from);
  for (int64_t y = 0; y < y_.from; ++y, plane += x_.from) {
    const int64_t begin = y_.start[y], end = y_.start[y + 1];
    if (begin == end) std::fill_n(plane, x_.from, 0.0f);
    for (int64_t i = begin; i < end; ++i) {
      const float* row = wide.data() + y_.looks[i] * x_.from;
      const float weight = y_.weight[i];
      if (i == begin)
        for (int64_t x = 0; x < x_.from; ++x) plane[x] = weight * row[x];
      else
        for (int64_t x = 0; x < x_.from; ++x) plane[x] += weight * row[x];
    }
  }
}

namespace {

// Float sums of a few hundred products each, in double together.
double dot(const float* a, const float* b, int64_t count) {
  constexpr int64_t kAtOnce = 512, kLanes = 16;
  double total = 0;
  for (int64_t from = 0; from < count; from += kAtOnce) {
    const int64_t to = std::min(from + kAtOnce, count), whole = from + (to - from) / kLanes * kLanes;
    float sum[kLanes] = {};
    for (int64_t i = from; i < whole; i += kLanes)
      for (int64_t lane = 0; lane < kLanes; ++lane) sum[lane] += a[i + lane] * b[i + lane];
    for (int64_t i = whole; i < to; ++i) sum[0] += a[i] * b[i];
    for (const float lane : sum) total += lane;
  }
  return total;
}

void multiply(const float* factor, int64_t count, float* values) {
  for (int64_t i = 0; i < count; ++i) values[i] *= factor[i];
}

}  // namespace

double pairwise_energy(const Lattice& lattice, int64_t channels, const float* inside, float* values, float* gradient,
                       Parallel& parallel) {
  const int64_t points = lattice.points;
  const auto apply_inside = [&](float* planes) {
    if (inside != nullptr)
      parallel_for(parallel, channels, [&](int64_t c) { multiply(inside, points, planes + c * points); });
  };
  apply_inside(values);
  filter(lattice, lattice.view(channels, parallel), values, channels, Blur::kBothWays, gradient, parallel);
  std::vector<double> of_channel(channels);
  parallel_for(parallel, channels,
               [&](int64_t c) { of_channel[c] = dot(values + c * points, gradient + c * points, points); });
  apply_inside(gradient);
  double energy = 0;
  for (const double one : of_channel) energy += one;
  return energy / 2;  // S' (A + A') S is twice S' A S
}

}  // namespace deeplab_fast
