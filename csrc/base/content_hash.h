// A number that changes when memory does.
#pragma once

#include <cstdint>

#include "base/parallel.h"

namespace deeplab_fast {

// 64 bits that depend on every byte; no protection against an adversary. About as fast as memory is read.
uint64_t checksum(const void* data, int64_t bytes, Parallel& parallel);

}  // namespace deeplab_fast
