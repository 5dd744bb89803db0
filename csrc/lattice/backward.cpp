// Gradients of filtering to the features, through the barycentric weights.
#include <algorithm>

#include "base/denormals.h"
#include "lattice/block_rows.h"
#include "lattice/geometry.h"
#include "lattice/geometry_kernels.h"
#include "lattice/lattice.h"

namespace deeplab_fast {

void weights_to_features(const Lattice& lattice, const float* features, const float* weight_grad, float* feature_grad,
                         Parallel& parallel) {
  const VisitOrder& order = *lattice.order;
  const int D = lattice.dimensions;
  std::vector<float> scale;
  for (int d = 0; d < D; ++d) scale.push_back(embedding_scale(d, D));
  parallel_for(parallel, order.chunks(), [&](int64_t chunk) {
    Buffer<float> memory(SimplexBlock::size(D)), scratch(D + 1);
    Buffer<int32_t> of_point(D + 1);
    const SimplexBlock simplices = SimplexBlock::in(memory.data(), D);
    const float* of_place[VisitOrder::kMostInBlock];
    for (const PointBlock* block = order.begin(chunk); block < order.end(chunk); ++block) {
      for (int64_t p = block->begin; p < block->begin + block->count(); ++p)
        of_place[lattice.place[p]] = weight_grad + p * (D + 1);
      block->each_stretch(kPointBlock, [&](int32_t place, int64_t first, int32_t count) {
        geometry_kernels().locate(D, features, lattice.points, first, count, scale.data(), nullptr, simplices);
        for (int p = 0; p < count; ++p) {
          for (int i = 0; i <= D; ++i) of_point[i] = simplices.rank[i * kPointBlock + p];
          weights_backward(of_place[place + p], of_point.data(), scale.data(), D, scratch.data(),
                           feature_grad + first + p, lattice.points);
        }
      });
    }
  });
}

void filter_backward_features(const Lattice& lattice, const float* features, const float* grad, const float* values,
                              int64_t channels, bool reverse, float* feature_grad, Parallel& parallel) {
  const VisitOrder& order = *lattice.order;
  const LatticeView view = lattice.view(Lattice::kSeveral, parallel);
  const int64_t size = lattice.row_floats(lanes_of(channels));
  Buffer<float> blurred(size), back(size), spare, weight_grad(lattice.points * lattice.corners);
  std::fill(weight_grad.begin(), weight_grad.end(), 0.0f);
  for (int64_t channel = 0; channel < channels; channel += kMostLanes) {
    const int here = static_cast<int>(std::min<int64_t>(channels - channel, kMostLanes)), lanes = row_lanes(here);
    const int64_t offset = channel * lattice.points;
    const auto each_block = [&](auto&& body) {
      parallel_for(parallel, order.chunks(), [&](int64_t chunk) {
        const FlushDenormals flush;
        Buffer<float> memory(2 * int64_t{VisitOrder::kMostInBlock} * lanes);
        float *of_values = memory.data(), *of_grad = of_values + int64_t{VisitOrder::kMostInBlock} * lanes;
        for (const PointBlock* block = order.begin(chunk); block < order.end(chunk); ++block) {
          gather_block(values + offset, lattice.points, *block, here, lanes, of_values);
          gather_block(grad + offset, lattice.points, *block, here, lanes, of_grad);
          body(*block, of_values, of_grad);
        }
      });
    };
    clear_rows(lattice, lanes, blurred.data());
    clear_rows(lattice, lanes, back.data());
    each_block([&](const PointBlock& block, const float* of_values, const float* of_grad) {
      row_kernels().splat(view, block, lanes, of_values, blurred.data());
      row_kernels().splat(view, block, lanes, of_grad, back.data());
    });
    fold_and_blur(lattice, lanes, blurred, spare, reverse, parallel);
    fold_and_blur(lattice, lanes, back, spare, !reverse, parallel);
    each_block([&](const PointBlock& block, const float* of_values, const float* of_grad) {
      row_kernels().add_weight_gradient(
          view, block, lanes, {of_grad, of_values, blurred.data(), back.data(), view.scale, weight_grad.data()});
    });
  }
  weights_to_features(lattice, features, weight_grad.data(), feature_grad, parallel);
}

}  // namespace deeplab_fast
