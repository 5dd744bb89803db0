"""`aspp_sum` and its gradients in plain PyTorch; in float32 for 16-bit inputs, rounded once, at the end.

Maps are returned in the memory format of those given, gradients to weights contiguous.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from deeplab_fast._arguments import sum_dtype
from deeplab_fast._conv_arguments import Geometry, check_aspp_arguments, format_of
from deeplab_fast.reference.convolution import conv2d, conv2d_backward_weight, conv2d_backward_x


def aspp_sum(
    x: Tensor, weights: Sequence[Tensor], bias: Tensor | None = None, rates: Sequence[int] = (6, 12, 18, 24)
) -> Tensor:
    """Sum over branches b of conv2d(x, weights[b], dilation=rates[b]) with "same" padding, + bias (Chen, figure 7).

    x (N, C, H, W), weights[b] (K, C, kh, kw) with odd kh and kw, bias (K,) -> (N, K, H, W)
    """
    check_aspp_arguments(x, weights, bias, rates)
    dtype = sum_dtype(x)
    branches = (
        conv2d(x.to(dtype), weight.to(dtype), same_geometry(weight, rate))
        for weight, rate in zip(weights, rates, strict=True)
    )
    total = reduce(torch.add, branches)
    if bias is not None:
        total = total + bias.to(dtype)[:, None, None]
    return total.to(x.dtype).contiguous(memory_format=format_of(x))


def aspp_sum_backward_x(grad: Tensor, weights: Sequence[Tensor], rates: Sequence[int]) -> Tensor:
    """Gradient of `aspp_sum` to x, from that to its result: grad (N, K, H, W) -> (N, C, H, W)."""
    dtype = sum_dtype(grad)
    x = grad[:, :1].expand(-1, weights[0].shape[1], -1, -1)  # for its shape
    branches = (
        conv2d_backward_x(grad.to(dtype), x, weight.to(dtype), same_geometry(weight, rate))
        for weight, rate in zip(weights, rates, strict=True)
    )
    return reduce(torch.add, branches).to(grad.dtype).contiguous(memory_format=format_of(grad))


def aspp_sum_backward_weights(grad: Tensor, x: Tensor, weights: Sequence[Tensor], rates: Sequence[int]) -> list[Tensor]:
    """Gradient of `aspp_sum` to each weight, in its dtype; of the weights only shape and dtype are looked at."""
    dtype = sum_dtype(grad)
    grad, x = grad.to(dtype), x.to(dtype)
    return [
        conv2d_backward_weight(grad, x, weight, same_geometry(weight, rate)).to(weight.dtype).contiguous()
        for weight, rate in zip(weights, rates, strict=True)
    ]


def same_geometry(weight: Tensor, rate: int) -> Geometry:
    """That of one branch: with it, the branch keeps height and width."""
    return Geometry((1, 1), (rate * (weight.shape[2] // 2), rate * (weight.shape[3] // 2)), (rate, rate))
