// The torch door of upsampling: internal ops, called by deeplab_fast/ops/upsample.py, which allocates what they write.
#include "doors/torch_upsample.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include "doors/torch_common.h"

namespace {

using namespace deeplab_fast;

void upsample_argmax_cpu(const Tensor& logits, Tensor out) {
  const Maps scores = scores_of(logits, "logits");
  check_argmax_out(scores, out);
  if (scores.batch == 0) return;
  TorchThreads threads;
  upsample_argmax(scores, out.size(1), out.size(2), out.mutable_data_ptr<int64_t>(), threads);
}

void upsample_softmax_cpu(const Tensor& logits, Tensor out) {
  const Maps scores = scores_of(logits, "logits");
  const MutableMaps probabilities = mutable_scores_of(out, "out");
  check_same_maps(probabilities, "out", scores);
  if (scores.batch == 0) return;
  TorchThreads threads;
  upsample_softmax(scores, probabilities, threads);
}

void upsample_softmax_backward_cpu(const Tensor& grad, const Tensor& out, Tensor to_logits) {
  const Maps gradient = scores_of(grad, "grad"), probabilities = scores_of(out, "out");
  const MutableMaps result = mutable_scores_of(to_logits, "to_logits");
  check_backward(gradient, probabilities, result);
  if (gradient.batch == 0) return;
  TorchThreads threads;
  upsample_softmax_backward(gradient, probabilities, result, threads);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(deeplab_fast, CPU, m) {
  m.impl("upsample_argmax_into", TORCH_BOX(&upsample_argmax_cpu));
  m.impl("upsample_softmax_into", TORCH_BOX(&upsample_softmax_cpu));
  m.impl("upsample_softmax_backward_into", TORCH_BOX(&upsample_softmax_backward_cpu));
}
