// Plain functions of the torch door, for ctypes: the memory that its core keeps between calls.
#include <cstdint>

#include "base/buffer.h"
#include "crf/kept_kernels.h"

extern "C" __attribute__((visibility("default"))) void deeplab_fast_release_memory() {
  deeplab_fast::release_memory();
}

extern "C" __attribute__((visibility("default"))) void deeplab_fast_set_most_kept(uint64_t bytes) {
  deeplab_fast::set_most_kept(bytes);
}
