// Uninitialised, 64-byte aligned memory for plain data.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace deeplab_fast {

// Memory that can hold `capacity` bytes.
struct Block {
  void* memory = nullptr;
  size_t capacity = 0;
};

// At least so many bytes; throws std::bad_alloc. Large blocks lie on huge pages, because rows of vertices are visited
// in an order the TLB does not like, and a few freed ones are kept for the next call, because the system clears a page
// before it gives it out, which takes as long as several passes over it.
Block allocate_block(size_t bytes);
void free_block(Block block);

// Of freed blocks at most so many bytes are kept; without this call a gigabyte, or a sixteenth of the machine's memory.
void set_most_kept(size_t bytes);
size_t most_kept();
// Gives the kept ones back to the system, and what the C library keeps of small ones.
void release_blocks();

// Somebody else's memory, not yet touched: puts what fills huge pages on them.
void advise_huge_pages(void* data, size_t bytes);

template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable<T>::value, "Buffer holds plain data");

 public:
  Buffer() = default;
  explicit Buffer(int64_t size) { reset(size); }
  Buffer(Buffer&& other) noexcept : block_(std::exchange(other.block_, {})), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(block_, other.block_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer() { reset(); }

  // Frees what was held, then allocates; the content is not initialised.
  void reset(int64_t size = 0) {
    if (block_.memory != nullptr) free_block(std::exchange(block_, {}));
    size_ = 0;
    if (size == 0) return;
    block_ = allocate_block(static_cast<size_t>(size) * sizeof(T));
    size_ = size;
  }

  T* data() { return static_cast<T*>(block_.memory); }
  const T* data() const { return static_cast<const T*>(block_.memory); }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data()[i]; }
  const T& operator[](int64_t i) const { return data()[i]; }
  T* begin() { return data(); }
  T* end() { return data() + size_; }
  const T* begin() const { return data(); }
  const T* end() const { return data() + size_; }

 private:
  Block block_;
  int64_t size_ = 0;
};

}  // namespace deeplab_fast
