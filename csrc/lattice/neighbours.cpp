// Neighbours of the vertices along the blur axes, and in which order a blur takes them; and the keys, unpacked.
#include <algorithm>

#include "lattice/lattice.h"
#include "lattice/vertex_key.h"

namespace deeplab_fast {
namespace {

// `next` and `previous` of one axis: numbers of vertices, or lattice.none().
struct AxisNeighbours {
  int32_t *previous, *next;
};

AxisNeighbours neighbours_along(Lattice& lattice, int64_t axis) {
  int32_t* previous = lattice.neighbour.data() + 2 * axis * lattice.vertices;
  return {previous, previous + lattice.vertices};
}

// Keys ascend, so keys plus a step do: one merge of the keys with themselves finds all neighbours along an axis. For
// vertices [begin, end), along all axes at once: each axis waits for the memory of its own.
void find_neighbours(Lattice& lattice, const FieldLayout& layout, int64_t begin, int64_t end) {
  if (begin == end) return;
  const uint64_t* keys = lattice.packed.keys.data();
  const int corners = lattice.corners;
  const int64_t none = lattice.none();
  struct Merge {
    AxisNeighbours found;
    uint64_t step;
    int64_t at;
  };
  std::vector<Merge> merges;
  for (int axis = 0; axis < corners; ++axis) {
    const uint64_t step = layout.step<1>(lattice.dimensions, axis).word[0];
    const int64_t at = std::lower_bound(keys, keys + lattice.vertices, keys[begin] + step) - keys;
    merges.push_back({neighbours_along(lattice, axis), step, at});
  }
  int32_t nowhere;
  for (int64_t v = begin; v < end; ++v)
    for (Merge& merge : merges) {
      const uint64_t wanted = keys[v] + merge.step;
      int64_t at = merge.at;
      // Mostly it is one of the next few: those are counted without a jump.
      int passed = 0;
      for (int i = 0; i < PackedKeys::kPadding; ++i) passed += keys[at + i] < wanted;
      at += passed;
      while (keys[at] < wanted) ++at;
      merge.at = at;
      // Nor is whether it is there, which cannot be predicted.
      const auto found = -static_cast<int64_t>(keys[at] == wanted);
      merge.found.next[v] = static_cast<int32_t>((found & at) | (~found & none));
      const auto there = reinterpret_cast<intptr_t>(merge.found.previous + at);
      *reinterpret_cast<int32_t*>((found & there) | (~found & reinterpret_cast<intptr_t>(&nowhere))) =
          static_cast<int32_t>(v);
    }
}

// The same along one axis, for keys of any number of words.
void find_neighbours_along(Lattice& lattice, const FieldLayout& layout, int axis) {
  const PackedKeys& packed = lattice.packed;
  const AxisNeighbours found = neighbours_along(lattice, axis);
  const auto key = [&](int64_t v) { return packed.keys.data() + v * packed.words; };
  Key<0> step = layout.step<0>(lattice.dimensions, axis);
  step.word.resize(packed.words);  // a key may have a word more than the layout needs
  Key<0> wanted = step;
  int64_t at = 0;
  for (int64_t v = 0; v < lattice.vertices; ++v) {
    for (int w = 0; w < packed.words; ++w) wanted.word[w] = key(v)[w] + step.word[w];
    const auto begin = wanted.word.begin(), end = wanted.word.end();
    while (at < lattice.vertices && std::lexicographical_compare(key(at), key(at + 1), begin, end)) ++at;
    const bool is_there = at < lattice.vertices && std::equal(begin, end, key(at));
    found.next[v] = is_there ? static_cast<int32_t>(at) : lattice.none();
    if (is_there) found.previous[at] = static_cast<int32_t>(v);
  }
}

Chains make_chains(const int32_t* previous, const int32_t* next, int64_t vertices, int32_t none) {
  constexpr int64_t kPiece = 4096;
  int64_t total = 0;
  for (int64_t v = 0; v < vertices; ++v) total += (previous[v] != none) | (next[v] != none);
  Chains chains;
  chains.order.reset(total);
  int64_t at = 0, piece = -kPiece;
  for (int64_t v = 0; v < vertices; ++v) {
    if (previous[v] != none || next[v] == none) continue;
    if (at - piece >= kPiece) chains.cuts.push_back(piece = at);
    chains.order[at++] = static_cast<int32_t>(~v);
    for (int32_t w = next[v]; w != none; w = next[w]) chains.order[at++] = w;
  }
  chains.cuts.push_back(at);
  return chains;
}

void find_lines(Lattice& lattice, const FieldLayout& layout) {
  // Two fields of at most 19 bits each: one word.
  const auto line_of = [&](int64_t v) { return static_cast<int64_t>(lattice.packed.keys[v] >> layout.shift[0]); };
  const int64_t first = line_of(0), lines = line_of(lattice.vertices - 1) - first + 1;
  lattice.line_start.assign(lines + 1, 0);
  for (int64_t v = 0; v < lattice.vertices; ++v) ++lattice.line_start[line_of(v) - first + 1];
  for (int64_t line = 0; line < lines; ++line) lattice.line_start[line + 1] += lattice.line_start[line];
}

}  // namespace

void link_neighbours(Lattice& lattice, const FieldLayout& layout, Parallel& parallel) {
  lattice.neighbour.reset(2 * lattice.corners * lattice.vertices);
  parallel_for(parallel, lattice.corners, [&](int64_t axis) {
    std::fill_n(neighbours_along(lattice, axis).previous, lattice.vertices, lattice.none());
    if (lattice.packed.words > 1) find_neighbours_along(lattice, layout, static_cast<int>(axis));
  });
  if (lattice.packed.words == 1) {
    constexpr int64_t kParts = 16;
    parallel_for(parallel, kParts, [&](int64_t part) {
      const Range range = part_of(lattice.vertices, kParts, part);
      find_neighbours(lattice, layout, range.begin, range.end);
    });
  }
  if (lattice.dimensions == 2) find_lines(lattice, layout);
}

const std::vector<Chains>& Lattice::chains(Parallel& parallel) const {
  std::call_once(chains_made_, [&] {
    chains_.resize(corners);
    parallel_for(parallel, corners,
                 [&](int64_t axis) { chains_[axis] = make_chains(previous(axis), next(axis), vertices, none()); });
  });
  return chains_;
}

void Lattice::unpack_keys(int32_t* out) const {
  const int D = dimensions;
  std::vector<int64_t> field(std::max(D, 3));
  for (int64_t v = 0; v < vertices; ++v, out += D) {
    for (int f = 0; f < D; ++f) {
      const uint64_t mask = packed.bits[f] == 64 ? ~uint64_t{0} : (uint64_t{1} << packed.bits[f]) - 1;
      const uint64_t word = packed.keys[v * packed.words + packed.word[f]];
      field[f] = static_cast<int64_t>(word >> packed.shift[f] & mask) + packed.low[f];
    }
    if (D == 1) {
      out[0] = static_cast<int32_t>(field[0]);
      continue;
    }
    // x_0 + x_1 - 2 x_2 and x_0 - x_1; with two dimensions x_2 = -x_0 - x_1.
    const int64_t sum = D == 2 ? field[0] : (D + 1) * field[0] + 2 * field[2], difference = (D + 1) * field[1];
    out[0] = static_cast<int32_t>((sum + difference) / 2);
    out[1] = static_cast<int32_t>((sum - difference) / 2);
    if (D > 2) out[2] = static_cast<int32_t>(field[2]);
    for (int i = 3; i < D; ++i) out[i] = static_cast<int32_t>((D + 1) * field[i] + field[2]);
  }
}

void Lattice::unpack_vertices(int32_t* out) const {
  each_point([&](int64_t block, int64_t point, int64_t simplex, int64_t) {
    for (int j = 0; j < corners; ++j) {
      const int64_t corner_of_all = simplex * corners + j;
      out[point * corners + j] =
          block_vertex[has_numbered_corners() ? first_of_block[block] + corner[corner_of_all] : corner_of_all];
    }
  });
}

void Lattice::unpack_weights(float* out) const {
  each_point([&](int64_t, int64_t point, int64_t, int64_t position) {
    std::copy_n(&weight[position * corners], corners, out + point * corners);
  });
}

void Lattice::neighbours(int32_t* out) const {
  std::transform(neighbour.begin(), neighbour.end(), out, [&](int32_t v) { return v == none() ? -1 : v; });
}

}  // namespace deeplab_fast
