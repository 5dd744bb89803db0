// What a task does of building a lattice: the simplices of its points, block by block, and their vertices, numbered as
// they are met. Included by build.cpp.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "lattice/geometry_kernels.h"
#include "lattice/lattice.h"
#include "lattice/vertex_key.h"
#include "lattice/vertex_set.h"

namespace deeplab_fast {

[[noreturn]] inline void throw_overflow() {
  throw std::invalid_argument(
      "features: key range overflow: a lattice coordinate is beyond +-32767 (pydensecrf would wrap around); features "
      "should be smaller, that is, the standard deviations (sigmas) larger");
}

// The simplices of one block of points as they are found.
template <int kWords>
class BlockSimplices {
 public:
  explicit BlockSimplices(int corners) : corners_(corners), base_(kMost), axes_(kMost * corners) { clear(); }

  void clear() {
    count_ = 0;
    std::fill(slots_.begin(), slots_.end(), kEmpty);
  }
  int count() const { return count_; }
  // Number of the simplex with that vertex of remainder 0 and those ranks, packed into a word; one more point lies in
  // it. With more corners than a word has room for (`whole` false) every point has a simplex of its own. `rank` has the
  // ranks one by one, `stride` apart.
  int add(const Key<kWords>& base, uint64_t ranks, bool whole, const int32_t* rank, int64_t stride) {
    size_t slot = (base.hash() ^ ranks * 0x9E3779B97F4A7C15u) >> 53;
    for (; whole && slots_[slot] != kEmpty; slot = (slot + 1) & (kSlots - 1)) {
      const int found = slots_[slot];
      if (ranks_[found] != ranks || !(base_[found] == base)) continue;
      ++size_[found];
      return found;
    }
    slots_[slot] = static_cast<uint16_t>(count_);
    base_[count_] = base, ranks_[count_] = ranks, size_[count_] = 1;
    for (int i = 0; i < corners_; ++i) axes_[count_ * corners_ + rank[i * stride]] = static_cast<uint16_t>(i);
    return count_++;
  }
  const Key<kWords>& base(int simplex) const { return base_[simplex]; }
  const uint16_t* axis_of_rank(int simplex) const { return &axes_[simplex * corners_]; }
  int size(int simplex) const { return size_[simplex]; }

  // The simplices by how many points they have, those of equally many in the order in which they were found: a loop
  // over the points of each then seldom surprises the processor. And of each its first point among the block's.
  void sort(std::vector<int>& order, std::vector<int>& first) {
    std::fill(first_of_size_.begin(), first_of_size_.end(), 0);
    for (int s = 0; s < count_; ++s) ++first_of_size_[size_[s] + 1];
    for (int n = 1; n <= kMost; ++n) first_of_size_[n + 1] += first_of_size_[n];
    order.resize(count_), first.resize(count_);
    for (int s = 0; s < count_; ++s) order[first_of_size_[size_[s]]++] = s;
    int points = 0;
    for (const int s : order) first[s] = points, points += size_[s];
  }

 private:
  static constexpr int kMost = VisitOrder::kMostInBlock, kSlots = 2048;
  static_assert(kSlots == 1 << (64 - 53) && kSlots >= 2 * kMost);
  static constexpr uint16_t kEmpty = 0xffff;

  const int corners_;
  int count_ = 0;
  std::vector<Key<kWords>> base_;
  std::vector<uint16_t> axes_;  // [kMost][corners]
  std::array<uint64_t, kMost> ranks_;
  std::array<uint16_t, kMost> size_;
  std::array<uint16_t, kSlots> slots_;
  std::array<int, kMost + 2> first_of_size_;
};

// The chunk's part of the lattice: its simplices with chunk-local numbers of vertices, and lattice.place and .weight.
template <int kWords>
class ChunkBuilder {
 public:
  using Vertices = VertexSet<kWords, int32_t>;

  ChunkBuilder(Lattice& lattice, const FieldLayout& layout, const float* scale, bool check_overflow)
      : lattice_(lattice),
        layout_(layout),
        D_(lattice.dimensions),
        scale_(scale),
        check_overflow_(check_overflow),
        block_(SimplexBlock::size(D_)),
        located_(SimplexBlock::in(block_.data(), D_)),
        weights_(int64_t{VisitOrder::kMostInBlock} * (D_ + 1)),
        one_word_{layout.low.data(), layout.shift.data()},
        simplices_(D_ + 1) {
    for (int i = 0; i <= D_; ++i) steps_.push_back(layout.step<kWords>(D_, i));
  }

  void add_block(const float* features, const PointBlock& block) {
    simplices_.clear();
    block.each_stretch(kPointBlock, [&](int32_t place, int64_t first, int32_t count) {
      locate(features, lattice_.points, first, count);
      find_simplices(place, count);
    });
    store(block);
  }

  // pydensecrf works on four points at a time and fills the last four up with points at feature 0. Their values are
  // never used, but their vertices exist, and so change the blur; we agree with it, so we have them as well.
  void add_phantom_vertices() {
    const std::vector<float> origin(D_);
    touched_ = vertices_.size();
    simplices_.clear();
    locate(origin.data(), 1, 0, 1);
    find_simplices(0, 1);
    each_corner(0, [&](const Key<kWords>& key) { vertices_.insert(key); });
  }
  // Vertices from this number on were not touched by any point of the chunk.
  int64_t touched() const { return std::min(touched_, vertices_.size()); }

  const Vertices& vertices() const { return vertices_; }
  const std::vector<int64_t>& simplices_of_block() const { return simplices_of_block_; }
  const std::vector<uint16_t>& sizes() const { return sizes_; }
  // See Lattice::corner.
  const std::vector<uint16_t>& corners() const { return corners_; }
  // Of each block, how many, and which: chunk-local numbers, complemented where they are new.
  const std::vector<int64_t>& vertices_of_block() const { return vertices_of_block_; }
  const std::vector<int32_t>& ids() const { return ids_; }

 private:
  static constexpr int kMaxRankedDimensions = 15;  // ranks of four bits each fit a word

  void locate(const float* features, int64_t stride, int64_t first, int count) {
    geometry_kernels().locate(D_, features, stride, first, count, scale_, kWords == 1 ? &one_word_ : nullptr, located_);
  }

  Key<kWords> base_key(int p) const {
    Key<kWords> key = layout_.zero<kWords>();
    if constexpr (kWords == 1) {
      key.word[0] = located_.key[p];
    } else {
      const int32_t* cell = located_.cell + p;
      for (int f = 0; f < D_; ++f) layout_.add(key, f, field_of_cell(f, D_, cell, kPointBlock) - layout_.low[f]);
    }
    return key;
  }

  // Of the points located last, which lie at `place` in their block.
  void find_simplices(int32_t place, int count) {
    for (int p = 0; p < count; ++p) {
      if (check_overflow_) check_cell(located_.cell + p);
      simplex_of_[place + p] = static_cast<uint16_t>(
          simplices_.add(base_key(p), located_.ranks[p], D_ <= kMaxRankedDimensions, located_.rank + p, kPointBlock));
    }
    for (int j = 0; j <= D_; ++j)
      std::copy_n(&located_.weight[j * kPointBlock], count, &weights_[int64_t{j} * VisitOrder::kMostInBlock + place]);
  }

  void check_cell(const int32_t* cell) const {
    for (int i = 0; i < D_; ++i) {
      const int64_t key = int64_t{cell[i * kPointBlock]} * (D_ + 1);
      if (key < -kMaxKey + D_ + 1 || key > kMaxKey - D_ - 1) throw_overflow();
    }
  }

  // Calls body(key) for the simplex's vertices of remainder 0..D.
  template <class Body>
  void each_corner(int simplex, Body&& body) {
    Key<kWords> key = simplices_.base(simplex);
    const uint16_t* axis_of_rank = simplices_.axis_of_rank(simplex);
    for (int k = 0; k <= D_; ++k) {
      body(key);
      key += steps_[axis_of_rank[D_ - k]];
    }
  }

  void store(const PointBlock& block) {
    const int count = simplices_.count();
    simplices_.sort(order_, next_);
    for (const int simplex : order_) sizes_.push_back(static_cast<uint16_t>(simplices_.size(simplex)));
    simplices_of_block_.push_back(count);
    store_vertices();
    for (int32_t place = 0; place < block.count(); ++place) {
      const int64_t to = block.begin + next_[simplex_of_[place]]++;
      lattice_.place[to] = static_cast<uint16_t>(place);
      float* weight = &lattice_.weight[to * (D_ + 1)];
      for (int j = 0; j <= D_; ++j) weight[j] = weights_[int64_t{j} * VisitOrder::kMostInBlock + place];
    }
  }

  void store_vertices() {
    const size_t before = ids_.size();
    if (lattice_.has_numbered_corners()) {
      size_t at = corners_.size();
      corners_.resize(at + order_.size() * (D_ + 1));
      of_block_.clear();
      for (const int simplex : order_)
        each_corner(simplex, [&](const Key<kWords>& key) {
          const int32_t id = of_block_.insert(key);
          corners_[at++] = static_cast<uint16_t>(id ^ id >> 31);
        });
      ids_.resize(before + of_block_.size());
      for (int64_t i = 0; i < of_block_.size(); ++i) ids_[before + i] = vertices_.insert(of_block_[i]);
    } else {
      for (const int simplex : order_)
        each_corner(simplex, [&](const Key<kWords>& key) { ids_.push_back(vertices_.insert(key)); });
    }
    vertices_of_block_.push_back(static_cast<int64_t>(ids_.size() - before));
  }

  Lattice& lattice_;
  const FieldLayout& layout_;
  const int D_;
  const float* scale_;
  const bool check_overflow_;
  std::vector<Key<kWords>> steps_;
  Buffer<float> block_;
  SimplexBlock located_;
  Buffer<float> weights_;  // of a block, [D + 1][place]
  OneWordKey one_word_;
  std::array<uint16_t, VisitOrder::kMostInBlock> simplex_of_;
  BlockSimplices<kWords> simplices_;
  std::vector<int> order_, next_;
  std::vector<int64_t> simplices_of_block_;
  std::vector<int64_t> vertices_of_block_;
  std::vector<uint16_t> sizes_, corners_;
  std::vector<int32_t> ids_;
  VertexSet<kWords, int16_t> of_block_{13};
  Vertices vertices_{14};
  int64_t touched_ = INT64_MAX;
};

}  // namespace deeplab_fast
