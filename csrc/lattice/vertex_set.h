// The distinct vertices of one chunk of points, numbered as they are met.
#pragma once

#include <cstdint>
#include <vector>

#include "lattice/vertex_key.h"

namespace deeplab_fast {

// Open addressing; a slot holds only the number of a key, so that the table of a chunk stays in the cache.
template <int kWords>
class VertexSet {
 public:
  VertexSet() : slots_(size_t{1} << log2_slots_, -1) {}

  int32_t insert(const Key<kWords>& key) {
    size_t slot = key.hash() >> (64 - log2_slots_);
    for (int32_t found; (found = slots_[slot]) >= 0; slot = (slot + 1) & (slots_.size() - 1))
      if (keys_[found] == key) return found;
    const auto id = static_cast<int32_t>(keys_.size());
    slots_[slot] = id;
    keys_.push_back(key);
    if (keys_.size() * 2 > slots_.size()) grow();
    return id;
  }
  const std::vector<Key<kWords>>& keys() const { return keys_; }

 private:
  void grow() {
    log2_slots_ += 2;
    slots_.assign(size_t{1} << log2_slots_, -1);
    for (size_t id = 0; id < keys_.size(); ++id) {
      size_t slot = keys_[id].hash() >> (64 - log2_slots_);
      while (slots_[slot] >= 0) slot = (slot + 1) & (slots_.size() - 1);
      slots_[slot] = static_cast<int32_t>(id);
    }
  }

  int log2_slots_ = 12;
  std::vector<int32_t> slots_;
  std::vector<Key<kWords>> keys_;
};

}  // namespace deeplab_fast
