#include "base/buffer.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace deeplab_fast {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kLarge = size_t{4} << 20;  // kept when freed
constexpr size_t kHuge = 8 * kHugePage;     // on huge pages; of a smaller block the rounding up would be too much

// At most a gigabyte, and a sixteenth of this machine's memory.
size_t most_kept() {
  static const size_t limit = [] {
    const auto memory = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGE_SIZE));
    return std::min(size_t{1} << 30, memory / 16);
  }();
  return limit;
}

size_t rounded(size_t bytes) {
  const size_t unit = bytes >= kHuge ? kHugePage : bytes >= kLarge ? size_t{64} << 10 : 64;
  return (bytes + unit - 1) / unit * unit;
}

// Freed large blocks. Locks are only tried: whoever finds it busy (or forked while it was) does without.
class Kept {
 public:
  // The smallest kept block that is large enough but not wastefully so. If there is none, what is kept does not fit the
  // present problem's sizes: it is freed, so that keeping blocks never adds to the peak of memory in use.
  void* take(size_t size) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    const auto found = blocks_.lower_bound(size);
    if (found == blocks_.end() || found->first > size + size / 8 + kHugePage) {
      free_all();
      return nullptr;
    }
    void* block = found->second;
    total_ -= found->first;
    blocks_.erase(found);
    return block;
  }

  void release() {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock) free_all();
  }

  bool keep(void* block, size_t size) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock || total_ + size > most_kept()) return false;
    blocks_.emplace(size, block);
    total_ += size;
    return true;
  }

 private:
  void free_all() {
    for (const auto& block : blocks_) std::free(block.second);
    blocks_.clear();
    total_ = 0;
  }

  std::mutex mutex_;
  std::multimap<size_t, void*> blocks_;
  size_t total_ = 0;
};

// Never destroyed: buffers of static objects may be freed after it would be.
Kept& kept() {
  static Kept& only = *new Kept;
  return only;
}

}  // namespace

void* allocate_block(size_t bytes) {
  const size_t size = rounded(bytes);
  const bool large = size >= kLarge;
  if (large)
    if (void* block = kept().take(size)) return block;
  void* block = std::aligned_alloc(size >= kHuge ? kHugePage : 64, size);
  if (block == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (size >= kHuge) madvise(block, size, MADV_HUGEPAGE);
#endif
  return block;
}

void advise_huge_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const auto first = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  if (data != nullptr && first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

void release_blocks() {
  kept().release();
}

void free_block(void* block, size_t bytes) {
  const size_t size = rounded(bytes);
  if (size < kLarge || !kept().keep(block, size)) std::free(block);
}

}  // namespace deeplab_fast
