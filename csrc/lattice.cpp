// Neighbours of the vertices, and the filter itself: splat, blur, slice.
#include "lattice.h"

#include <algorithm>
#include <cstring>

#include "denormals.h"
#include "lattice_geometry.h"
#include "packing.h"

namespace deeplab_fast {
namespace {

constexpr int32_t kNone = -1;

// next[v]: the vertex one step along the axis, or kNone. Keys ascend, so keys plus a step do: one merge finds all.
template <int kWords>
void find_next(const PackedKeys& packed, int64_t vertices, const Key<kWords>& step, int32_t* next) {
  const auto* keys = reinterpret_cast<const Key<kWords>*>(packed.keys.data());
  int64_t other = 0;
  for (int64_t v = 0; v < vertices; ++v) {
    const Key<kWords> wanted = keys[v] + step;
    while (other < vertices && keys[other] < wanted) ++other;
    next[v] = other < vertices && keys[other] == wanted ? static_cast<int32_t>(other) : kNone;
  }
}

void find_next(const PackedKeys& packed, int64_t vertices, const FieldLayout& layout, int D, int axis, int32_t* next) {
  switch (packed.words) {
    case 1: return find_next<1>(packed, vertices, layout.step<1>(D, axis), next);
    case 2: return find_next<2>(packed, vertices, layout.step<2>(D, axis), next);
    case 4: return find_next<4>(packed, vertices, layout.step<4>(D, axis), next);
    default: return find_next<24>(packed, vertices, layout.step<24>(D, axis), next);
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

}  // namespace

void link_chains(Lattice& lattice, const FieldLayout& layout, Parallel& parallel) {
  lattice.chains.resize(lattice.taps);
  parallel_for(parallel, lattice.taps, [&](int64_t axis) {
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

void Lattice::neighbours(int32_t* out) const {
  std::fill_n(out, 2 * taps * vertices, kNone);
  for (int axis = 0; axis < taps; ++axis) {
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

void fold_and_blur(const Lattice& lattice, int lanes, float* rows, bool reverse, Parallel& parallel) {
  const Isa& wide = isa();
  // Extra rows of one vertex lie side by side; a part begins with a vertex's first one.
  constexpr int64_t kParts = 16;
  const auto part_start = [&](int64_t part) {
    int64_t i = lattice.extra * part / kParts;
    while (i > 0 && i < lattice.extra && lattice.extra_vertex[i] == lattice.extra_vertex[i - 1]) ++i;
    return i;
  };
  parallel_for(parallel, kParts, [&](int64_t part) {
    const FlushDenormals flush;
    wide.fold(lattice.extra_vertex.data(), part_start(part), part_start(part + 1), lattice.vertices, lanes, rows);
  });
  // Long rows are blurred a few lanes at a time along all axes, so that those lanes of all vertices stay in the cache.
  constexpr int kLanesAtOnce = 32;
  for (int lane = 0; lane < lanes; lane += kLanesAtOnce) {
    for (int step = 0; step < lattice.taps; ++step) {
      const Chains& chains = lattice.chains[reverse ? lattice.taps - 1 - step : step];
      parallel_for(parallel, static_cast<int64_t>(chains.cuts.size()) - 1, [&](int64_t piece) {
        const FlushDenormals flush;
        const int64_t from = chains.cuts[piece], to = chains.cuts[piece + 1];
        wide.blur(chains.order.data() + from, to - from, std::min(lanes - lane, kLanesAtOnce), lanes, rows + lane);
      });
    }
  }
}

namespace {

// values[c][i] for c < channels -> tile[i][lanes], and back.
constexpr int kTilePoints = 64, kTileLanes = 32;
void gather_tile(const float* values, int64_t points, int64_t first, int count, int channels, int lanes, float* tile) {
  if (channels < lanes) std::memset(tile, 0, sizeof(float) * count * lanes);
  for (int c = 0; c < channels; ++c)
    for (int i = 0; i < count; ++i) tile[i * lanes + c] = values[c * points + first + i];
}
void scatter_tile(const float* tile, int64_t points, int64_t first, int count, int channels, int lanes, float* out) {
  for (int c = 0; c < channels; ++c)
    for (int i = 0; i < count; ++i) out[c * points + first + i] = tile[i * lanes + c];
}

}  // namespace

void filter(const Lattice& lattice, const float* values, int64_t channels, bool reverse, float* out, Parallel& parallel) {
  const Isa& wide = isa();
  const Taps taps = lattice.make_taps();
  const int most_lanes = row_lanes(static_cast<int>(std::min<int64_t>(channels, kTileLanes)));
  Buffer<float> rows(lattice.rows() * most_lanes);
  const auto chunks = static_cast<int64_t>(lattice.chunks.size());
  for (int64_t channel = 0; channel < channels; channel += kTileLanes) {
    const int here = static_cast<int>(std::min<int64_t>(channels - channel, kTileLanes)), lanes = row_lanes(here);
    const float* from = values + channel * lattice.points;
    float* to = out + channel * lattice.points;
    std::memset(rows.data(), 0, sizeof(float) * lattice.rows() * lanes);
    const auto each_tile = [&](int64_t c, auto&& body) {
      const FlushDenormals flush;
      for (int64_t first = lattice.chunks[c].begin; first < lattice.chunks[c].end; first += kTilePoints)
        body(first, static_cast<int>(std::min<int64_t>(kTilePoints, lattice.chunks[c].end - first)));
    };
    parallel_for(parallel, chunks, [&](int64_t c) {
      alignas(64) float tile[kTilePoints * kTileLanes];
      each_tile(c, [&](int64_t first, int count) {
        gather_tile(from, lattice.points, first, count, here, lanes, tile);
        wide.splat(taps, first, first + count, lanes, tile, lanes, rows.data());
      });
    });
    fold_and_blur(lattice, lanes, rows.data(), reverse, parallel);
    parallel_for(parallel, chunks, [&](int64_t c) {
      alignas(64) float tile[kTilePoints * kTileLanes];
      each_tile(c, [&](int64_t first, int count) {
        wide.slice(taps, first, first + count, lanes, rows.data(), tile, lanes);
        scatter_tile(tile, lattice.points, first, count, here, lanes, to);
      });
    });
  }
}

}  // namespace deeplab_fast
