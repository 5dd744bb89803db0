// Upsampling's table of kernels, of the chosen instruction set.
#include "isa/isa.h"
#include "upsample/upsample_kernels.h"

namespace deeplab_fast {

DEEPLAB_FAST_CHOOSE_TABLE(UpsampleKernels, upsample_kernels)

}  // namespace deeplab_fast
