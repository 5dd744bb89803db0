"""Which path the convolution ops take on a CPU: one table, from the measurements in bench/NOTES.md.

| op                        | float32                    | bfloat16, where the processor | other 16 bits         |
|                           |                            | computes in it                |                       |
|---------------------------|----------------------------|-------------------------------|-----------------------|
| aspp_sum, its gradients   | taps                       | gemm                          | taps                  |
| atrous_conv2d             | 3x3: winograd;             | oneDNN, packed weights        | as float32            |
|                           | others: oneDNN             |                               |                       |
| its gradient to x         | 3x3: winograd;             | oneDNN                        | as float32            |
|                           | others: oneDNN             |                               |                       |
| its gradient to weight    | padding "same": taps;      | oneDNN; 1x1: gemm             | as float32            |
|                           | others: oneDNN; 1x1: gemm  |                               |                       |

What oneDNN does not compute rightly (deeplab_fast.ops.onednn) is the reference's; of the gradient to weight, gemm's.
"taps" multiplies each tap with the pixels that it reaches, and skips those outside the map (csrc/convolution/taps.h).
"gemm" multiplies first, in one product of all taps, and shifts after; for atrous_conv2d, one product a tap. "winograd"
needs 2.25 times fewer multiplications (csrc/convolution/winograd.h); an infinite or NaN input shows in all outputs of
its 2x2 tile. Float64, and everything where nothing is compiled, is the reference's.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor

from deeplab_fast._conv_arguments import Geometry
from deeplab_fast.ops import define, onednn

REFERENCE, TAPS, WINOGRAD = "reference", "taps", "winograd"
GEMM, GEMM_FLOAT = "gemm", "gemm in float32"
ONEDNN, ONEDNN_FLOAT = "oneDNN", "oneDNN in float32"


def computes_in_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16; where it has not, torch is slow in it."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    # oneDNN emulates it on any AVX-512. The names are torch's own and may go.
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check() for check in checks if check is not None)


def aspp_path(x: Tensor) -> str:
    """The path of `aspp_sum` and its gradients for maps like `x`."""
    if x.dtype == torch.float64 or not define.kernels_loaded():
        return REFERENCE
    return GEMM if x.dtype == torch.bfloat16 and computes_in_bfloat16() else TAPS


def atrous_path(x: Tensor, weight: Tensor, geometry: Geometry) -> str:
    """The path of `atrous_conv2d`, and of its gradient to x as the convolution that it is where the stride is 1."""
    if x.dtype == torch.float64 or not define.kernels_wanted() or not torch.backends.mkldnn.is_available():
        return REFERENCE
    if x.dtype == torch.bfloat16 and computes_in_bfloat16():
        return ONEDNN
    if _winograd_pays(x, weight, geometry) and define.kernels_loaded():
        return WINOGRAD
    return ONEDNN_FLOAT


def _winograd_pays(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Where it is faster, packing included (1.1 to 2.1 times), and at most as far off as the direct sum.

    Few channels or pixels do not pay for the transforms. Where the rate comes near the map's size most taps lie
    outside; the direct sum is then short, and rounds less.
    """
    stride, padding, dilation = geometry
    kernel = list(weight.shape[2:])
    if kernel != [3, 3] or list(stride) != [1, 1] or list(padding) != list(dilation):
        return False
    large = all(x.shape[2 + a] >= max(9, 4 * dilation[a]) for a in range(2))
    enough = x.shape[2] * x.shape[3] >= 17**2 or weight.shape[1] < 256
    return large and enough and weight.shape[1] >= 32 and weight.shape[0] >= 16


def atrous_backward_path(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> str:
    """The path of the gradient of `atrous_conv2d` to the weight; see `atrous_path` for that to x."""
    if grad.dtype == torch.float64 or not define.kernels_wanted() or not torch.backends.mkldnn.is_available():
        return REFERENCE
    in_bfloat16 = grad.dtype == torch.bfloat16 and computes_in_bfloat16()
    stride, padding, dilation = geometry
    kernel = weight.shape[2:]
    same = all(stride[a] == 1 and kernel[a] % 2 == 1 and padding[a] == dilation[a] * (kernel[a] // 2) for a in range(2))
    if same and max(kernel) > 1 and not in_bfloat16 and define.kernels_loaded():
        return TAPS
    if onednn.weight_gradient_is_right(x, weight, geometry, in_bfloat16):
        return ONEDNN if in_bfloat16 else ONEDNN_FLOAT
    return GEMM if in_bfloat16 else GEMM_FLOAT
