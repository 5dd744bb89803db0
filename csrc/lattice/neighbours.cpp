// Neighbours of the vertices: chains along the blur axes, or bands of lines in two dimensions; and the keys, unpacked.
#include <algorithm>

#include "lattice/lattice.h"
#include "lattice/vertex_key.h"

namespace deeplab_fast {
namespace {

constexpr int32_t kNone = -1;

// next[v]: the vertex one step along the axis, or kNone. Keys ascend, so keys plus a step do: one merge finds all.
template <int kWords>
void find_next(const PackedKeys& packed, int64_t vertices, const Key<kWords>& step, int32_t* next) {
  const auto* keys = reinterpret_cast<const Key<kWords>*>(packed.keys.data());
  int64_t other = 0;
  for (int64_t v = 0; v < vertices; ++v) {
    Key<kWords> wanted = keys[v];
    wanted += step;
    while (other < vertices && keys[other] < wanted) ++other;
    next[v] = other < vertices && keys[other] == wanted ? static_cast<int32_t>(other) : kNone;
  }
}

// The same for any number of words.
void find_next(const PackedKeys& packed, int64_t vertices, const Key<0>& step, int32_t* next) {
  const auto key = [&](int64_t v) { return packed.keys.data() + v * packed.words; };
  Key<0> wanted = step;
  int64_t other = 0;
  for (int64_t v = 0; v < vertices; ++v) {
    for (int w = 0; w < packed.words; ++w) wanted.word[w] = key(v)[w] + step.word[w];
    const auto begin = wanted.word.begin(), end = wanted.word.end();
    while (other < vertices && std::lexicographical_compare(key(other), key(other + 1), begin, end)) ++other;
    next[v] = other < vertices && std::equal(begin, end, key(other)) ? static_cast<int32_t>(other) : kNone;
  }
}

void find_next(const PackedKeys& packed, int64_t vertices, const FieldLayout& layout, int D, int axis, int32_t* next) {
  switch (packed.words) {
    case 1:
      return find_next<1>(packed, vertices, layout.step<1>(D, axis), next);
    case 2:
      return find_next<2>(packed, vertices, layout.step<2>(D, axis), next);
    case 4:
      return find_next<4>(packed, vertices, layout.step<4>(D, axis), next);
    default:
      return find_next(packed, vertices, layout.step<0>(D, axis), next);
  }
}

Chains make_chains(const int32_t* next, int64_t vertices) {
  constexpr int64_t kPiece = 4096;
  std::vector<char> has_previous(vertices, 0);
  int64_t total = 0;
  for (int64_t v = 0; v < vertices; ++v)
    if (next[v] != kNone) has_previous[next[v]] = 1;
  for (int64_t v = 0; v < vertices; ++v) total += has_previous[v] | (next[v] != kNone);

  Chains chains;
  chains.order.reset(total);
  int64_t at = 0, piece = -kPiece;
  for (int64_t v = 0; v < vertices; ++v) {
    if (has_previous[v] || next[v] == kNone) continue;
    if (at - piece >= kPiece) chains.cuts.push_back(piece = at);
    chains.order[at++] = static_cast<int32_t>(~v);
    for (int32_t w = next[v]; w != kNone; w = next[w]) chains.order[at++] = w;
  }
  chains.cuts.push_back(at);
  return chains;
}

void make_bands(Lattice& lattice, const FieldLayout& layout, Parallel& parallel) {
  Bands& bands = lattice.bands;
  const int64_t vertices = lattice.vertices;
  bands.neighbour.reset(6 * vertices);
  parallel_for(parallel, 3, [&](int64_t axis) {
    int32_t* previous = bands.neighbour.data() + 2 * axis * vertices;
    int32_t* next = previous + vertices;
    find_next(lattice.packed, vertices, layout, 2, static_cast<int>(axis), next);
    std::fill_n(previous, vertices, kNone);
    for (int64_t v = 0; v < vertices; ++v)
      if (next[v] != kNone) previous[next[v]] = static_cast<int32_t>(v);
  });
  // Two fields of at most 19 bits each: one word.
  const auto line_of = [&](int64_t v) { return static_cast<int64_t>(lattice.packed.keys[v] >> layout.shift[0]); };
  const int64_t first = line_of(0), lines = line_of(vertices - 1) - first + 1;
  bands.line_start.assign(lines + 1, 0);
  for (int64_t v = 0; v < vertices; ++v) ++bands.line_start[line_of(v) - first + 1];
  for (int64_t line = 0; line < lines; ++line) bands.line_start[line + 1] += bands.line_start[line];
}

}  // namespace

void link_neighbours(Lattice& lattice, const FieldLayout& layout, Parallel& parallel) {
  if (lattice.dimensions == 2) return make_bands(lattice, layout, parallel);
  lattice.chains.resize(lattice.corners);
  parallel_for(parallel, lattice.corners, [&](int64_t axis) {
    Buffer<int32_t> next(lattice.vertices);
    find_next(lattice.packed, lattice.vertices, layout, lattice.dimensions, static_cast<int>(axis), next.data());
    lattice.chains[axis] = make_chains(next.data(), lattice.vertices);
  });
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
  each_point([&](int64_t point, int64_t simplex, int64_t) {
    std::copy_n(&vertex[simplex * corners], corners, out + point * corners);
  });
}

void Lattice::unpack_weights(float* out) const {
  each_point([&](int64_t point, int64_t, int64_t position) {
    std::copy_n(&weight[position * corners], corners, out + point * corners);
  });
}

void Lattice::neighbours(int32_t* out) const {
  if (dimensions == 2) {
    std::copy(bands.neighbour.begin(), bands.neighbour.end(), out);
    return;
  }
  std::fill_n(out, 2 * corners * vertices, kNone);
  for (int axis = 0; axis < corners; ++axis) {
    int32_t* previous_of = out + 2 * axis * vertices;
    int32_t* next_of = previous_of + vertices;
    const Buffer<int32_t>& order = chains[axis].order;
    for (int64_t i = 1; i < order.size(); ++i) {
      if (order[i] < 0) continue;
      const int32_t previous = order[i - 1] < 0 ? ~order[i - 1] : order[i - 1];
      previous_of[order[i]] = previous;
      next_of[previous] = order[i];
    }
  }
}

}  // namespace deeplab_fast
