// The pixel pass of mean-field inference: slice the filtered Q out of the lattices, add the unary, softmax, and splat
// the new Q into the lattices of the next iteration. Q itself is stored only at the end. Compiled per instruction set.
//
// Pixels are taken a block at a time, whose energies stay in the second-level cache, and every stage runs over the
// whole block: each kernel takes its pixels simplex by simplex (simplex_rows.h), in an order of its own, and the stages
// of one pixel depend on each other through long latencies (reductions, exp, division), those of different pixels do
// not.
#include "crf/mean_field_kernels.h"
#include "crf/stencil_rows.h"
#include "isa/isa.h"
#include "lattice/rows.h"
#include "lattice/simplex_rows.h"

namespace deeplab_fast {
namespace DEEPLAB_FAST_ISA_NAME {
namespace {

// With narrower vectors the taps of many labels take longer than a lattice.
constexpr bool kStencils = kWidest >= 8;
// Pixels of one stage of the softmax.
constexpr int kTile = 64;
constexpr float kHighestSafe = 80.0f;

struct Scores {
  const PixelPass& pass;
  const PointBlock& block;
  float* energy;    // [kMostInBlock][lanes]: energies, then unnormalised probabilities
  float* filtered;  // [kMostInBlock][lanes], for matrix compat only
  float* inverse;   // [kMostInBlock] 1 / sum of the unnormalised probabilities

  DEEPLAB_FAST_INLINE Scores(const PixelPass& of, const PointBlock& points)
      : pass(of),
        block(points),
        energy(of.scratch),
        filtered(energy + int64_t{kMostInBlock} * of.lanes),
        inverse(filtered + int64_t{kMostInBlock} * of.lanes) {}
};

// Slices a kernel's rows and subtracts its term from `energies`, which gives the block's; with a matrix, which needs
// all lanes first, only stores what was sliced.
struct SliceKernel {
  Scores& scores;
  const PairwiseView& view;
  const float* energies;
  template <int kLanes>
  DEEPLAB_FAST_INLINE void run(int first, int64_t lanes) const {
    const float *from = energies + first, *rows = view.blurred + first;
    float *to = scores.energy + first, *filtered = scores.filtered + first;
    const float *after = view.after != nullptr ? view.after + scores.block.begin : nullptr, scale = view.scale;
    if constexpr (kStencils || kLanes == 4)  // four: the two labels that have one on every instruction set
      if (view.stencil != nullptr)
        return stencil_slice<kLanes>(*view.stencil, scores.block, scale, rows, lanes, from, to);
    by_corners(view.corners, [&](auto corners) {
      const auto walk = [&](auto use) { slice_lanes<kLanes, corners.value>(view, scores.block, rows, lanes, use); };
      if (view.compat == Compat::kMatrix)
        return walk([=](int64_t place, int lane, auto sum) { sum.to(filtered + place * lanes + lane); });
      if (view.compat == Compat::kDiagonal)
        return walk([=, diagonal = view.matrix + first](int64_t place, int lane, auto sum) {
          sum.multiply(sum.from(diagonal + lane));
          auto energy = sum.from(from + place * lanes + lane);
          energy.add_scaled(-scaled_factor(scale, after, place), sum);
          energy.to(to + place * lanes + lane);
        });
      walk([=](int64_t place, int lane, auto sum) {
        auto energy = sum.from(from + place * lanes + lane);
        energy.add_scaled(scaled_factor(scale, after, place), sum);
        energy.to(to + place * lanes + lane);
      });
    });
  }
};

struct SplatKernel {
  const Scores& scores;
  const PairwiseView& view;
  template <int kLanes>
  DEEPLAB_FAST_INLINE void run(int first, int64_t lanes) const {
    const float *from = scores.energy + first, *inverse = scores.inverse;
    const float* before = view.before != nullptr ? view.before + scores.block.begin : nullptr;
    if (view.stencil != nullptr)
      return stencil_splat<kLanes>(*view.stencil, scores.block, view.next + first, lanes,
                                   [=](int64_t place, int lane, auto value) {
                                     value = value.from(from + place * lanes + lane);
                                     value.multiply(inverse[place]);
                                     return value;
                                   });
    by_corners(view.corners, [&](auto corners) {
      splat_lanes<kLanes, corners.value>(view, scores.block, view.next + first, lanes,
                                         [=](int64_t place, int lane, auto value) {
                                           // In this order, so that a Q that was stored and is splatted again gives the
                                           // same bits.
                                           value = value.from(from + place * lanes + lane);
                                           value.multiply(inverse[place]);
                                           if (before != nullptr) value.multiply(before[place]);
                                           return value;
                                         });
    });
  }
};

struct AddMatrix {
  Scores& scores;
  const PairwiseView& view;
  template <int W, int N>
  DEEPLAB_FAST_INLINE void run(int lane) const {
    const int64_t lanes = scores.pass.lanes;
    for (int p = 0; p < scores.block.count(); ++p) {
      Block<W, N> product = Block<W, N>::zero();
      for (int l = 0; l < scores.pass.labels; ++l)
        product.add_scaled(scores.filtered[p * lanes + l], view.matrix + l * lanes + lane);
      Block<W, N> energy = Block<W, N>::from(scores.energy + p * lanes + lane);
      energy.add_scaled(-scaled_factor(view.scale, view.after, scores.block.begin + p), product);
      energy.to(scores.energy + p * lanes + lane);
    }
  }
};

// --- Softmax of a tile of rows -----------------------------------------------------------------------------------

struct Tile {
  int count;
  int64_t lanes;
  float* energy;              // [count][lanes]
  const float* multiplicity;  // [lanes] or null
};

// One value a row: the lanes joined by `op`, each after `map`.
template <int W, class Op, class Map>
DEEPLAB_FAST_INLINE void reduce_tile(const Tile& tile, Op op, Map map, float* out) {
  typename Vec<W>::type of_row[kTile];
  for (int p = tile.count; p < kTile; ++p) of_row[p] = broadcast<W>(0.0f);
  for (int p = 0; p < tile.count; ++p) {
    const float* row = tile.energy + p * tile.lanes;
    of_row[p] = map(load<W>(row), 0);
    for (int64_t lane = W; lane < tile.lanes; lane += W) of_row[p] = op(map(load<W>(row + lane), lane), of_row[p]);
  }
  for (int p = 0; p < kTile; p += W) reduce_rows<W>(of_row + p, op, out + p);
}

// Whether exp of all energies, and the sums of a row, stay far from overflow.
DEEPLAB_FAST_INLINE bool all_safe(const Tile& tile) {
  typename Vec<kWidest>::mask above{};
  const int64_t size = tile.count * tile.lanes;
  int64_t i = 0;
  for (; i + kWidest <= size; i += kWidest) above = above | !(load<kWidest>(tile.energy + i) < kHighestSafe);
  bool safe = true;
  for (int lane = 0; lane < kWidest; ++lane) safe &= above[lane] == 0;
  for (; i < size; ++i) safe &= tile.energy[i] < kHighestSafe;
  return safe;
}

template <int W>
DEEPLAB_FAST_INLINE void subtract_highest(const Tile& tile) {
  float highest[kTile];
  reduce_tile<W>(tile, Max(), [](auto energy, int64_t) { return energy; }, highest);
  for (int p = 0; p < tile.count; ++p)
    for (int64_t lane = 0; lane < tile.lanes; lane += W) {
      float* memory = tile.energy + p * tile.lanes + lane;
      store<W>(memory, load<W>(memory) - highest[p]);
    }
}

template <int W>
DEEPLAB_FAST_INLINE void softmax(const Tile& tile, bool attractive, float* inverse, const float* next) {
  if (!attractive || !all_safe(tile)) subtract_highest<W>(tile);
  const int64_t size = tile.count * tile.lanes;
  int64_t i = 0;
  for (; i + kWidest <= size; i += kWidest) {
    if (i % 16 == 0) __builtin_prefetch(next + i);
    store<kWidest>(tile.energy + i, exp_of<kWidest>(load<kWidest>(tile.energy + i)));
  }
  for (; i < size; i += 4) store<4>(tile.energy + i, exp_of<4>(load<4>(tile.energy + i)));
  float sum[kTile];
  if (tile.multiplicity == nullptr)
    reduce_tile<W>(tile, Add(), [](auto probability, int64_t) { return probability; }, sum);
  else
    reduce_tile<W>(
        tile, Add(), [&](auto probability, int64_t lane) { return probability * load<W>(tile.multiplicity + lane); },
        sum);
  for (int p = 0; p < kTile; ++p) sum[p] = 1.0f / sum[p];
  __builtin_memcpy(inverse, sum, sizeof(float) * tile.count);
}

// `next`: fetches from there as many energies ahead, those of the next block.
DEEPLAB_FAST_INLINE void softmax(Scores& scores, const float* next) {
  const PixelPass& pass = scores.pass;
  for (int first = 0; first < scores.block.count(); first += kTile) {
    const int left = scores.block.count() - first;
    const Tile tile{left < kTile ? left : kTile, pass.lanes, scores.energy + int64_t{first} * pass.lanes,
                    pass.multiplicity};
    if (pass.lanes == 4 || kWidest == 4)
      softmax<4>(tile, pass.attractive, scores.inverse + first, next);
    else
      softmax<8>(tile, pass.attractive, scores.inverse + first, next);
    next += tile.count * tile.lanes;
  }
}

// --- The pass ----------------------------------------------------------------------------------------------------

void store_block(const Scores& scores) {
  const PixelPass& pass = scores.pass;
  scores.block.each_line([&](int32_t place, int64_t point, int32_t count) {
    for (int32_t p = 0; p < count; ++p) {
      const float* from = scores.energy + (place + p) * int64_t{pass.lanes};
      float* to = pass.out + (point + p) * pass.out_labels;
      const float inverse = scores.inverse[place + p];
      const float added = pass.normalize ? 0.0f : pass.highest[scores.block.begin + place + p];
      if (pass.lane_of_label == nullptr) {
        for (int l = 0; l < pass.out_labels; ++l) to[l] = from[l] * inverse + added;
      } else {
        for (int l = 0; l < pass.out_labels; ++l) to[l] = from[pass.lane_of_label[l]] * inverse + added;
      }
    }
  });
}

}  // namespace

int pixel_pass_scratch(int lanes) {
  return 2 * kMostInBlock * lanes + kMostInBlock;
}

void pixel_pass(const PixelPass& pass) {
  for (const PointBlock* block = pass.blocks; block < pass.blocks_end; ++block) {
    Scores scores(pass, *block);
    const float* energies = pass.negative_unary + block->begin * pass.lanes;
    if (!pass.slice || pass.pairwise_count == 0 || pass.pairwise[0].compat == Compat::kMatrix) {
      __builtin_memcpy(scores.energy, energies, sizeof(float) * block->count() * pass.lanes);
      energies = scores.energy;
    }
    for (int k = 0; pass.slice && k < pass.pairwise_count; ++k) {
      for_walks(pass.lanes, SliceKernel{scores, pass.pairwise[k], energies});
      energies = scores.energy;
      if (pass.pairwise[k].compat == Compat::kMatrix) for_lane_blocks(pass.lanes, AddMatrix{scores, pass.pairwise[k]});
    }
    if (pass.normalize) {
      const PointBlock* next = block + 1 < pass.blocks_end ? block + 1 : block;
      softmax(scores, pass.negative_unary + next->begin * pass.lanes);
    } else {
      for (int p = 0; p < block->count(); ++p) scores.inverse[p] = 1.0f;
    }
    if (pass.out != nullptr) store_block(scores);
    for (int k = 0; pass.splat && k < pass.pairwise_count; ++k)
      for_walks(pass.lanes, SplatKernel{scores, pass.pairwise[k]});
  }
}

// Calls body(Constant<floats>(), first) for `count` floats, a vector at a time, and the last ones singly.
template <class Body>
DEEPLAB_FAST_INLINE void for_vectors(int count, Body&& body) {
  int first = 0;
  for (; first + kWidest <= count; first += kWidest) body(Constant<kWidest>(), first);
  for (; first < count; ++first) body(Constant<1>(), first);
}

// to[p] = or += scale * factor[p] * from[p] (factor null: 1)
template <bool kAdd>
DEEPLAB_FAST_INLINE void scale_values(int count, float scale, const float* factor, const float* from, float* to) {
  for_vectors(count, [&](auto floats, int p) {
    constexpr int W = decltype(floats)::value;
    auto value = load<W>(from + p) * (factor != nullptr ? scale * load<W>(factor + p) : broadcast<W>(scale));
    if constexpr (kAdd) value = load<W>(to + p) + value;
    store<W>(to + p, value);
  });
}

// Q_0 = 1 / (1 + exp(-score)), Q_1 = 1 / (1 + exp(score)).
void binary_pass(const BinaryPass& pass) {
  constexpr int W = kWidest;
  alignas(64) float score[kMostInBlock], sliced[kMostInBlock], q[2][kMostInBlock], difference[kMostInBlock];
  for (const PointBlock* block = pass.blocks; block < pass.blocks_end; ++block) {
    const int count = block->count();
    for (int p = 0; p < count; ++p) score[p] = pass.score[block->begin + p];
    for (int p = count; p % W != 0; ++p) score[p] = 0.0f;
    for (int k = 0; pass.slice && k < pass.pairwise_count; ++k) {
      const PairwiseView& view = pass.pairwise[k];
      if (view.stencil != nullptr)
        stencil_slice_one(*view.stencil, *block, view.blurred, sliced);
      else
        slice_one(view, *block, view.blurred, sliced);
      scale_values<true>(count, view.scale, view.after != nullptr ? view.after + block->begin : nullptr, sliced, score);
    }
    for (int p = 0; p < count; p += W) {
      const auto s = load<W>(score + p);
      const auto small = exp_of<W>((s < 0.0f) ? s : -s);
      const auto high = 1.0f / (1.0f + small), low = small * high;
      store<W>(q[0] + p, (s < 0.0f) ? low : high);
      store<W>(q[1] + p, (s < 0.0f) ? high : low);
      store<W>(difference + p, load<W>(q[0] + p) - load<W>(q[1] + p));
    }
    for (int k = 0; pass.splat && k < pass.pairwise_count; ++k) {
      const PairwiseView& view = pass.pairwise[k];
      const float* value = difference;
      if (view.before != nullptr) {
        scale_values<false>(count, 1.0f, view.before + block->begin, difference, sliced);
        value = sliced;
      }
      if (view.stencil != nullptr)
        stencil_splat_one(*view.stencil, *block, value, view.next);
      else
        splat_one(view, *block, value, view.next);
    }
    if (pass.out == nullptr) continue;
    block->each_line([&](int32_t place, int64_t point, int32_t columns) {
      for (int32_t i = 0; i < columns; ++i)
        pass.out[2 * (point + i)] = q[0][place + i], pass.out[2 * (point + i) + 1] = q[1][place + i];
    });
  }
}

extern const MeanFieldKernels mean_field_kernels;
const MeanFieldKernels mean_field_kernels{
    DEEPLAB_FAST_SET,
    .wide = kStencils,
    DEEPLAB_FAST_KERNEL(pixel_pass_scratch),
    DEEPLAB_FAST_KERNEL(pixel_pass),
    DEEPLAB_FAST_KERNEL(binary_pass),
};

}  // namespace DEEPLAB_FAST_ISA_NAME
}  // namespace deeplab_fast
