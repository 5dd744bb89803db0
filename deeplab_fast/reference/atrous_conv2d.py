"""`atrous_conv2d` and its gradients in plain PyTorch.

Sums are in float32 for 16-bit inputs, and rounded once, at the end. Maps are returned in the memory format of those
given, gradients to weights contiguous.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deeplab_fast._arguments import sum_dtype
from deeplab_fast._conv_arguments import Epilogue, Geometry, Pair, check_atrous_arguments, format_of
from deeplab_fast.reference.convolution import conv2d, conv2d_backward_weight, conv2d_backward_x


def atrous_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    *,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """relu(scale · conv2d(x, weight) + bias + residual): convolution, frozen batch norm, residual add and ReLU.

    x (N, C, H, W), weight (K, C, kh, kw), bias (K,), scale (K,), residual (N, K, H', W') -> (N, K, H', W')
    """
    geometry = check_atrous_arguments(x, weight, stride, padding, dilation, Epilogue(bias, scale, residual, relu))
    dtype = sum_dtype(x)
    out = conv2d(x.to(dtype), weight.to(dtype), geometry)
    if scale is not None:
        out = out * scale.to(dtype)[:, None, None]
    if bias is not None:
        out = out + bias.to(dtype)[:, None, None]
    if residual is not None:
        out = out + residual.to(dtype)
    return (out.relu() if relu else out).to(x.dtype).contiguous(memory_format=format_of(x))


def atrous_conv2d_forward(x: Tensor, weight: Tensor, geometry: Geometry, epilogue: Epilogue) -> Tensor:
    """`atrous_conv2d` of grouped arguments."""
    bias, scale, residual, relu = epilogue
    return atrous_conv2d(x, weight, bias, *geometry, scale=scale, residual=residual, relu=relu)


def atrous_conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor | None, geometry: Geometry, need_x: bool, need_weight: bool
) -> list[Tensor]:
    """Of scale · conv2d(x, weight): the gradient to x, where needed, and to the weight as if scale were 1."""
    dtype = sum_dtype(grad)
    grad, result = grad.to(dtype), []
    if need_x:
        scaled = weight.to(dtype) if scale is None else weight.to(dtype) * scale.to(dtype)[:, None, None, None]
        to_x = conv2d_backward_x(grad, x, scaled, geometry)
        result.append(to_x.to(x.dtype).contiguous(memory_format=format_of(x)))
    if need_weight:
        result.append(conv2d_backward_weight(grad, x.to(dtype), weight, geometry).to(weight.dtype).contiguous())
    return result


def relu_backward(grad: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """grad (N, K, H, W) where out is positive, else 0; and its sum over N, H and W, in the dtype of sums."""
    masked = torch.where(out > 0, grad, 0)
    return masked.contiguous(memory_format=format_of(out)), masked.sum((0, 2, 3), dtype=sum_dtype(grad))
