"""The specification: the ops of deeplab_fast in plain PyTorch, a function of the same name and arguments for each.

They take CPU and GPU tensors of any floating dtype. They are the bodies of the custom ops in `deeplab_fast.ops`,
which a kernel replaces where there is one.
"""

from deeplab_fast._arguments import NO_NORMALIZATION, NORMALIZE_AFTER, NORMALIZE_BEFORE, NORMALIZE_SYMMETRIC
from deeplab_fast.reference.convolution import (
    aspp_sum,
    atrous_conv2d,
    upsample_argmax,
    upsample_softmax,
)
from deeplab_fast.reference.crf import (
    Lattice,
    PairwiseKernel,
    build_kernel,
    build_lattice,
    dense_crf,
    mean_field_step,
    permutohedral_filter,
)
from deeplab_fast.reference.crf_backward import (
    dense_crf_backward,
    dense_crf_history,
    permutohedral_filter_backward_features,
)
from deeplab_fast.reference.pairwise_energy import pairwise_energy, pairwise_energy_backward

__all__ = [
    "NORMALIZE_AFTER",
    "NORMALIZE_BEFORE",
    "NORMALIZE_SYMMETRIC",
    "NO_NORMALIZATION",
    "Lattice",
    "PairwiseKernel",
    "aspp_sum",
    "atrous_conv2d",
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
    "upsample_argmax",
    "upsample_softmax",
]
