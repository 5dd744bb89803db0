// The pixel pass of mean-field inference: slice the filtered Q out of the lattices, add the unary, softmax, and splat
// the new Q into the lattices of the next iteration. Q itself is stored only at the end. Compiled per instruction set.
//
// Pixels are taken a tile at a time, and every stage runs over the whole tile: the stages of one pixel depend on each
// other through long latencies (sums over taps, reductions, exp, division), those of different pixels do not.
#include "rows.h"

namespace deeplab_fast {
namespace DEEPLAB_FAST_ISA_NAME {
namespace {

constexpr int kTile = VisitOrder::kTile;
// Points by which the rows of a tap are fetched ahead.
constexpr int kAhead = 8;

struct Tile {
  const PixelPass& pass;
  int64_t first, next_first;  // points; the next tile's is -1 where there is none of at least kAhead points
  int count;
  float* energy;    // [kTile][lanes]: energies, then unnormalised probabilities
  float* filtered;  // [kTile][lanes], for matrix compat only
  float inverse[kTile];

  // The point visited kAhead points after the p-th of this tile; itself where there is none.
  DEEPLAB_FAST_INLINE int64_t ahead(int p) const {
    const int later = p + kAhead;
    return later < count ? first + later : next_first < 0 ? first + p : next_first + (later - count);
  }
};

// energy -= compat(filtered) for one kernel. kCount: taps, kStride: lanes, where known at compile time (else 0).
template <int W, int N, int kCount, int kStride>
DEEPLAB_FAST_INLINE void slice_tile(Tile& tile, const Taps& taps, int lane) {
  const int count = kCount > 0 ? kCount : taps.count;
  const int64_t lanes = kStride > 0 ? kStride : tile.pass.lanes;
  const float* rows = taps.blurred + lane;
  const int32_t* vertex = taps.vertex + tile.first * count;
  const float* weight = taps.weight + tile.first * count;
  for (int p = 0; p < tile.count; ++p, vertex += count, weight += count) {
    const int32_t* later = taps.vertex + tile.ahead(p) * count;
    Block<W, N> sum = Block<W, N>::zero();
    for (int j = 0; j < count; ++j) {
      prefetch_row(rows + later[j] * lanes, W * N);
      sum.add_scaled(weight[j], rows + vertex[j] * lanes);
    }
    float* energy = tile.energy + p * lanes + lane;
    const float factor = taps.scale * (taps.after != nullptr ? taps.after[tile.first + p] : 1.0f);
    if (taps.compat == Compat::kPotts) {
      Block<W, N> total = Block<W, N>::from(energy);
      total.add_scaled(factor, sum);
      total.to(energy);
    } else if (taps.compat == Compat::kDiagonal) {
      Block<W, N> total = Block<W, N>::from(energy);
      const Block<W, N> diagonal = Block<W, N>::from(taps.matrix + lane);
      for (int n = 0; n < N; ++n) total.v[n] = total.v[n] - factor * diagonal.v[n] * sum.v[n];
      total.to(energy);
    } else {
      sum.to(tile.filtered + p * lanes + lane);
    }
  }
}

template <int W, int N, int kCount, int kStride>
DEEPLAB_FAST_INLINE void splat_tile(const Tile& tile, const Taps& taps, int lane) {
  const int count = kCount > 0 ? kCount : taps.count;
  const int64_t lanes = kStride > 0 ? kStride : tile.pass.lanes;
  float* rows = taps.next + lane;
  const int32_t* target = taps.row + tile.first * count;
  const float* weight = taps.weight + tile.first * count;
  for (int p = 0; p < tile.count; ++p, target += count, weight += count) {
    const int32_t* later = taps.row + tile.ahead(p) * count;
    const Block<W, N> value = Block<W, N>::from(tile.energy + p * lanes + lane);
    const float factor = tile.inverse[p] * (taps.before != nullptr ? taps.before[tile.first + p] : 1.0f);
    for (int j = 0; j < count; ++j) {
      prefetch_row(rows + (later[j] ^ later[j] >> 31) * lanes, W * N);
      add_to_row<W, N>(target[j], weight[j] * factor, value, rows, lanes);
    }
  }
}

// Calls Stage<W, N, taps, lanes>, with the common numbers of taps (image kernels) and of lanes as constants.
#define DEEPLAB_FAST_BY_SHAPE(stage, tile, taps, lane)                                          \
  if (tile.pass.lanes == W * N) {                                                               \
    if (taps.count == 3) return stage<W, N, 3, W * N>(tile, taps, lane);                        \
    if (taps.count == 6) return stage<W, N, 6, W * N>(tile, taps, lane);                        \
  }                                                                                             \
  stage<W, N, 0, 0>(tile, taps, lane);

struct SliceTile {
  Tile& tile;
  const Taps& taps;
  template <int W, int N>
  DEEPLAB_FAST_INLINE void run(int lane) const {
    DEEPLAB_FAST_BY_SHAPE(slice_tile, tile, taps, lane)
  }
};
struct SplatTile {
  const Tile& tile;
  const Taps& taps;
  template <int W, int N>
  DEEPLAB_FAST_INLINE void run(int lane) const {
    DEEPLAB_FAST_BY_SHAPE(splat_tile, tile, taps, lane)
  }
};

struct AddMatrix {
  Tile& tile;
  const Taps& taps;
  template <int W, int N>
  DEEPLAB_FAST_INLINE void run(int lane) const {
    const int64_t lanes = tile.pass.lanes;
    for (int p = 0; p < tile.count; ++p) {
      const float factor = -taps.scale * (taps.after != nullptr ? taps.after[tile.first + p] : 1.0f);
      Block<W, N> product = Block<W, N>::zero();
      for (int l = 0; l < tile.pass.labels; ++l)
        product.add_scaled(tile.filtered[p * lanes + l], taps.matrix + l * lanes + lane);
      Block<W, N> sum = Block<W, N>::from(tile.energy + p * lanes + lane);
      sum.add_scaled(factor, product);
      sum.to(tile.energy + p * lanes + lane);
    }
  }
};

struct Highest {
  const Tile& tile;
  float* highest;
  template <int W, int N>
  DEEPLAB_FAST_INLINE void run(int lane) const {
    for (int p = 0; p < tile.count; ++p) {
      const Block<W, N> energy = Block<W, N>::from(tile.energy + p * int64_t{tile.pass.lanes} + lane);
      typename Vec<W>::type high = energy.v[0];
      for (int n = 1; n < N; ++n) high = (energy.v[n] > high) ? energy.v[n] : high;
      const float here = reduce_max<W>(high);
      highest[p] = here > highest[p] ? here : highest[p];
    }
  }
};

struct Exp {
  Tile& tile;
  const float* highest;
  float* sum;
  template <int W, int N>
  DEEPLAB_FAST_INLINE void run(int lane) const {
    const Block<W, N> multiplicity = Block<W, N>::from(tile.pass.multiplicity + lane);
    for (int p = 0; p < tile.count; ++p) {
      float* memory = tile.energy + p * int64_t{tile.pass.lanes} + lane;
      Block<W, N> energy = Block<W, N>::from(memory);
      typename Vec<W>::type total = broadcast<W>(0.0f);
      for (int n = 0; n < N; ++n) {
        energy.v[n] = exp_nonpositive<W>(energy.v[n] - highest[p]);
        total = total + energy.v[n] * multiplicity.v[n];
      }
      energy.to(memory);
      sum[p] += reduce_add<W>(total);
    }
  }
};

void softmax(Tile& tile) {
  float highest[kTile], sum[kTile];
  for (int p = 0; p < kTile; ++p) highest[p] = -__builtin_inff(), sum[p] = 0.0f;
  for_lane_blocks(tile.pass.lanes, Highest{tile, highest});
  for_lane_blocks(tile.pass.lanes, Exp{tile, highest, sum});
  for (int p = 0; p < tile.count; ++p) tile.inverse[p] = 1.0f / sum[p];
}

void store_tile(const Tile& tile) {
  const PixelPass& pass = tile.pass;
  for (int p = 0; p < tile.count; ++p) {
    const float* from = tile.energy + p * int64_t{pass.lanes};
    float* to = pass.out + (tile.first + p) * pass.out_labels;
    if (pass.lane_of_label == nullptr) {
      for (int l = 0; l < pass.out_labels; ++l) to[l] = from[l] * tile.inverse[p];
    } else {
      for (int l = 0; l < pass.out_labels; ++l) to[l] = from[pass.lane_of_label[l]] * tile.inverse[p];
    }
  }
}

}  // namespace

int pixel_pass_scratch(int lanes) { return 2 * kTile * lanes; }

void pixel_pass(const PixelPass& pass) {
  for (const PointTile* now = pass.tiles; now < pass.tiles_end; ++now) {
    Tile tile{pass, now->first, -1, now->count, pass.scratch, pass.scratch + kTile * pass.lanes, {}};
    if (now + 1 < pass.tiles_end && now[1].count >= kAhead) {
      tile.next_first = now[1].first;
      for (int lane = 0; lane < now[1].count * pass.lanes; lane += 16)
        __builtin_prefetch(pass.negative_unary + tile.next_first * pass.lanes + lane);
    }
    __builtin_memcpy(tile.energy, pass.negative_unary + now->first * pass.lanes, sizeof(float) * now->count * pass.lanes);
    for (int k = 0; pass.slice && k < pass.kernel_count; ++k) {
      for_lane_blocks(pass.lanes, SliceTile{tile, pass.kernels[k]});
      if (pass.kernels[k].compat == Compat::kMatrix) for_lane_blocks(pass.lanes, AddMatrix{tile, pass.kernels[k]});
    }
    for (float& one : tile.inverse) one = 1.0f;
    if (pass.normalize) softmax(tile);
    if (pass.out != nullptr) store_tile(tile);
    for (int k = 0; pass.splat && k < pass.kernel_count; ++k)
      for_lane_blocks(pass.lanes, SplatTile{tile, pass.kernels[k]});
  }
}

// Q_0 = 1 / (1 + exp(-score)), Q_1 = 1 / (1 + exp(score)).
void binary_pass(const BinaryPass& pass) {
  alignas(64) float score[kTile] = {}, q[2][kTile];
  for (const PointTile* tile = pass.tiles; tile < pass.tiles_end; ++tile) {
    for (int i = 0; i < tile->count; ++i) {
      const int64_t point = tile->first + i;
      float sum = pass.bias[point];
      for (int k = 0; pass.slice && k < pass.kernel_count; ++k) {
        const Taps& taps = pass.kernels[k];
        const float factor = taps.scale * (taps.after != nullptr ? taps.after[point] : 1.0f);
        sum += factor * slice_point<1, 1>(taps, point, taps.blurred, 1).v[0];
      }
      score[i] = sum;
    }
    for (int i = 0; i < kTile; i += 8) {
      const auto s = load<8>(score + i);
      const auto small = exp_nonpositive<8>((s < 0.0f) ? s : -s);
      const auto high = 1.0f / (1.0f + small), low = small * high;
      store<8>(q[0] + i, (s < 0.0f) ? low : high);
      store<8>(q[1] + i, (s < 0.0f) ? high : low);
    }
    for (int k = 0; pass.splat && k < pass.kernel_count; ++k)
      for (int i = 0; i < tile->count; ++i)
        splat_point<1, 1>(pass.kernels[k], tile->first + i, Block<1, 1>::from(q[0] + i), pass.kernels[k].next, 1);
    for (int i = 0; pass.out != nullptr && i < tile->count; ++i)
      pass.out[2 * (tile->first + i)] = q[0][i], pass.out[2 * (tile->first + i) + 1] = q[1][i];
  }
}

// geometry_isa.cpp and rows_isa.cpp
void locate(int, const float*, int64_t, int64_t, int, const float*, SimplexBlock);
FeatureRange feature_range(const float*, int64_t);
void splat(const Taps&, PointTile, int, const float*, float*);
void slice(const Taps&, PointTile, int, const float*, float*);
void blur(const int32_t*, int64_t, int, int64_t, float*);
void blur_row(const BlurRow&);
void fold(const int32_t*, int64_t, int64_t, int64_t, int, float*);

#define DEEPLAB_FAST_STRING_OF(name) #name
#define DEEPLAB_FAST_STRING(name) DEEPLAB_FAST_STRING_OF(name)
extern const Isa table;
const Isa table{DEEPLAB_FAST_STRING(DEEPLAB_FAST_ISA_NAME), locate, feature_range, splat, slice, blur, blur_row, fold,
                pixel_pass_scratch, pixel_pass, binary_pass};

}  // namespace DEEPLAB_FAST_ISA_NAME
}  // namespace deeplab_fast
