"""The schema of every op: `torch.ops.deeplab_fast.X`. A line that is indented goes on with the one before."""

from __future__ import annotations

# What the functions of deeplab_fast call, and their gradients; defined by `deeplab_fast.ops.define`.
PUBLIC = """
permutohedral_filter(Tensor values, Tensor features, bool reverse=False) -> Tensor
permutohedral_filter_backward_features(Tensor grad, Tensor values, Tensor features, bool reverse=False) -> Tensor

dense_crf(Tensor unary, Tensor[] features, Tensor[] compat, SymInt iterations, SymInt[] normalization,
  float collapse=0.) -> Tensor
dense_crf_history(Tensor unary, Tensor[] features, Tensor[] compat, SymInt iterations, SymInt[] normalization)
  -> (Tensor, Tensor)
dense_crf_backward(Tensor grad, Tensor unary, Tensor[] features, Tensor[] compat, SymInt iterations,
  SymInt[] normalization, Tensor? history, bool need_features, bool need_compat) -> Tensor[]

pairwise_energy(Tensor values, Tensor features, Tensor? inside, float factor) -> (Tensor, Tensor)
pairwise_energy_backward(Tensor grad, Tensor gradient, SymInt[] size, float factor) -> Tensor

aspp_sum(Tensor x, Tensor[] weights, Tensor? bias, SymInt[] rates) -> Tensor
aspp_sum_inference(Tensor x, Tensor[] weights, Tensor? bias, SymInt[] rates) -> Tensor
aspp_sum_backward_x(Tensor grad, Tensor[] weights, SymInt[] rates) -> Tensor
aspp_sum_backward_weights(Tensor grad, Tensor x, Tensor[] weights, SymInt[] rates) -> Tensor[]

atrous_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? scale, Tensor? residual,
  SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool relu) -> Tensor
atrous_conv2d_inference(Tensor x, Tensor weight, Tensor? bias, Tensor? scale, Tensor? residual,
  SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool relu) -> Tensor
atrous_conv2d_backward(Tensor grad, Tensor x, Tensor weight, Tensor? scale,
  SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool need_x, bool need_weight) -> Tensor[]
atrous_conv2d_backward_relu(Tensor grad, Tensor out) -> (Tensor, Tensor)

upsample_argmax(Tensor logits, SymInt height, SymInt width) -> Tensor
upsample_softmax(Tensor logits, SymInt height, SymInt width) -> Tensor
upsample_softmax_backward(Tensor grad, Tensor out, SymInt height, SymInt width) -> Tensor
"""

# Compiled kernels, of a CPU and a GPU, or of the one in the name: csrc/doors has a host function for each.
COMPILED = """
permutohedral_filter_kernel(Tensor values, Tensor features, bool reverse=False) -> Tensor
permutohedral_filter_backward_features_kernel(Tensor grad, Tensor values, Tensor features, bool reverse=False)
  -> Tensor
permutohedral_filter_both_ways_cuda(Tensor values, Tensor features) -> Tensor
lattice_tables_cuda(Tensor features) -> Tensor[]
lattice_filter_cuda(Tensor values, Tensor[] tables, int dimensions, bool reverse) -> Tensor
dense_crf_kernel(Tensor unary, Tensor[] features, Tensor[] compat, int iterations, int[] normalization,
  float collapse=0.) -> Tensor
dense_crf_history_kernel(Tensor unary, Tensor[] features, Tensor[] compat, int iterations, int[] normalization)
  -> (Tensor, Tensor)
dense_crf_backward_kernel(Tensor grad, Tensor unary, Tensor[] features, Tensor[] compat, int iterations,
  int[] normalization, Tensor? history, bool need_features, bool need_compat) -> Tensor[]
pairwise_energy_cpu(Tensor values, Tensor features, Tensor? inside, float factor) -> (Tensor, Tensor)
pairwise_energy_backward_cpu(Tensor grad, Tensor gradient, int[] size, float factor) -> Tensor

aspp_sum_pack(Tensor[] weights, int[] rates) -> Tensor
aspp_sum_cpu(Tensor x, Tensor packed, Tensor? bias, int[] kernels, int[] rates, Tensor(a!) out) -> ()
aspp_sum_backward_x_cpu(Tensor grad, Tensor[] weights, int[] rates, Tensor(a!) to_x) -> ()
aspp_sum_backward_weights_cpu(Tensor grad, Tensor x, int[] rates, Tensor(a!)[] to_weights) -> ()
aspp_shift_sum_cpu(Tensor products, Tensor? bias, int[] kernels, int[] rates, Tensor(a!) out) -> ()
aspp_shift_gather_cpu(Tensor grad, int[] kernels, int[] rates, Tensor(a!) columns) -> ()
winograd_pack_cpu(Tensor weight, Tensor? scale) -> Tensor
winograd_conv2d_cpu(Tensor x, Tensor packed, Tensor? bias, Tensor? residual, bool relu, int rate_h, int rate_w,
  Tensor(a!) out) -> ()
relu_backward_cpu(Tensor grad, Tensor out, Tensor(a!) masked, Tensor(b!) sums) -> ()
checksum_cpu(Tensor[] tensors) -> int

upsample_argmax_into(Tensor logits, Tensor(a!) out) -> ()
upsample_softmax_into(Tensor logits, Tensor(a!) out) -> ()
upsample_softmax_backward_into(Tensor grad, Tensor out, Tensor(a!) to_logits) -> ()
"""


def parsed(text: str) -> dict[str, str]:
    """Of each op, its name and "(arguments) -> results"."""
    lines = text.replace("\n  ", " ").split("\n")
    return {line[: line.index("(")]: line[line.index("(") :] for line in lines if line}
