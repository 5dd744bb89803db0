// Spatial kernels that are kept from one CRF to the next: they depend on the image's size and their deviations only.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace deeplab_fast {

struct Kernel;
struct VisitOrder;

// Kernels of the last few image sizes and deviations. Locks are only tried: whoever finds it busy does without.
class KeptKernels {
 public:
  static KeptKernels& of_process();

  // Of an image of that order, `width` pixels wide, by a stencil or a lattice; null: not kept.
  std::shared_ptr<const Kernel> find(const VisitOrder& order, int64_t width, float sx, float sy, bool stencil);
  void keep(int64_t width, float sx, float sy, std::shared_ptr<const Kernel> kernel);
  void release();

 private:
  struct Entry {
    int64_t width;
    float sx, sy;
    std::shared_ptr<const Kernel> kernel;
  };
  std::mutex mutex_;
  std::vector<Entry> entries_;  // the latest first
};

// Forgets the kept kernels, and gives all kept memory back to the system.
void release_memory();

}  // namespace deeplab_fast
