// Memory of a device, freed with its last owner. Who makes it (torch's allocator, or a test's) is behind `owner`.
#pragma once

#include <cstdint>
#include <memory>

namespace deeplab_fast {

template <class T>
struct DeviceArray {
  std::shared_ptr<void> owner;
  T* data = nullptr;
  int64_t size = 0;
};

}  // namespace deeplab_fast
