"""Atrous convolution, the ASPP sum and upsampling in plain PyTorch, to be read beside the paper.

Chen, Papandreou, Kokkinos, Murphy and Yuille, "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets,
Atrous Convolution, and Fully Connected CRFs", TPAMI 2018 (here: Chen).

Letters: N batch, C channels, K classes or output channels, H and W height and width, b a branch of the ASPP.
All sums are in float32 for 16-bit inputs, and rounded once, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate
from torch.nn.grad import conv2d_input, conv2d_weight

from deeplab_fast._arguments import sum_dtype
from deeplab_fast._conv_arguments import (
    Pair,
    Size,
    check_aspp_arguments,
    check_atrous_arguments,
    check_upsample_arguments,
)


def aspp_sum(x: Tensor, weights: Sequence[Tensor], bias: Tensor | None = None, rates: Sequence[int] = (6, 12, 18, 24)):
    """Sum over branches b of conv2d(x, weights[b], dilation=rates[b]) with "same" padding, + bias (Chen, figure 7).

    x (N, C, H, W), weights[b] (K, C, kh, kw) with odd kh and kw, bias (K,) -> (N, K, H, W)
    """
    check_aspp_arguments(x, weights, bias, rates)
    dtype = sum_dtype(x)
    total = sum(
        conv2d(x.to(dtype), weight.to(dtype), padding=same_padding(weight, rate), dilation=rate)
        for weight, rate in zip(weights, rates, strict=True)
    )
    if bias is not None:
        total = total + bias.to(dtype)[:, None, None]
    return total.to(x.dtype)


def aspp_sum_backward_x(grad: Tensor, weights: Sequence[Tensor], rates: Sequence[int]) -> Tensor:
    """Gradient of `aspp_sum` to x, from that to its result: grad (N, K, H, W) -> (N, C, H, W)."""
    dtype = sum_dtype(grad)
    size = (grad.shape[0], weights[0].shape[1], *grad.shape[2:])
    return sum(
        conv2d_input(size, weight.to(dtype), grad.to(dtype), padding=same_padding(weight, rate), dilation=rate)
        for weight, rate in zip(weights, rates, strict=True)
    ).to(grad.dtype)


def aspp_sum_backward_weights(grad: Tensor, x: Tensor, weights: Sequence[Tensor], rates: Sequence[int]) -> list[Tensor]:
    """Gradient of `aspp_sum` to each weight, in its dtype; of the weights only shape and dtype are looked at."""
    dtype = sum_dtype(grad)
    return [
        conv2d_weight(x.to(dtype), weight.shape, grad.to(dtype), padding=same_padding(weight, rate), dilation=rate).to(
            weight.dtype
        )
        for weight, rate in zip(weights, rates, strict=True)
    ]


def same_padding(weight: Tensor, rate: int) -> tuple[int, int]:
    """The padding at which a dilated convolution keeps height and width."""
    return rate * (weight.shape[2] // 2), rate * (weight.shape[3] // 2)


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
    stride, padding, dilation = check_atrous_arguments(x, weight, bias, stride, padding, dilation, scale, residual)
    dtype = sum_dtype(x)
    out = conv2d(x.to(dtype), weight.to(dtype), None, stride, padding, dilation)
    if scale is not None:
        out = out * scale.to(dtype)[:, None, None]
    if bias is not None:
        out = out + bias.to(dtype)[:, None, None]
    if residual is not None:
        out = out + residual.to(dtype)
    return (out.relu() if relu else out).to(x.dtype)


def relu_backward(grad: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """grad (N, K, H, W) where out is positive, else 0; and its sum over N, H and W, in the dtype of sums."""
    masked = torch.where(out > 0, grad, 0)
    return masked, masked.sum((0, 2, 3), dtype=sum_dtype(grad))


def upsample_argmax(logits: Tensor, size: Size) -> Tensor:
    """The class of the largest score after bilinear upsampling: logits (N, K, h, w) -> (N, H, W) int64."""
    return _upsample(logits, size).argmax(dim=1)


def upsample_softmax(logits: Tensor, size: Size) -> Tensor:
    """Softmax over classes after bilinear upsampling: logits (N, K, h, w) -> (N, K, H, W), dtype of logits."""
    return torch.softmax(_upsample(logits, size), dim=1).to(logits.dtype)


def _upsample(logits: Tensor, size: Size) -> Tensor:
    height, width = check_upsample_arguments(logits, size)
    if logits.shape[0] == 0:  # interpolate refuses an empty batch
        return logits.new_empty(0, logits.shape[1], height, width, dtype=sum_dtype(logits))
    return interpolate(logits.to(sum_dtype(logits)), (height, width), mode="bilinear", align_corners=False)
