// Tasks of unequal length over threads.
#pragma once

#include <algorithm>
#include <atomic>

#include "parallel.h"

namespace deeplab_fast {

// Runs body(i) for i in [0, count), each thread taking the next when it is done with one.
template <class Body>
void share_out(Parallel& parallel, int64_t count, Body&& body) {
  std::atomic<int64_t> next{0};
  parallel_for(parallel, std::min<int64_t>(parallel.threads(), count), [&](int64_t) {
    for (int64_t i = next++; i < count; i = next++) body(i);
  });
}

}  // namespace deeplab_fast
