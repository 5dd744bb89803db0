// The filter: splat, blur, slice.
#include <algorithm>

#include "base/denormals.h"
#include "lattice/block_rows.h"
#include "lattice/lattice.h"

namespace deeplab_fast {
namespace {

void add_rows(const float* from, int64_t size, float* to, Parallel& parallel) {
  constexpr int64_t kParts = 16;
  parallel_for(parallel, kParts, [&](int64_t part) {
    const Range range = part_of(size, kParts, part);
    for (int64_t i = range.begin; i < range.end; ++i) to[i] += from[i];
  });
}

}  // namespace

void filter(const Lattice& lattice, const LatticeView& view, const float* values, int64_t channels, Blur blur,
            float* out, Parallel& parallel) {
  const VisitOrder& order = *lattice.order;
  const int64_t size = lattice.row_floats(lanes_of(channels));
  Buffer<float> rows(size), spare, other;
  if (blur == Blur::kBothWays) other.reset(size);
  const auto each_block = [&](auto&& body) {
    parallel_for(parallel, order.chunks(), [&](int64_t chunk) {
      const FlushDenormals flush;
      Buffer<float> memory(int64_t{VisitOrder::kMostInBlock} * lanes_of(channels));
      for (const PointBlock* block = order.begin(chunk); block < order.end(chunk); ++block) body(*block, memory.data());
    });
  };
  for (int64_t channel = 0; channel < channels; channel += kMostLanes) {
    const int here = static_cast<int>(std::min<int64_t>(channels - channel, kMostLanes)), lanes = row_lanes(here);
    const int64_t offset = channel * lattice.points;
    clear_rows(lattice, lanes, rows.data());
    each_block([&](const PointBlock& block, float* memory) {
      gather_block(values + offset, lattice.points, block, here, lanes, memory);
      row_kernels().splat(view, block, lanes, memory, rows.data());
    });
    if (blur == Blur::kBothWays) std::copy_n(rows.begin(), lattice.rows() * lanes, other.begin());
    fold_and_blur(lattice, lanes, rows, spare, blur == Blur::kReverse, parallel);
    if (blur == Blur::kBothWays) {
      fold_and_blur(lattice, lanes, other, spare, true, parallel);
      add_rows(other.data(), lattice.vertices * lanes, rows.data(), parallel);
    }
    each_block([&](const PointBlock& block, float* memory) {
      row_kernels().slice(view, block, lanes, rows.data(), memory);
      scatter_block(memory, lattice.points, block, here, lanes, out + offset);
    });
  }
}

}  // namespace deeplab_fast
