#include "base/buffer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <new>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace deeplab_fast {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kLarge = size_t{4} << 20;  // kept when freed
constexpr size_t kHuge = 8 * kHugePage;     // on huge pages; of a smaller block the rounding up would be too much

std::atomic<size_t> most_bytes{[] {
  const auto memory = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGE_SIZE));
  return std::min(size_t{1} << 30, memory / 16);
}()};

size_t rounded(size_t bytes) {
  const size_t unit = bytes >= kHuge ? kHugePage : bytes >= kLarge ? size_t{64} << 10 : 64;
  return (bytes + unit - 1) / unit * unit;
}

// Large blocks are mapped: what the C library's arenas, of which every thread has one, once had, they hardly give back.
void* map_block(size_t size) {
  const size_t slack = size >= kHuge ? kHugePage : 0;
  void* mapped = mmap(nullptr, size + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  if (slack == 0) return mapped;
  auto* begin = static_cast<char*>(mapped);
  auto* block = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(begin) + slack - 1) / slack * slack);
  if (block > begin) munmap(begin, block - begin);
  if (block + size < begin + size + slack) munmap(block + size, begin + slack - block);
#if defined(MADV_HUGEPAGE)
  madvise(block, size, MADV_HUGEPAGE);
#endif
  return block;
}

// Freed large blocks. Locks are only tried: whoever finds it busy (or forked while it was) does without.
class Kept {
 public:
  // The smallest kept block that is large enough but not wastefully so. If there is none, what is kept does not fit the
  // present problem's sizes: it is freed, so that keeping blocks never adds to the peak of memory in use.
  Block take(size_t size) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return {};
    const auto found = blocks_.lower_bound(size);
    if (found == blocks_.end() || found->first > size + size / 8 + kHugePage) {
      free_all();
      return {};
    }
    const Block block{found->second, found->first};
    total_ -= block.capacity;
    blocks_.erase(found);
    return block;
  }

  void release() {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock) free_all();
  }

  bool keep(Block block) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock || total_ + block.capacity > most_kept()) return false;
    blocks_.emplace(block.capacity, block.memory);
    total_ += block.capacity;
    return true;
  }

 private:
  void free_all() {
    for (const auto& block : blocks_) munmap(block.second, block.first);
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

Block allocate_block(size_t bytes) {
  const size_t size = rounded(bytes);
  if (size >= kLarge) {
    const Block block = kept().take(size);
    return block.memory != nullptr ? block : Block{map_block(size), size};
  }
  void* memory = std::aligned_alloc(64, size);
  if (memory == nullptr) throw std::bad_alloc();
  return {memory, size};
}

void free_block(Block block) {
  if (block.capacity < kLarge)
    std::free(block.memory);
  else if (!kept().keep(block))
    munmap(block.memory, block.capacity);
}

void advise_huge_pages(void* data, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  const auto first = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  if (data != nullptr && first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

void set_most_kept(size_t bytes) {
  most_bytes = bytes;
}

size_t most_kept() {
  return most_bytes;
}

void release_blocks() {
  kept().release();
#if defined(__GLIBC__)
  malloc_trim(0);  // freed blocks lie in the arenas of all threads, also those that are too large to be kept here
#endif
}

}  // namespace deeplab_fast
