// The pairwise energy of scores at a smaller size: sum over classes of S' A S, A being the lattice's filter, with its
// gradient; and the bilinear scaling that brings scores to that size, with its adjoint.
#pragma once

#include <cstdint>
#include <vector>

#include "base/parallel.h"
#include "lattice/lattice.h"
#include "upsample/bilinear.h"

namespace deeplab_fast {

// Planes of height x width scaled by `factor` as torch.nn.functional.interpolate(scale_factor=factor, mode="bilinear",
// align_corners=False) does: by the factor given, not by the ratio of the sizes.
class BilinearScaling {
 public:
  BilinearScaling(int64_t height, int64_t width, double factor);

  int64_t height() const { return y_.to; }
  int64_t width() const { return x_.to; }
  int64_t points() const { return y_.to * x_.to; }
  int64_t source_points() const { return y_.from * x_.from; }

  void scale(const float* plane, float* scaled) const;
  // plane = times * (the transpose of `scale`)(scaled), every element written once.
  void scale_back(const float* scaled, float times, float* plane) const;

 private:
  // One axis: for every element of the result where it looks, and for every element of the source who looks at it.
  struct Direction {
    Direction(int64_t from, double factor);
    int64_t from, to;
    bool same;
    bool halves = true;  // every element is the mean of two, as with factor 0.5: there are faster loops for that
    std::vector<BilinearTap> taps;
    std::vector<int64_t> start;  // [from + 1]
    std::vector<int64_t> looks;
    std::vector<float> weight;
  };
  void scale_row(const float* row, float* scaled) const;
  void scale_row_back(const float* scaled, float times, float* row) const;
  Direction y_, x_;
};

// energy = sum over channels of S' A S, gradient = inside * (A + A') S, with S = inside * values; values, `inside`
// (null: everything) and gradient lie on the points of the lattice, a plane a channel. `values` becomes S.
double pairwise_energy(const Lattice& lattice, int64_t channels, const float* inside, float* values, float* gradient,
                       Parallel& parallel);

}  // namespace deeplab_fast
