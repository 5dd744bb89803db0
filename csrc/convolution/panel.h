// The inner product of the convolution kernels: a few rows times a panel of channels, summed over segments. Compiled
// once per instruction set (panel_isa.cpp).
#pragma once

#include <cstdint>

namespace deeplab_fast {

constexpr int kMaxPanelRows = 12;

// out[m][lane] (+)= sum over segments s and r < length of rows[s * count + m][r] * panel[s][r * lanes + lane].
// The sum starts at 0 and is added to `out` once, so that long sums are made of shorter ones.
struct PanelProduct {
  int count;                 // rows
  int lanes;                 // 1 to 3 times PanelShape::unit
  int64_t segments, length;  // length: of each segment
  const float* const* rows;
  const float* const* panels;
  float* const* out;
  bool add;
};

// sums[m][k][lane] (+)= sum over c < length, c mod unit = lane, of x[m][c] * weight of class k at c: a product of few
// classes wastes no lanes if the lanes are channels, to be added up when all is done.
struct DotProduct {
  int count, classes;  // pixels; classes, at most kMaxDotClasses
  int64_t length;      // channels, a multiple of PanelShape::unit
  const float* const* x;
  const float* weights;  // [length / unit][classes][unit]
  float* const* sums;
  bool add;
};
constexpr int kMaxDotClasses = 3;

// What suits the registers of an instruction set.
struct PanelShape {
  int unit;     // lanes of one register
  int rows[4];  // rows to take at once, by registers of a panel row, or by classes (1 to 3)
  int rows_for(int lanes) const { return rows[lanes / unit]; }
  int middle() const { return 2 * unit; }  // the panel with the fewest loads a product
};

struct PanelKernels {
  const char* set;
  PanelShape shape;
  void (*panel_product)(const PanelProduct& product);
  void (*dot_product)(const DotProduct& product);
  // out[i] = sum over lanes of sums[i][lane]
  void (*add_lanes)(const float* sums, int64_t count, float* out);
};
const PanelKernels& panel_kernels();

}  // namespace deeplab_fast
