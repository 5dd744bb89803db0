// The tables of kernels without their kernels: every set has an empty table of every kind, a made-up set included, and
// the program prints what set each of the chosen tables is of. tests/build/test_instruction_sets.py compiles and runs
// it.
#define DEEPLAB_FAST_FURTHER_SETS(SET, ...) SET(made_up, true, __VA_ARGS__)
#include <cstdio>
#include <stdexcept>

#include "convolution/panel.h"
#include "convolution/winograd_kernels.h"
#include "crf/mean_field_kernels.h"
#include "isa/isa.h"
#include "lattice/geometry_kernels.h"
#include "lattice/row_kernels.h"
#include "upsample/upsample_kernels.h"

namespace deeplab_fast {

#define DEFINE_TABLE(name, supported, Table, table) \
  namespace name {                                  \
  extern const Table table;                         \
  const Table table{.set = #name};                  \
  }
#define TABLES(Table, table) DEEPLAB_FAST_INSTRUCTION_SETS(DEFINE_TABLE, Table, table)
TABLES(GeometryKernels, geometry_kernels)
TABLES(MeanFieldBackwardKernels, mean_field_backward_kernels)
TABLES(MeanFieldKernels, mean_field_kernels)
TABLES(PanelKernels, panel_kernels)
TABLES(RowKernels, row_kernels)
TABLES(UpsampleKernels, upsample_kernels)
TABLES(WinogradKernels, winograd_kernels)

}  // namespace deeplab_fast

int main() {
  using namespace deeplab_fast;
  try {
    std::printf("isa %s\n", instruction_set_name());
    std::printf("geometry %s\n", geometry_kernels().set);
    std::printf("mean_field %s\n", mean_field_kernels().set);
    std::printf("mean_field_backward %s\n", mean_field_backward_kernels().set);
    std::printf("panel %s\n", panel_kernels().set);
    std::printf("row %s\n", row_kernels().set);
    std::printf("upsample %s\n", upsample_kernels().set);
    std::printf("winograd %s\n", winograd_kernels().set);
  } catch (const std::invalid_argument& error) {
    std::printf("error %s\n", error.what());
    return 1;
  }
}
