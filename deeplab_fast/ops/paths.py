"""Which path the convolution ops take on a CPU: one table, from the measurements in bench/NOTES.md.

| op                     | float32                  | 16 bits, processor computes in bfloat16 | other 16 bits         |
|------------------------|--------------------------|-----------------------------------------|-----------------------|
| aspp_sum               | taps (ours)              | bfloat16: gemm                          | taps                  |
| aspp_sum, backward     | taps (ours)              | bfloat16: gemm                          | taps                  |
| atrous_conv2d          | oneDNN, fused epilogue   | oneDNN, packed weights                  | oneDNN in float32     |
| ..., backward          | taps where stride is 1   | oneDNN                                  | taps or oneDNN, in    |
|                        | and padding "same", else |                                         | float32               |
|                        | oneDNN                   |                                         |                       |

"taps" multiplies each tap with the pixels that it reaches, and skips those outside the map (csrc/aspp.h). "gemm"
multiplies first, in one product of all taps, and shifts after. Float64, and everything where nothing is compiled, is
the reference's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from deeplab_fast.ops import _registry

REFERENCE, TAPS, GEMM, ONEDNN, ONEDNN_FLOAT = "reference", "taps", "gemm", "oneDNN", "oneDNN in float32"


@cache
def computes_in_bfloat16() -> bool:
    """Whether this processor has matrix units or vectors for bfloat16; where it has not, torch is slow in it."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def aspp_path(x: Tensor) -> str:
    """The path of `aspp_sum` and its gradients for maps like `x`."""
    if x.dtype == torch.float64 or not _registry.kernels_loaded():
        return REFERENCE
    return GEMM if x.dtype == torch.bfloat16 and computes_in_bfloat16() else TAPS


def atrous_path(x: Tensor) -> str:
    """The path of `atrous_conv2d`."""
    if x.dtype == torch.float64 or not _registry.kernels_wanted() or not torch.backends.mkldnn.is_available():
        return REFERENCE
    if x.dtype == torch.float32:
        return ONEDNN
    return ONEDNN if x.dtype == torch.bfloat16 and computes_in_bfloat16() else ONEDNN_FLOAT


def atrous_backward_path(
    grad: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> str:
    """The path of the gradients of `atrous_conv2d` to x and weight."""
    if grad.dtype == torch.float64 or not _registry.kernels_wanted():
        return REFERENCE
    if grad.dtype == torch.bfloat16 and computes_in_bfloat16():
        return ONEDNN
    kernel = weight.shape[2:]
    same = all(stride[a] == 1 and kernel[a] % 2 == 1 and padding[a] == dilation[a] * (kernel[a] // 2) for a in range(2))
    return TAPS if same and _registry.kernels_loaded() else ONEDNN_FLOAT
