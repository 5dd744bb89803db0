// The convolutions' tables of kernels, of the chosen instruction set.
#include "convolution/panel.h"
#include "convolution/winograd_kernels.h"
#include "isa/isa.h"

namespace deeplab_fast {

DEEPLAB_FAST_CHOOSE_TABLE(PanelKernels, panel_kernels)
DEEPLAB_FAST_CHOOSE_TABLE(WinogradKernels, winograd_kernels)

}  // namespace deeplab_fast
