// Views of tensors for upsampling, and what its torch doors (CPU and CUDA) check before a pointer is used.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "doors/torch_common.h"
#include "upsample/upsample.h"

namespace deeplab_fast {

inline void check_upsample(bool condition, const char* name, const char* message) {
  if (!condition) throw std::invalid_argument(std::string(name) + ": " + message);
}

inline Element score_element_of(const Tensor& tensor, const char* name) {
  if (tensor.scalar_type() == ScalarType::Half) return Element::kHalf;
  return element_of(tensor, name, "float32, float16 or bfloat16 for the kernel");
}

template <class Pointer>
MapsOf<Pointer> scores_from(const Tensor& tensor, Pointer data, const char* name) {
  check_upsample(tensor.dim() == 4, name, "should be (N, K, H, W)");
  for (int64_t d = 1; d < 4; ++d)
    check_upsample(tensor.size(d) >= 1 && tensor.size(d) < INT32_MAX / 2, name, "K, H and W should be 1 to 2^30");
  return maps_from(tensor, data, score_element_of(tensor, name));
}
inline Maps scores_of(const Tensor& tensor, const char* name) {
  return scores_from<const void*>(tensor, tensor.const_data_ptr(), name);
}
inline MutableMaps mutable_scores_of(Tensor& tensor, const char* name) {
  return scores_from<void*>(tensor, tensor.mutable_data_ptr(), name);
}

template <class Pointer>
void check_same_maps(const MapsOf<Pointer>& scores, const char* name, const Maps& like) {
  check_upsample(scores.batch == like.batch && scores.channels == like.channels, name,
                 "batch and classes should be those of the other maps");
}

inline void check_argmax_out(const Maps& logits, const Tensor& out) {
  check_upsample(
      out.scalar_type() == ScalarType::Long && out.dim() == 3 && out.size(0) == logits.batch && out.is_contiguous(),
      "out", "should be (N, H, W), int64 and contiguous");
  for (int64_t d = 1; d < 3; ++d)
    check_upsample(out.size(d) >= 1 && out.size(d) < INT32_MAX / 2, "out", "H and W should be 1 to 2^30");
}

inline void check_backward(const Maps& grad, const Maps& out, const MutableMaps& to_logits) {
  check_same_maps(out, "out", grad);
  check_same_maps(to_logits, "to_logits", grad);
  check_upsample(out.height == grad.height && out.width == grad.width, "out", "size should be that of grad");
}

}  // namespace deeplab_fast
