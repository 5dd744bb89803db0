"""The specification: the ops of deeplab_fast in plain PyTorch, a function of the same name and arguments for each.

They take CPU and GPU tensors of any floating dtype. They are the bodies of the custom ops in `deeplab_fast.ops`,
which a kernel replaces where there is one.
"""

from deeplab_fast._arguments import NO_NORMALIZATION, NORMALIZE_AFTER, NORMALIZE_BEFORE, NORMALIZE_SYMMETRIC
from deeplab_fast.reference.aspp_sum import aspp_sum, aspp_sum_backward_weights, aspp_sum_backward_x
from deeplab_fast.reference.atrous_conv2d import (
    atrous_conv2d,
    atrous_conv2d_backward,
    atrous_conv2d_forward,
    relu_backward,
)
from deeplab_fast.reference.dense_crf import (
    PairwiseKernel,
    build_kernel,
    dense_crf,
    dense_crf_backward,
    dense_crf_history,
    mean_field_step,
)
from deeplab_fast.reference.lattice import Lattice, build_lattice
from deeplab_fast.reference.pairwise_energy import pairwise_energy, pairwise_energy_backward
from deeplab_fast.reference.permutohedral_filter import permutohedral_filter, permutohedral_filter_backward_features
from deeplab_fast.reference.upsample import upsample_argmax, upsample_softmax, upsample_softmax_backward

__all__ = [
    "NORMALIZE_AFTER",
    "NORMALIZE_BEFORE",
    "NORMALIZE_SYMMETRIC",
    "NO_NORMALIZATION",
    "Lattice",
    "PairwiseKernel",
    "aspp_sum",
    "aspp_sum_backward_weights",
    "aspp_sum_backward_x",
    "atrous_conv2d",
    "atrous_conv2d_backward",
    "atrous_conv2d_forward",
    "build_kernel",
    "build_lattice",
    "dense_crf",
    "dense_crf_backward",
    "dense_crf_history",
    "mean_field_step",
    "pairwise_energy",
    "pairwise_energy_backward",
    "permutohedral_filter",
    "permutohedral_filter_backward_features",
    "relu_backward",
    "upsample_argmax",
    "upsample_softmax",
    "upsample_softmax_backward",
]
