// The torch door of the CUDA library. No kernels yet: the op table is here so that adding one is one line.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_IMPL(deeplab_fast, CUDA, m) {
  (void)m;
}
