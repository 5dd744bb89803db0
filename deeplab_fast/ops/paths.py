"""Which path the convolution ops take on a CPU: one table, from the measurements in bench/NOTES.md.

| op                        | float32                    | bfloat16, where the processor | other 16 bits         |
|                           |                            | computes in it                |                       |
|---------------------------|----------------------------|-------------------------------|-----------------------|
| aspp_sum, its gradients   | taps                       | gemm                          | taps                  |
| atrous_conv2d             | oneDNN, fused epilogue     | oneDNN, packed weights        | oneDNN in float32     |
| its gradient to x         | oneDNN                     | oneDNN                        | oneDNN in float32     |
| its gradient to weight    | 1x1: gemm; others: taps;   | oneDNN                        | as float32            |
|                           | with a stride or another   |                               |                       |
|                           | padding than "same": oneDNN|                               |                       |

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
    """The path of the gradient of `atrous_conv2d` to the weight; that to x is oneDNN's, in the same dtype."""
    if grad.dtype == torch.float64 or not _registry.kernels_wanted():
        return REFERENCE
    if grad.dtype == torch.bfloat16 and computes_in_bfloat16():
        return ONEDNN
    kernel = weight.shape[2:]
    same = all(stride[a] == 1 and kernel[a] % 2 == 1 and padding[a] == dilation[a] * (kernel[a] // 2) for a in range(2))
    if not same or not _registry.kernels_loaded():
        return ONEDNN_FLOAT
    return GEMM if kernel[0] == kernel[1] == 1 else TAPS
