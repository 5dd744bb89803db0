// The pixel pass of mean-field inference: slice the filtered Q out of the lattices, add the unary, softmax, and splat
// the new Q into the lattices of the next iteration. Q itself is stored only at the end. Compiled per instruction set.
//
// Pixels are taken a tile at a time, and every stage runs over the whole tile: the stages of one pixel depend on each
// other through long latencies (sums over corners, reductions, exp, division), those of different pixels do not.
#include "crf/mean_field_kernels.h"
#include "isa/isa.h"
#include "lattice/rows.h"

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
  alignas(64) float highest[kTile];
  alignas(64) float inverse[kTile];

  DEEPLAB_FAST_INLINE Tile(const PixelPass& of, const PointTile& points)
      : pass(of),
        first(points.first),
        next_first(-1),
        count(points.count),
        energy(of.scratch),
        filtered(of.scratch + kTile * of.lanes) {}

  // The point visited kAhead points after the p-th of this tile; itself where there is none.
  DEEPLAB_FAST_INLINE int64_t ahead(int p) const {
    const int later = p + kAhead;
    return later < count ? first + later : next_first < 0 ? first + p : next_first + (later - count);
  }
};

DEEPLAB_FAST_INLINE float output_factor(const PairwiseView& view, int64_t point) {
  return view.scale * (view.after != nullptr ? view.after[point] : 1.0f);
}

// Slices a kernel's rows and subtracts its term from `energies`, which gives the tile's; with a matrix, which needs all
// lanes first, only stores what was sliced.
template <int W, int N>
DEEPLAB_FAST_INLINE void slice_block(Tile& tile, const PairwiseView& view, int lane, int64_t lanes,
                                     const float* energies) {
  by_shape(view, [&](auto constant_count, auto scattered) {
    const int count = constant_count.value > 0 ? constant_count.value : view.corners;
    const float* rows = view.blurred + lane;
    for (int p = 0; p < tile.count; ++p) {
      const int64_t point = tile.first + p;
      if (scattered.value) {
        const int32_t* later = view.vertex + tile.ahead(p) * count;
        for (int j = 0; j < count; ++j) prefetch_row(row_at(rows, later[j], lanes), W * N);
      }
      Block<W, N> sum = slice_rows<W, N>(count, view.vertex + point * count, view.weight + point * count, rows, lanes);
      if (view.compat == Compat::kMatrix) {
        sum.to(tile.filtered + p * lanes + lane);
        continue;
      }
      if (view.compat == Compat::kDiagonal) {
        const Block<W, N> diagonal = Block<W, N>::from(view.matrix + lane);
        for (int n = 0; n < N; ++n) sum.v[n] = -diagonal.v[n] * sum.v[n];
      }
      Block<W, N> energy = Block<W, N>::from(energies + p * lanes + lane);
      energy.add_scaled(output_factor(view, point), sum);
      energy.to(tile.energy + p * lanes + lane);
    }
  });
}

template <int W, int N>
DEEPLAB_FAST_INLINE void splat_block(const Tile& tile, const PairwiseView& view, int lane, int64_t lanes) {
  by_shape(view, [&](auto constant_count, auto scattered) {
    const int count = constant_count.value > 0 ? constant_count.value : view.corners;
    float* rows = view.next + lane;
    for (int p = 0; p < tile.count; ++p) {
      const int64_t point = tile.first + p;
      if (scattered.value) {
        const int32_t* later = view.row + tile.ahead(p) * count;
        for (int j = 0; j < count; ++j) prefetch_row(row_at(rows, later[j] ^ later[j] >> 31, lanes), W * N);
      }
      const int32_t* target = view.row + point * count;
      const float* weight = view.weight + point * count;
      // In this order, so that a Q that was stored and is splatted again gives the same bits.
      const float inverse = tile.inverse[p], before = view.before != nullptr ? view.before[point] : 1.0f;
      Block<W, N> value = Block<W, N>::from(tile.energy + p * lanes + lane);
      for (int n = 0; n < N; ++n) value.v[n] = (value.v[n] * inverse) * before;
      for (int j = 0; j < count; ++j) add_to_row<W, N, scattered.value != 0>(target[j], weight[j], value, rows, lanes);
    }
  });
}

// With one block of lanes their number is a constant.
struct SliceKernel {
  Tile& tile;
  const PairwiseView& view;
  const float* energies;
  template <int W, int N>
  DEEPLAB_FAST_INLINE void run(int lane) const {
    if (tile.pass.lanes == W * N) return slice_block<W, N>(tile, view, 0, W * N, energies);
    slice_block<W, N>(tile, view, lane, tile.pass.lanes, energies);
  }
};
struct SplatKernel {
  const Tile& tile;
  const PairwiseView& view;
  template <int W, int N>
  DEEPLAB_FAST_INLINE void run(int lane) const {
    if (tile.pass.lanes == W * N) return splat_block<W, N>(tile, view, 0, W * N);
    splat_block<W, N>(tile, view, lane, tile.pass.lanes);
  }
};

struct AddMatrix {
  Tile& tile;
  const PairwiseView& view;
  template <int W, int N>
  DEEPLAB_FAST_INLINE void run(int lane) const {
    const int64_t lanes = tile.pass.lanes;
    for (int p = 0; p < tile.count; ++p) {
      Block<W, N> product = Block<W, N>::zero();
      for (int l = 0; l < tile.pass.labels; ++l)
        product.add_scaled(tile.filtered[p * lanes + l], view.matrix + l * lanes + lane);
      Block<W, N> energy = Block<W, N>::from(tile.energy + p * lanes + lane);
      energy.add_scaled(-output_factor(view, tile.first + p), product);
      energy.to(tile.energy + p * lanes + lane);
    }
  }
};
// Reductions over the lanes of all points of a tile, joined with those of earlier blocks of lanes.
template <int W, class Op>
DEEPLAB_FAST_INLINE void reduce_tile(const typename Vec<W>::type* of_point, Op op, int lane, float* out) {
  float here[kTile];
  for (int p = 0; p < kTile; p += W) reduce_rows<W>(of_point + p, op, here + p);
  for (int p = 0; p < kTile; ++p) out[p] = lane > 0 ? op(out[p], here[p]) : here[p];
}

struct Highest {
  Tile& tile;
  template <int W, int N>
  DEEPLAB_FAST_INLINE void run(int lane) const {
    typename Vec<W>::type high[kTile];
    for (int p = tile.count; p < kTile; ++p) high[p] = broadcast<W>(0.0f);
    for (int p = 0; p < tile.count; ++p) {
      const Block<W, N> energy = Block<W, N>::from(tile.energy + p * int64_t{tile.pass.lanes} + lane);
      high[p] = energy.v[0];
      for (int n = 1; n < N; ++n) high[p] = Max()(energy.v[n], high[p]);
    }
    reduce_tile<W>(high, Max(), lane, tile.highest);
  }
};

struct Exp {
  Tile& tile;
  float* sum;
  template <int W, int N>
  DEEPLAB_FAST_INLINE void run(int lane) const {
    const Block<W, N> multiplicity = Block<W, N>::from(tile.pass.multiplicity + lane);
    typename Vec<W>::type total[kTile];
    for (int p = tile.count; p < kTile; ++p) total[p] = broadcast<W>(0.0f);
    for (int p = 0; p < tile.count; ++p) {
      float* memory = tile.energy + p * int64_t{tile.pass.lanes} + lane;
      Block<W, N> energy = Block<W, N>::from(memory);
      for (int n = 0; n < N; ++n) {
        energy.v[n] = exp_nonpositive<W>(energy.v[n] - tile.highest[p]);
        total[p] = n > 0 ? total[p] + energy.v[n] * multiplicity.v[n] : energy.v[n] * multiplicity.v[n];
      }
      energy.to(memory);
    }
    reduce_tile<W>(total, Add(), lane, sum);
  }
};

void softmax(Tile& tile) {
  float sum[kTile];
  for_lane_blocks(tile.pass.lanes, Highest{tile});
  for_lane_blocks(tile.pass.lanes, Exp{tile, sum});
  for (int p = 0; p < kTile; ++p) tile.inverse[p] = 1.0f / sum[p];
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

int pixel_pass_scratch(int lanes) {
  return 2 * kTile * lanes;
}

void pixel_pass(const PixelPass& pass) {
  for (const PointTile* now = pass.tiles; now < pass.tiles_end; ++now) {
    Tile tile(pass, *now);
    if (!pass.normalize)
      for (float& one : tile.inverse) one = 1.0f;
    if (now + 1 < pass.tiles_end && now[1].count >= kAhead) {
      tile.next_first = now[1].first;
      for (int lane = 0; lane < now[1].count * pass.lanes; lane += 16)
        __builtin_prefetch(pass.negative_unary + tile.next_first * pass.lanes + lane);
    }
    const float* energies = pass.negative_unary + now->first * pass.lanes;
    if (!pass.slice || pass.pairwise_count == 0 || pass.pairwise[0].compat == Compat::kMatrix) {
      __builtin_memcpy(tile.energy, energies, sizeof(float) * now->count * pass.lanes);
      energies = tile.energy;
    }
    for (int k = 0; pass.slice && k < pass.pairwise_count; ++k) {
      for_lane_blocks(pass.lanes, SliceKernel{tile, pass.pairwise[k], energies});
      energies = tile.energy;
      if (pass.pairwise[k].compat == Compat::kMatrix) for_lane_blocks(pass.lanes, AddMatrix{tile, pass.pairwise[k]});
    }
    if (pass.normalize) softmax(tile);
    if (pass.out != nullptr) store_tile(tile);
    for (int k = 0; pass.splat && k < pass.pairwise_count; ++k)
      for_lane_blocks(pass.lanes, SplatKernel{tile, pass.pairwise[k]});
  }
}

// Q_0 = 1 / (1 + exp(-score)), Q_1 = 1 / (1 + exp(score)).
void binary_pass(const BinaryPass& pass) {
  alignas(64) float score[kTile] = {}, q[2][kTile];
  for (const PointTile* tile = pass.tiles; tile < pass.tiles_end; ++tile) {
    for (int i = 0; i < tile->count; ++i) score[i] = pass.score[tile->first + i];
    for (int k = 0; pass.slice && k < pass.pairwise_count; ++k) {
      const PairwiseView& view = pass.pairwise[k];
      by_shape(view, [&](auto constant_count, auto) {
        const int count = constant_count.value > 0 ? constant_count.value : view.corners;
        for (int i = 0; i < tile->count; ++i) {
          const int64_t point = tile->first + i;
          const int32_t* vertex = view.vertex + point * count;
          const float* weight = view.weight + point * count;
          float sum = 0.0f;
          for (int j = 0; j < count; ++j) sum += weight[j] * view.blurred[vertex[j]];
          score[i] += output_factor(view, point) * sum;
        }
      });
    }
    for (int i = 0; i < kTile; i += 8) {
      const auto s = load<8>(score + i);
      const auto small = exp_nonpositive<8>((s < 0.0f) ? s : -s);
      const auto high = 1.0f / (1.0f + small), low = small * high;
      store<8>(q[0] + i, (s < 0.0f) ? low : high);
      store<8>(q[1] + i, (s < 0.0f) ? high : low);
    }
    for (int k = 0; pass.splat && k < pass.pairwise_count; ++k) {
      const PairwiseView& view = pass.pairwise[k];
      by_shape(view, [&](auto constant_count, auto scattered) {
        const int count = constant_count.value > 0 ? constant_count.value : view.corners;
        for (int i = 0; i < tile->count; ++i) {
          const int64_t point = tile->first + i;
          const int32_t* target = view.row + point * count;
          const float* weight = view.weight + point * count;
          const Block<1, 1> value{{(q[0][i] - q[1][i]) * (view.before != nullptr ? view.before[point] : 1.0f)}};
          for (int j = 0; j < count; ++j)
            add_to_row<1, 1, scattered.value != 0>(target[j], weight[j], value, view.next, 1);
        }
      });
    }
    for (int i = 0; pass.out != nullptr && i < tile->count; ++i)
      pass.out[2 * (tile->first + i)] = q[0][i], pass.out[2 * (tile->first + i) + 1] = q[1][i];
  }
}

extern const MeanFieldKernels mean_field_kernels;
const MeanFieldKernels mean_field_kernels{
    DEEPLAB_FAST_SET,
    DEEPLAB_FAST_KERNEL(pixel_pass_scratch),
    DEEPLAB_FAST_KERNEL(pixel_pass),
    DEEPLAB_FAST_KERNEL(binary_pass),
};

}  // namespace DEEPLAB_FAST_ISA_NAME
}  // namespace deeplab_fast
