// The dense CRF's tables of kernels, of the chosen instruction set.
#include "crf/mean_field_kernels.h"
#include "isa/isa.h"

namespace deeplab_fast {

DEEPLAB_FAST_CHOOSE_TABLE(MeanFieldKernels, mean_field_kernels)
DEEPLAB_FAST_CHOOSE_TABLE(MeanFieldBackwardKernels, mean_field_backward_kernels)

}  // namespace deeplab_fast
