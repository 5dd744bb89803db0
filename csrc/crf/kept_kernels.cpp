#include "crf/kept_kernels.h"

#include <algorithm>
#include <utility>

#include "base/buffer.h"
#include "crf/dense_crf.h"

namespace deeplab_fast {

KeptKernels& KeptKernels::of_process() {
  static KeptKernels& only = *new KeptKernels;  // never destroyed: other threads may still use it at exit
  return only;
}

std::shared_ptr<const Kernel> KeptKernels::find(const VisitOrder& order, int64_t width, float sx, float sy,
                                                bool stencil) {
  const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  if (!lock) return nullptr;
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
    const Kernel& kernel = *entry->kernel;
    if (entry->width != width || entry->sx != sx || entry->sy != sy || !kernel.order->same_as(order) ||
        (kernel.stencil != nullptr) != stencil)
      continue;
    std::rotate(entries_.begin(), entry, entry + 1);
    return entries_.front().kernel;
  }
  return nullptr;
}

void KeptKernels::keep(int64_t width, float sx, float sy, std::shared_ptr<const Kernel> kernel) {
  constexpr int64_t kMostPoints = 1 << 20, kBytesOfPoint = 60;
  constexpr size_t kMostEntries = 2;
  const int64_t points = kernel->order->points;
  const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  if (!lock || points > kMostPoints || static_cast<size_t>(points * kBytesOfPoint) > most_kept() / 4) return;
  if (entries_.size() == kMostEntries) entries_.pop_back();
  entries_.insert(entries_.begin(), {width, sx, sy, std::move(kernel)});
}

void KeptKernels::release() {
  const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  if (lock) entries_.clear();
}

void release_memory() {
  KeptKernels::of_process().release();
  release_blocks();
}

}  // namespace deeplab_fast
