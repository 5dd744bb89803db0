// A vertex's coordinates as one sortable integer (64 bits in every practical case, several words else).
//
// Instead of the coordinates x_0..x_D themselves we pack D linear combinations of them, because all coordinates of a
// vertex are congruent modulo D+1, which makes the combinations small integers, and because the first two follow the
// first two features: for an image they are the vertex's place in y and in x. Vertices sorted by this key therefore lie
// in memory as they lie in the image. Packing is linear, so stepping to a neighbour is one addition.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "lattice/geometry.h"

namespace deeplab_fast {

// kWords = 0: as many words as the layout needs, for very many dimensions.
template <int kWords>
struct Key {
  std::conditional_t<kWords == 0, std::vector<uint64_t>, std::array<uint64_t, kWords>> word{};

  friend bool operator==(const Key& a, const Key& b) {
    for (size_t w = 0; w < a.word.size(); ++w)
      if (a.word[w] != b.word[w]) return false;
    return true;
  }
  friend bool operator<(const Key& a, const Key& b) {
    for (size_t w = 0; w + 1 < a.word.size(); ++w)
      if (a.word[w] != b.word[w]) return a.word[w] < b.word[w];
    return a.word.back() < b.word.back();
  }
  Key& operator+=(const Key& other) {
    for (size_t w = 0; w < word.size(); ++w) word[w] += other.word[w];
    return *this;
  }
  // Its highest bits are the best.
  uint64_t hash() const {
    uint64_t h = 0;
    for (size_t w = 0; w < word.size(); ++w) h = (h ^ h >> 32 ^ word[w]) * 0x9E3779B97F4A7C15u;
    return (h ^ h >> 32) * 0x9E3779B97F4A7C15u;
  }
};

// Change of field f on the step from the vertex of remainder k to that of k+1 whose largest remaining difference is on
// `axis`; also, the step to the next vertex of a blur chain (all coordinates + 1, the axis' own - D).
inline int64_t field_step(int f, int D, int axis) {
  if (D == 1) return axis == 0 ? -1 : 1;
  if (f == 0) return axis == 2 ? 2 : axis < 2 ? -1 : 0;
  if (f == 1) return axis == 0 ? -1 : axis == 1 ? 1 : 0;
  if (f == 2) return axis == 2 ? -D : 1;
  return axis == f ? -1 : axis == 2 ? 1 : 0;
}

struct FieldLayout {
  std::vector<int64_t> low;  // smallest value, subtracted before packing
  std::vector<int> word, shift, bits;
  int words = 1;

  // Room for every field of every vertex of points whose features lie in [feature_low, feature_high], and of the
  // vertices' neighbours.
  FieldLayout(int D, const std::vector<float>& feature_low, const std::vector<float>& feature_high);

  template <int kWords>
  void add(Key<kWords>& key, int field, int64_t value) const {
    key.word[word[field]] += static_cast<uint64_t>(value) << shift[field];
  }
  template <int kWords>
  Key<kWords> zero() const {
    Key<kWords> key;
    if constexpr (kWords == 0) key.word.resize(words);
    return key;
  }
  template <int kWords>
  Key<kWords> step(int D, int axis) const {
    Key<kWords> key = zero<kWords>();
    for (int f = 0; f < D; ++f) add(key, f, field_step(f, D, axis));
    return key;
  }
};

// Bounds of the elevated coordinate i (times `sign` for the lower one), from those of the features.
double elevated_bound(int i, int D, const std::vector<float>& feature_low, const std::vector<float>& feature_high);

}  // namespace deeplab_fast
