// Building the lattice, in four parallel steps whose results do not depend on the number of threads:
//   1. every chunk of points finds its simplices, block by block, and collects its distinct vertices in small hash
//      tables (chunk_builder.h);
//   2. the chunks' vertex lists are sorted together, which numbers the vertices in the order of their packed keys;
//   3. chunk-local numbers are replaced by the global ones;
//   4. neighbours are found by merging the sorted keys with themselves, one step along an axis further
//      (neighbours.cpp).
#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>

#include "lattice/chunk_builder.h"
#include "lattice/geometry.h"
#include "lattice/geometry_kernels.h"
#include "lattice/lattice.h"
#include "lattice/radix_sort.h"
#include "lattice/vertex_key.h"

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

template <int kWords>
using Builders = std::vector<std::unique_ptr<ChunkBuilder<kWords>>>;

// Steps 2 and 3: `slot` counts through the chunks' lists of keys, one after another.
template <int kWords, class Item>
void number_vertices(Lattice& lattice, const Builders<kWords>& builders, int bits, Parallel& parallel) {
  const auto chunks = static_cast<int64_t>(builders.size());
  std::vector<int64_t> first_slot(chunks + 1, 0);
  for (int64_t c = 0; c < chunks; ++c) first_slot[c + 1] = first_slot[c] + builders[c]->vertices().size();
  const int64_t slots = first_slot[chunks];

  Buffer<Item> items(slots);
  parallel_for(parallel, chunks, [&](int64_t c) {
    const auto& keys = builders[c]->vertices();
    for (int64_t i = 0; i < keys.size(); ++i) {
      set_key(items[first_slot[c] + i], keys[i]);
      items[first_slot[c] + i].slot = first_slot[c] + i;
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
  if (slots >= INT32_MAX) throw std::invalid_argument("features: too many lattice vertices, " + std::to_string(slots));

  Buffer<int32_t> vertex_of_slot(slots), row_of_slot(slots);
  lattice.extra_vertex.reset(lattice.extra);
  const int words = lattice.packed.words;
  lattice.packed.keys.reset(lattice.vertices * words + PackedKeys::kPadding);
  std::fill_n(lattice.packed.keys.data() + lattice.vertices * words, PackedKeys::kPadding, UINT64_MAX);
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
  const int64_t touched_by_last = builders.back()->touched();
  for (int64_t slot = first_slot[chunks - 1] + touched_by_last; slot < slots; ++slot)
    lattice.empty_rows.push_back(row_of_slot[slot]);
  parallel_for(parallel, chunks, [&](int64_t c) {
    const std::vector<int32_t>& ids = builders[c]->ids();
    const int64_t to = lattice.first_of_block[lattice.order->first_block[c]];
    for (size_t i = 0; i < ids.size(); ++i) {
      const int32_t is_new = ids[i] >> 31;
      const int64_t slot = first_slot[c] + (ids[i] ^ is_new);
      lattice.block_vertex[to + static_cast<int64_t>(i)] = vertex_of_slot[slot];
      lattice.block_row[to + static_cast<int64_t>(i)] = row_of_slot[slot] ^ is_new;
    }
  });
}

// The chunks' simplices, one after another.
template <int kWords>
void store_simplices(Lattice& lattice, const Builders<kWords>& builders, Parallel& parallel) {
  lattice.first_simplex.assign(1, 0), lattice.first_of_block.assign(1, 0);
  for (const auto& builder : builders) {
    for (const int64_t count : builder->simplices_of_block())
      lattice.first_simplex.push_back(lattice.first_simplex.back() + count);
    for (const int64_t count : builder->vertices_of_block())
      lattice.first_of_block.push_back(lattice.first_of_block.back() + count);
  }
  const int64_t simplices = lattice.first_simplex.back(), of_blocks = lattice.first_of_block.back();
  lattice.simplex_size.reset(simplices), lattice.block_vertex.reset(of_blocks), lattice.block_row.reset(of_blocks);
  if (lattice.has_numbered_corners()) lattice.corner.reset(simplices * lattice.corners);
  parallel_for(parallel, static_cast<int64_t>(builders.size()), [&](int64_t c) {
    const int64_t to = lattice.first_simplex[lattice.order->first_block[c]];
    std::copy(builders[c]->sizes().begin(), builders[c]->sizes().end(), &lattice.simplex_size[to]);
    std::copy(builders[c]->corners().begin(), builders[c]->corners().end(),
              lattice.corner.data() + to * lattice.corners);
  });
}

template <int kWords>
void build(Lattice& lattice, const float* features, const FieldLayout& layout, bool check_overflow,
           Parallel& parallel) {
  std::vector<float> scale;
  for (int d = 0; d < lattice.dimensions; ++d) scale.push_back(embedding_scale(d, lattice.dimensions));
  const int64_t chunks = lattice.order->chunks();
  Builders<kWords> builders(chunks);
  parallel_for(parallel, chunks, [&](int64_t c) {
    builders[c] = std::make_unique<ChunkBuilder<kWords>>(lattice, layout, scale.data(), check_overflow);
    for (const PointBlock* block = lattice.order->begin(c); block < lattice.order->end(c); ++block)
      builders[c]->add_block(features, *block);
    if (c == chunks - 1 && lattice.points % 4 != 0) builders[c]->add_phantom_vertices();
  });
  store_simplices(lattice, builders, parallel);
  using Sorted = std::conditional_t<kWords == 1, KeySlot, Item<kWords>>;
  number_vertices<kWords, Sorted>(lattice, builders, layout.shift[0] + layout.bits[0], parallel);
}

}  // namespace

Lattice::Lattice(const float* features, int D, std::shared_ptr<const VisitOrder> visit, Parallel& parallel)
    : order(std::move(visit)),
      dimensions(D),
      corners(D + 1),
      points(order->points),
      place(points),
      weight(points * corners + kWeightPadding) {
  std::fill(weight.end() - kWeightPadding, weight.end(), 0.0f);
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

const Lattice::SimplexRows& Lattice::simplex_rows(Parallel& parallel) const {
  std::call_once(simplex_rows_made_, [&] {
    SimplexRows rows{Buffer<int32_t>(corner.size()), Buffer<int32_t>(corner.size())};
    parallel_for(parallel, order->chunks(), [&](int64_t chunk) {
      for (int64_t block = order->first_block[chunk]; block < order->first_block[chunk + 1]; ++block) {
        const int32_t *vertex = &block_vertex[first_of_block[block]], *row = &block_row[first_of_block[block]];
        int met = 0;
        for (int64_t i = first_simplex[block] * corners; i < first_simplex[block + 1] * corners; ++i) {
          const int number = corner[i];
          const int32_t first = -static_cast<int32_t>(number == met);  // of the block
          rows.vertex[i] = vertex[number];
          rows.row[i] = row[number] ^ (row[number] >> 31 & ~first);
          met -= first;
        }
      }
    });
    simplex_rows_ = std::move(rows);
  });
  return simplex_rows_;
}

LatticeView Lattice::view(int64_t channels, Parallel& parallel) const {
  LatticeView view{};
  view.corners = corners;
  view.first_simplex = first_simplex.data(), view.size = simplex_size.data();
  view.corner = corner.data(), view.first_of_block = first_of_block.data();
  view.block_vertex = block_vertex.data(), view.block_row = block_row.data();
  if (!has_numbered_corners()) {
    view.vertex = view.block_vertex, view.row = view.block_row;
  } else if (channels > 1) {
    const SimplexRows& rows = simplex_rows(parallel);
    view.vertex = rows.vertex.data(), view.row = rows.row.data();
  }
  view.place = place.data(), view.weight = weight.data();
  view.scattered = vertices * 4 > points;
  view.scale = slice_scale(dimensions);
  return view;
}

}  // namespace deeplab_fast
