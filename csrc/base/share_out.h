// Tasks of unequal length over threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>

#include "base/parallel.h"

namespace deeplab_fast {

// Runs body(i, memory) for i in [0, count), each thread taking the next when it is done with one; `memory` is what
// make() returned, once a thread.
template <class Make, class Body>
void share_out_with(Parallel& parallel, int64_t count, Make&& make, Body&& body) {
  std::atomic<int64_t> next{0};
  parallel_for(parallel, std::min<int64_t>(parallel.threads(), count), [&](int64_t) {
    auto memory = make();
    for (int64_t i = next++; i < count; i = next++) body(i, memory);
  });
}

// The same without memory: body(i).
template <class Body>
void share_out(Parallel& parallel, int64_t count, Body&& body) {
  share_out_with(parallel, count, [] { return nullptr; }, [&](int64_t i, std::nullptr_t) { body(i); });
}

}  // namespace deeplab_fast
