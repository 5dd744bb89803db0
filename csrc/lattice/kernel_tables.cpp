// The lattice's tables of kernels, of the chosen instruction set.
#include "isa/isa.h"
#include "lattice/geometry_kernels.h"
#include "lattice/row_kernels.h"

namespace deeplab_fast {

DEEPLAB_FAST_CHOOSE_TABLE(GeometryKernels, geometry_kernels)
DEEPLAB_FAST_CHOOSE_TABLE(RowKernels, row_kernels)

}  // namespace deeplab_fast
