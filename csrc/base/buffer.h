// Uninitialised, 64-byte aligned memory for plain data.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace deeplab_fast {

// Memory of at least `bytes`; throws std::bad_alloc. Large blocks lie on huge pages, because rows of vertices are
// visited in an order the TLB does not like, and a few freed ones are kept for the next call, because the system clears
// a page before it gives it out, which takes as long as several passes over it.
void* allocate_block(size_t bytes);
void free_block(void* block, size_t bytes);  // the same size
void release_blocks();                       // gives the kept ones back to the system

// Somebody else's memory, not yet touched: puts what fills huge pages on them.
void advise_huge_pages(void* data, size_t bytes);

template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable<T>::value, "Buffer holds plain data");

 public:
  Buffer() = default;
  explicit Buffer(int64_t size) { reset(size); }
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer() { reset(); }

  // Frees what was held, then allocates; the content is not initialised.
  void reset(int64_t size = 0) {
    if (data_ != nullptr) free_block(std::exchange(data_, nullptr), static_cast<size_t>(size_) * sizeof(T));
    size_ = 0;
    if (size == 0) return;
    data_ = static_cast<T*>(allocate_block(static_cast<size_t>(size) * sizeof(T)));
    size_ = size;
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace deeplab_fast
