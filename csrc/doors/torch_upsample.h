// Views of tensors for upsampling, and what its torch doors (CPU and CUDA) check before a pointer is used.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "upsample/upsample.h"

namespace deeplab_fast {

inline void check_upsample(bool condition, const char* name, const char* message) {
  if (!condition) throw std::invalid_argument(std::string(name) + ": " + message);
}

inline ScoreType score_type_of(const torch::stable::Tensor& tensor, const char* name) {
  using torch::headeronly::ScalarType;
  const ScalarType type = tensor.scalar_type();
  if (type == ScalarType::Half) return ScoreType::kHalf;
  if (type == ScalarType::BFloat16) return ScoreType::kBfloat16;
  check_upsample(type == ScalarType::Float, name, "dtype should be float32, float16 or bfloat16 for the kernel");
  return ScoreType::kFloat;
}

template <class Pointer>
ScoresOf<Pointer> scores_from(const torch::stable::Tensor& tensor, Pointer data, const char* name) {
  check_upsample(tensor.dim() == 4, name, "should be (N, K, H, W)");
  for (int64_t d = 1; d < 4; ++d)
    check_upsample(tensor.size(d) >= 1 && tensor.size(d) < INT32_MAX / 2, name, "K, H and W should be 1 to 2^30");
  return {data,
          score_type_of(tensor, name),
          tensor.size(0),
          tensor.size(1),
          tensor.size(2),
          tensor.size(3),
          tensor.stride(0),
          tensor.stride(1),
          tensor.stride(2),
          tensor.stride(3)};
}
inline Scores scores_of(const torch::stable::Tensor& tensor, const char* name) {
  return scores_from<const void*>(tensor, tensor.const_data_ptr(), name);
}
inline MutableScores mutable_scores_of(torch::stable::Tensor& tensor, const char* name) {
  return scores_from<void*>(tensor, tensor.mutable_data_ptr(), name);
}

template <class Pointer>
void check_same_maps(const ScoresOf<Pointer>& scores, const char* name, const Scores& like) {
  check_upsample(scores.batch == like.batch && scores.classes == like.classes, name,
                 "batch and classes should be those of the other maps");
}

inline void check_argmax_out(const Scores& logits, const torch::stable::Tensor& out) {
  check_upsample(out.scalar_type() == torch::headeronly::ScalarType::Long && out.dim() == 3 &&
                     out.size(0) == logits.batch && out.is_contiguous(),
                 "out", "should be (N, H, W), int64 and contiguous");
  for (int64_t d = 1; d < 3; ++d)
    check_upsample(out.size(d) >= 1 && out.size(d) < INT32_MAX / 2, "out", "H and W should be 1 to 2^30");
}

inline void check_backward(const Scores& grad, const Scores& out, const MutableScores& to_logits) {
  check_same_maps(out, "out", grad);
  check_same_maps(to_logits, "to_logits", grad);
  check_upsample(out.height == grad.height && out.width == grad.width, "out", "size should be that of grad");
}

}  // namespace deeplab_fast
