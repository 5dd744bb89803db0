// What the torch doors share: torch's threads, checks, and views of tensors. Included by the files of doors/ only.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "base/maps.h"
#include "base/parallel.h"

namespace deeplab_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// torch's own threads: the count torch.set_num_threads gave.
class TorchThreads final : public Parallel {
 public:
  void run(int64_t count, Task task, void* context) override {
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) task(context, i);
    });
  }
  int threads() const override { return static_cast<int>(torch::stable::get_num_threads()); }
};

inline void check(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

inline Element element_of(const Tensor& tensor, const char* name,
                          const char* wanted = "float32 or bfloat16 for the CPU kernel") {
  const ScalarType type = tensor.scalar_type();
  check(type == ScalarType::Float || type == ScalarType::BFloat16, std::string(name) + ": dtype should be " + wanted);
  return type == ScalarType::Float ? Element::kFloat : Element::kBfloat16;
}

// Of four dimensions.
template <class Pointer>
MapsOf<Pointer> maps_from(const Tensor& tensor, Pointer data, Element element) {
  return {data,           element,          tensor.size(0),   tensor.size(1),   tensor.size(2),
          tensor.size(3), tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}
// Maps that the convolution kernels take.
template <class Pointer>
MapsOf<Pointer> maps_from(const Tensor& tensor, Pointer data, const char* name) {
  check(tensor.dim() == 4, std::string(name) + ": should be (N, C, H, W)");
  return maps_from(tensor, data, element_of(tensor, name));
}
inline Maps maps_of(const Tensor& tensor, const char* name) {
  return maps_from<const void*>(tensor, tensor.const_data_ptr(), name);
}
inline MutableMaps mutable_maps_of(Tensor& tensor, const char* name) {
  return maps_from<void*>(tensor, tensor.mutable_data_ptr(), name);
}

// One float a channel; null where there is none.
inline const float* vector_of(const std::optional<Tensor>& vector, const char* name, int64_t size) {
  if (!vector.has_value()) return nullptr;
  check(vector->scalar_type() == ScalarType::Float && vector->dim() == 1 && vector->size(0) == size &&
            vector->is_contiguous(),
        std::string(name) + ": should be (K,), float32 and contiguous");
  return vector->const_data_ptr<float>();
}

}  // namespace deeplab_fast
