// Gradients of filtering to the features, through the barycentric weights.
#include <algorithm>

#include "base/denormals.h"
#include "lattice/geometry.h"
#include "lattice/geometry_kernels.h"
#include "lattice/lattice.h"
#include "lattice/tile_rows.h"

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
    for (const PointTile* tile = order.begin(chunk); tile < order.end(chunk); ++tile) {
      geometry_kernels().locate(D, features, lattice.points, tile->first, tile->count, scale.data(), simplices);
      for (int p = 0; p < tile->count; ++p) {
        const int64_t point = tile->first + p;
        for (int i = 0; i <= D; ++i) of_point[i] = simplices.rank[i * kPointBlock + p];
        weights_backward(weight_grad + point * (D + 1), of_point.data(), scale.data(), D, scratch.data(),
                         feature_grad + point, lattice.points);
      }
    }
  });
}

void filter_backward_features(const Lattice& lattice, const float* features, const float* grad, const float* values,
                              int64_t channels, bool reverse, float* feature_grad, Parallel& parallel) {
  const VisitOrder& order = *lattice.order;
  const LatticeView view = lattice.view();
  const int64_t size = lattice.rows() * row_lanes(static_cast<int>(std::min<int64_t>(channels, kMostLanes)));
  Buffer<float> blurred(size), back(size), spare, weight_grad(lattice.points * lattice.corners);
  std::fill(weight_grad.begin(), weight_grad.end(), 0.0f);
  for (int64_t channel = 0; channel < channels; channel += kMostLanes) {
    const int here = static_cast<int>(std::min<int64_t>(channels - channel, kMostLanes)), lanes = row_lanes(here);
    const int64_t offset = channel * lattice.points;
    const auto each_tile = [&](auto&& body) {
      parallel_for(parallel, order.chunks(), [&](int64_t chunk) {
        const FlushDenormals flush;
        alignas(64) float of_values[VisitOrder::kTile * kMostLanes], of_grad[VisitOrder::kTile * kMostLanes];
        for (const PointTile* tile = order.begin(chunk); tile < order.end(chunk); ++tile) {
          gather_tile(values + offset, lattice.points, *tile, here, lanes, of_values);
          gather_tile(grad + offset, lattice.points, *tile, here, lanes, of_grad);
          body(*tile, of_values, of_grad);
        }
      });
    };
    clear_empty_rows(lattice, lanes, blurred.data());
    clear_empty_rows(lattice, lanes, back.data());
    each_tile([&](PointTile tile, const float* of_values, const float* of_grad) {
      row_kernels().splat(view, tile, lanes, of_values, blurred.data());
      row_kernels().splat(view, tile, lanes, of_grad, back.data());
    });
    fold_and_blur(lattice, lanes, blurred, spare, reverse, parallel);
    fold_and_blur(lattice, lanes, back, spare, !reverse, parallel);
    each_tile([&](PointTile tile, const float* of_values, const float* of_grad) {
      row_kernels().add_weight_gradient(
          view, tile, lanes, {of_grad, of_values, blurred.data(), back.data(), view.scale, weight_grad.data()});
    });
  }
  weights_to_features(lattice, features, weight_grad.data(), feature_grad, parallel);
}

}  // namespace deeplab_fast
