// The distinct vertices of one chunk of points, numbered as they are met.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "lattice/vertex_key.h"

namespace deeplab_fast {

// Open addressing; a slot holds only the number of a key, so that the table of a chunk stays in the cache.
// `Slot` has room for the numbers of all keys.
template <int kWords, class Slot>
class VertexSet {
 public:
  explicit VertexSet(int log2_slots)
      : log2_slots_(log2_slots), slots_(size_t{1} << log2_slots_, kEmpty), keys_(slots_.size() / 2 + 1) {}

  // The key's number, complemented if it is a new one. Whether it is cannot be predicted, so it is not a jump: an empty
  // slot is taken for one that holds the next number, and that one's key is this.
  int32_t insert(const Key<kWords>& key) {
    keys_[size_] = key;
    for (size_t slot = key.hash() >> (64 - log2_slots_);; slot = (slot + 1) & (slots_.size() - 1)) {
      const int32_t held = slots_[slot], is_new = held >> 31;
      const int32_t id = (is_new & size_) | (~is_new & held);
      if (!(keys_[id] == key)) continue;
      slots_[slot] = static_cast<Slot>(id);
      size_ -= is_new;
      if (static_cast<size_t>(size_) == keys_.size()) grow();
      return id ^ is_new;
    }
  }
  void clear() {
    size_ = 0;
    std::fill(slots_.begin(), slots_.end(), kEmpty);
  }
  int64_t size() const { return size_; }
  const Key<kWords>& operator[](int64_t id) const { return keys_[id]; }

 private:
  static constexpr Slot kEmpty = -1;

  void grow() {
    log2_slots_ += 2;
    slots_.assign(size_t{1} << log2_slots_, kEmpty);
    keys_.resize(slots_.size() / 2 + 1);
    for (int32_t id = 0; id < size_; ++id) {
      size_t slot = keys_[id].hash() >> (64 - log2_slots_);
      while (slots_[slot] >= 0) slot = (slot + 1) & (slots_.size() - 1);
      slots_[slot] = static_cast<Slot>(id);
    }
  }

  int log2_slots_;
  int32_t size_ = 0;
  std::vector<Slot> slots_;
  std::vector<Key<kWords>> keys_;  // a place for one more always
};

}  // namespace deeplab_fast
