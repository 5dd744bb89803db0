// Building the lattice, in four parallel steps whose results do not depend on the number of threads:
//   1. every chunk of points finds its simplices and collects its distinct vertices in a small hash table;
//   2. the chunks' vertex lists are sorted together, which numbers the vertices in the order of their packed keys;
//   3. chunk-local numbers are replaced by the global ones;
//   4. neighbours are found by merging the sorted keys with themselves, one step along an axis further (lattice.cpp).
#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>

#include "lattice/geometry.h"
#include "lattice/geometry_kernels.h"
#include "lattice/lattice.h"
#include "lattice/radix_sort.h"
#include "lattice/vertex_key.h"
#include "lattice/vertex_set.h"

namespace deeplab_fast {

void link_neighbours(Lattice& lattice, const FieldLayout& layout, Parallel& parallel);

namespace {

struct Bounds {
  std::vector<float> low, high;
  bool may_overflow = false;
};

Bounds feature_bounds(const float* features, int D, int64_t points, Parallel& parallel) {
  Bounds bounds{std::vector<float>(D), std::vector<float>(D)};
  std::vector<char> finite(D);
  parallel_for(parallel, D, [&](int64_t d) {
    const FeatureRange range = geometry_kernels().feature_range(features + d * points, points);
    // The phantom points of `Lattice` lie at 0.
    bounds.low[d] = std::min(range.low, 0.0f), bounds.high[d] = std::max(range.high, 0.0f);
    finite[d] = range.finite;
  });
  for (int d = 0; d < D; ++d)
    if (!finite[d])
      throw std::invalid_argument("features: dimension " + std::to_string(d) +
                                  " has a NaN or infinite value, should be finite");
  for (int i = 0; i < D; ++i)
    bounds.may_overflow |= !(elevated_bound(i, D, bounds.low, bounds.high) + 3 * (D + 1) <= kMaxKey);
  return bounds;
}

[[noreturn]] void throw_overflow() {
  throw std::invalid_argument(
      "features: key range overflow: a lattice coordinate is beyond +-32767 (pydensecrf would wrap around); features "
      "should be smaller, that is, the standard deviations (sigmas) larger");
}

// The chunk's part of the lattice: fills lattice.vertex with chunk-local numbers and lattice.weight.
template <int kWords>
class ChunkBuilder {
 public:
  ChunkBuilder(Lattice& lattice, const FieldLayout& layout, const float* scale, bool check_overflow)
      : lattice_(lattice),
        layout_(layout),
        D_(lattice.dimensions),
        scale_(scale),
        check_overflow_(check_overflow),
        block_(SimplexBlock::size(D_)),
        simplices_(SimplexBlock::in(block_.data(), D_)),
        by_rank_(D_ + 1),
        axis_of_rank_(D_ + 1) {
    for (int i = 0; i <= D_; ++i) steps_.push_back(layout.step<kWords>(D_, i));
  }

  void add_points(const float* features, const PointTile* tile, const PointTile* end) {
    for (; tile < end; ++tile) {
      locate(features, lattice_.points, tile->first, tile->count);
      int32_t* ids = &lattice_.vertex[tile->first * lattice_.corners];
      float* weights = &lattice_.weight[tile->first * lattice_.corners];
      switch (D_) {
        case 2:
          return_ids<2>(tile->count, ids, weights);
          break;
        case 5:
          return_ids<5>(tile->count, ids, weights);
          break;
        default:
          return_ids<0>(tile->count, ids, weights);
      }
    }
  }

  // pydensecrf works on four points at a time and fills the last four up with points at feature 0. Their values are
  // never used, but their vertices exist, and so change the blur; we agree with it, so we have them as well.
  void add_phantom_vertices() {
    const std::vector<float> origin(D_);
    std::vector<int32_t> ids(D_ + 1);
    std::vector<float> weights(D_ + 1);
    touched_ = vertices_.keys().size();
    locate(origin.data(), 1, 0, 1);
    return_ids<0>(1, ids.data(), weights.data());
  }
  // Vertices from this number on were not touched by any point of the chunk.
  size_t touched() const { return std::min(touched_, vertices_.keys().size()); }

  const std::vector<Key<kWords>>& keys() const { return vertices_.keys(); }

 private:
  // A few recent simplices: neighbouring pixels often lie in the same one, which saves looking up its vertices.
  struct Recent {
    Key<kWords> base;
    uint64_t ranks = ~uint64_t{0};
    const int32_t* ids = nullptr;
  };
  static constexpr int kRecent = 256;
  static constexpr int kMaxRankedDimensions = 15;  // ranks of four bits each fit a word

  void locate(const float* features, int64_t stride, int64_t first, int count) {
    geometry_kernels().locate(D_, features, stride, first, count, scale_, simplices_);
  }

  // Writes the vertices' chunk-local numbers, complemented where they are new.
  template <int kD>
  void return_ids(int count, int32_t* ids, float* weights) {
    const int D = kD > 0 ? kD : D_;
    float few_by_rank[kD + 1] = {};
    int32_t few_axis_of_rank[kD + 1] = {};
    float* by_rank = kD > 0 ? few_by_rank : by_rank_.data();
    int32_t* axis_of_rank = kD > 0 ? few_axis_of_rank : axis_of_rank_.data();
    for (int p = 0; p < count; ++p, ids += D + 1, weights += D + 1) {
      const int32_t* cell = simplices_.cell + p;
      if (check_overflow_) check_cell(cell);
      uint64_t ranks = 0;
      for (int i = 0; i <= D; ++i) {
        const int32_t rank = simplices_.rank[i * kPointBlock + p];
        by_rank[rank] = simplices_.delta[i * kPointBlock + p];
        axis_of_rank[rank] = i;
        ranks = ranks << 4 | static_cast<uint32_t>(rank);
      }
      barycentric_weights(by_rank, D, weights);
      Key<kWords> key = layout_.zero<kWords>();
      for (int f = 0; f < D; ++f) layout_.add(key, f, field_of_cell(f, D, cell, kPointBlock) - layout_.low[f]);

      Recent& recent = recent_[(key.hash() ^ ranks * 0x9E3779B97F4A7C15u) >> 56];
      if (D <= kMaxRankedDimensions && recent.ids != nullptr && recent.ranks == ranks && recent.base == key) {
        for (int k = 0; k <= D; ++k) ids[k] = recent.ids[k] ^ recent.ids[k] >> 31;
        continue;
      }
      if (D <= kMaxRankedDimensions) recent = {key, ranks, ids};
      for (int k = 0; k <= D; ++k) {
        const auto known = static_cast<int32_t>(vertices_.keys().size());
        const int32_t id = vertices_.insert(key);
        ids[k] = id < known ? id : ~id;
        key += steps_[axis_of_rank[D - k]];
      }
    }
  }

  void check_cell(const int32_t* cell) const {
    for (int i = 0; i < D_; ++i) {
      const int64_t key = int64_t{cell[i * kPointBlock]} * (D_ + 1);
      if (key < -kMaxKey + D_ + 1 || key > kMaxKey - D_ - 1) throw_overflow();
    }
  }

  Lattice& lattice_;
  const FieldLayout& layout_;
  const int D_;
  const float* scale_;
  const bool check_overflow_;
  std::vector<Key<kWords>> steps_;
  Buffer<float> block_;
  SimplexBlock simplices_;
  std::vector<float> by_rank_;
  std::vector<int32_t> axis_of_rank_;
  Recent recent_[kRecent];
  VertexSet<kWords> vertices_;
  size_t touched_ = SIZE_MAX;
};

template <int kWords>
struct Item {
  const Key<kWords>* key;
  int64_t slot;
};

void sort_items(Buffer<KeySlot>& items, int bits, Parallel& parallel) {
  Buffer<KeySlot> scratch(items.size());
  radix_sort(items, scratch, bits, parallel);
}

// Keys of several words are rare (many dimensions with a wide range each): a plain sort will do.
template <int kWords>
void sort_items(Buffer<Item<kWords>>& items, int, Parallel&) {
  std::stable_sort(items.begin(), items.end(), [](const auto& a, const auto& b) { return *a.key < *b.key; });
}

void set_key(KeySlot& item, const Key<1>& key) {
  item.key = key.word[0];
}
template <int kWords>
void set_key(Item<kWords>& item, const Key<kWords>& key) {
  item.key = &key;
}
bool same_key(const KeySlot& a, const KeySlot& b) {
  return a.key == b.key;
}
template <int kWords>
bool same_key(const Item<kWords>& a, const Item<kWords>& b) {
  return *a.key == *b.key;
}
void copy_key(const KeySlot& item, uint64_t* to) {
  *to = item.key;
}
template <int kWords>
void copy_key(const Item<kWords>& item, uint64_t* to) {
  std::copy(item.key->word.begin(), item.key->word.end(), to);
}

// Steps 2 and 3: `slot` counts through the chunks' lists, one after another.
template <int kWords, class Item>
void number_vertices(Lattice& lattice, const std::vector<const std::vector<Key<kWords>>*>& lists,
                     size_t touched_by_last, int bits, Parallel& parallel) {
  const auto chunks = static_cast<int64_t>(lists.size());
  std::vector<int64_t> first_slot(chunks + 1, 0);
  for (int64_t c = 0; c < chunks; ++c) first_slot[c + 1] = first_slot[c] + static_cast<int64_t>(lists[c]->size());
  const int64_t slots = first_slot[chunks];

  Buffer<Item> items(slots);
  parallel_for(parallel, chunks, [&](int64_t c) {
    for (size_t i = 0; i < lists[c]->size(); ++i) {
      set_key(items[first_slot[c] + i], (*lists[c])[i]);
      items[first_slot[c] + i].slot = first_slot[c] + static_cast<int64_t>(i);
    }
  });
  sort_items(items, bits, parallel);

  // The first of equal keys (the sort is stable, so: of the first chunk) owns the vertex, the others get extra rows.
  constexpr int64_t kParts = 16;
  std::vector<int64_t> first_vertex(kParts + 1, 0);
  const auto is_owner = [&](int64_t i) { return i == 0 || !same_key(items[i - 1], items[i]); };
  parallel_for(parallel, kParts, [&](int64_t part) {
    const Range range = part_of(slots, kParts, part);
    for (int64_t i = range.begin; i < range.end; ++i) first_vertex[part + 1] += is_owner(i);
  });
  for (int64_t part = 0; part < kParts; ++part) first_vertex[part + 1] += first_vertex[part];
  lattice.vertices = first_vertex[kParts];
  lattice.extra = slots - lattice.vertices;
  if (slots > INT32_MAX) throw std::invalid_argument("features: too many lattice vertices, " + std::to_string(slots));

  Buffer<int32_t> vertex_of_slot(slots), row_of_slot(slots);
  lattice.extra_vertex.reset(lattice.extra);
  const int words = lattice.packed.words;
  lattice.packed.keys.reset(lattice.vertices * words);
  parallel_for(parallel, kParts, [&](int64_t part) {
    const Range range = part_of(slots, kParts, part);
    int64_t next = first_vertex[part];
    for (int64_t i = range.begin; i < range.end; ++i) {
      const bool owner = is_owner(i);
      if (owner) copy_key(items[i], &lattice.packed.keys[next++ * words]);
      const int64_t extra = i - next;  // so many of the slots before this one were not owners
      vertex_of_slot[items[i].slot] = static_cast<int32_t>(next - 1);
      row_of_slot[items[i].slot] = static_cast<int32_t>(owner ? next - 1 : lattice.vertices + extra);
      if (!owner) lattice.extra_vertex[extra] = static_cast<int32_t>(next - 1);
    }
  });
  for (int64_t slot = first_slot[chunks - 1] + static_cast<int64_t>(touched_by_last); slot < slots; ++slot)
    lattice.empty_rows.push_back(row_of_slot[slot]);
  parallel_for(parallel, chunks, [&](int64_t c) {
    for (const PointTile* tile = lattice.order->begin(c); tile < lattice.order->end(c); ++tile) {
      for (int64_t i = tile->first * lattice.corners; i < (tile->first + tile->count) * lattice.corners; ++i) {
        const int32_t id = lattice.vertex[i], is_new = id >> 31;
        const int64_t slot = first_slot[c] + (id ^ is_new);
        lattice.vertex[i] = vertex_of_slot[slot];
        lattice.row[i] = row_of_slot[slot] ^ is_new;
      }
    }
  });
}

template <int kWords>
void build(Lattice& lattice, const float* features, const FieldLayout& layout, bool check_overflow,
           Parallel& parallel) {
  std::vector<float> scale;
  for (int d = 0; d < lattice.dimensions; ++d) scale.push_back(embedding_scale(d, lattice.dimensions));
  const int64_t chunks = lattice.order->chunks();
  std::vector<std::unique_ptr<ChunkBuilder<kWords>>> builders(chunks);
  parallel_for(parallel, chunks, [&](int64_t c) {
    builders[c] = std::make_unique<ChunkBuilder<kWords>>(lattice, layout, scale.data(), check_overflow);
    builders[c]->add_points(features, lattice.order->begin(c), lattice.order->end(c));
    if (c == chunks - 1 && lattice.points % 4 != 0) builders[c]->add_phantom_vertices();
  });
  std::vector<const std::vector<Key<kWords>>*> lists;
  for (const auto& builder : builders) lists.push_back(&builder->keys());
  using Sorted = std::conditional_t<kWords == 1, KeySlot, Item<kWords>>;
  number_vertices<kWords, Sorted>(lattice, lists, builders.back()->touched(), layout.shift[0] + layout.bits[0],
                                  parallel);
}

}  // namespace

Lattice::Lattice(const float* features, int D, std::shared_ptr<const VisitOrder> visit, Parallel& parallel)
    : order(std::move(visit)),
      dimensions(D),
      corners(D + 1),
      points(order->points),
      vertex(points * corners),
      weight(points * corners),
      row(points * corners) {
  const Bounds bounds = feature_bounds(features, D, points, parallel);
  const FieldLayout layout(D, bounds.low, bounds.high);

  packed.low = layout.low, packed.word = layout.word, packed.shift = layout.shift, packed.bits = layout.bits;
  if (layout.words == 1) {
    packed.words = 1, build<1>(*this, features, layout, bounds.may_overflow, parallel);
  } else if (layout.words == 2) {
    packed.words = 2, build<2>(*this, features, layout, bounds.may_overflow, parallel);
  } else if (layout.words <= 4) {
    packed.words = 4, build<4>(*this, features, layout, bounds.may_overflow, parallel);
  } else {
    packed.words = layout.words, build<0>(*this, features, layout, bounds.may_overflow, parallel);
  }
  link_neighbours(*this, layout, parallel);
}

LatticeView Lattice::view() const {
  LatticeView view{};
  view.corners = corners, view.vertex = vertex.data(), view.row = row.data(), view.weight = weight.data();
  view.scattered = vertices * 4 > points;
  view.scale = slice_scale(dimensions);
  return view;
}

}  // namespace deeplab_fast
