"""Atrous convolution, the ASPP sum and upsampling in plain PyTorch, to be read beside the paper.

Convolutions are the sums over taps that the paper defines, and not `torch.nn.functional.conv2d`: on a CPU that is
oneDNN's, which some shapes and strides crash or make wrong (deeplab_fast.ops.onednn).

Chen, Papandreou, Kokkinos, Murphy and Yuille, "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets,
Atrous Convolution, and Fully Connected CRFs", TPAMI 2018 (here: Chen).

Letters: N batch, C channels, K classes or output channels, H and W height and width, b a branch of the ASPP.
All sums are in float32 for 16-bit inputs, and rounded once, at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from deeplab_fast._arguments import sum_dtype
from deeplab_fast._conv_arguments import (
    Pair,
    Size,
    check_aspp_arguments,
    check_atrous_arguments,
    check_upsample_arguments,
    format_of,
    live_taps,
    output_size,
)

Index = tuple[slice, ...]

# --- Convolution by taps ------------------------------------------------------------------------------------------


def conv2d(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Sum over taps (i, j) of weight[:, :, i, j] · x, where output (y, x) looks at input (y, x) · stride + (i, j) ·
    dilation - padding (Chen, equation 2).

    x (N, C, H, W), weight (K, C, kh, kw), of one dtype -> (N, K, H', W')
    """
    size = output_size(x, weight, stride, padding, dilation)
    out = x.new_zeros(x.shape[0], weight.shape[0], *size)
    for (i, j), outputs, inputs in _live_taps_of_both_axes(x, weight, stride, padding, dilation):
        out[outputs] += _product("kc,nchw->nkhw", weight[:, :, i, j], x[inputs])
    return out


def conv2d_backward_x(
    grad: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Gradient of `conv2d` to x, in the dtype of grad; of x only the shape is looked at."""
    to_x = grad.new_zeros(x.shape)
    for (i, j), outputs, inputs in _live_taps_of_both_axes(x, weight, stride, padding, dilation):
        to_x[inputs] += _product("kc,nkhw->nchw", weight[:, :, i, j], grad[outputs])
    return to_x


def conv2d_backward_weight(
    grad: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Gradient of `conv2d` to the weight, in the dtype of grad; of the weight only the shape is looked at."""
    to_weight = grad.new_zeros(weight.shape)
    for (i, j), outputs, inputs in _live_taps_of_both_axes(x, weight, stride, padding, dilation):
        to_weight[:, :, i, j] = _product("nkhw,nchw->kc", grad[outputs], x[inputs])
    return to_weight


def _live_taps_of_both_axes(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Iterator[tuple[tuple[int, int], Index, Index]]:
    """Every tap (i, j) that lies inside the map for some outputs: these outputs, and the inputs that they look at."""
    rows, columns = (
        list(live_taps(x.shape[2 + a], weight.shape[2 + a], stride[a], padding[a], dilation[a])) for a in range(2)
    )
    everything = (slice(None), slice(None))
    if not (rows and columns):  # nothing of one tap, so that there are gradients: of 0
        nothing = (*everything, slice(0), slice(0))
        yield (0, 0), nothing, nothing
    for i, out_rows, in_rows in rows:
        for j, out_columns, in_columns in columns:
            yield (i, j), (*everything, out_rows, out_columns), (*everything, in_rows, in_columns)


def _product(equation: str, a: Tensor, b: Tensor) -> Tensor:
    with torch.autocast(a.device.type, enabled=False):  # it would compute in 16 bits
        return torch.einsum(equation, a, b)


# --- aspp_sum -----------------------------------------------------------------------------------------------------


def aspp_sum(x: Tensor, weights: Sequence[Tensor], bias: Tensor | None = None, rates: Sequence[int] = (6, 12, 18, 24)):
    """Sum over branches b of conv2d(x, weights[b], dilation=rates[b]) with "same" padding, + bias (Chen, figure 7).

    x (N, C, H, W), weights[b] (K, C, kh, kw) with odd kh and kw, bias (K,) -> (N, K, H, W)
    """
    check_aspp_arguments(x, weights, bias, rates)
    dtype = sum_dtype(x)
    total = sum(
        conv2d(x.to(dtype), weight.to(dtype), *same_geometry(weight, rate))
        for weight, rate in zip(weights, rates, strict=True)
    )
    if bias is not None:
        total = total + bias.to(dtype)[:, None, None]
    return total.to(x.dtype)


def aspp_sum_backward_x(grad: Tensor, weights: Sequence[Tensor], rates: Sequence[int]) -> Tensor:
    """Gradient of `aspp_sum` to x, from that to its result: grad (N, K, H, W) -> (N, C, H, W)."""
    dtype = sum_dtype(grad)
    x = grad[:, :1].expand(-1, weights[0].shape[1], -1, -1)  # for its shape
    return sum(
        conv2d_backward_x(grad.to(dtype), x, weight.to(dtype), *same_geometry(weight, rate))
        for weight, rate in zip(weights, rates, strict=True)
    ).to(grad.dtype)


def aspp_sum_backward_weights(grad: Tensor, x: Tensor, weights: Sequence[Tensor], rates: Sequence[int]) -> list[Tensor]:
    """Gradient of `aspp_sum` to each weight, in its dtype; of the weights only shape and dtype are looked at."""
    dtype = sum_dtype(grad)
    return [
        conv2d_backward_weight(grad.to(dtype), x.to(dtype), weight, *same_geometry(weight, rate)).to(weight.dtype)
        for weight, rate in zip(weights, rates, strict=True)
    ]


def same_geometry(weight: Tensor, rate: int) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Stride, padding and dilation of one branch: those at which it keeps height and width."""
    return (1, 1), (rate * (weight.shape[2] // 2), rate * (weight.shape[3] // 2)), (rate, rate)


# --- atrous_conv2d ------------------------------------------------------------------------------------------------


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
    out = conv2d(x.to(dtype), weight.to(dtype), stride, padding, dilation)
    if scale is not None:
        out = out * scale.to(dtype)[:, None, None]
    if bias is not None:
        out = out + bias.to(dtype)[:, None, None]
    if residual is not None:
        out = out + residual.to(dtype)
    return (out.relu() if relu else out).to(x.dtype)


def atrous_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    need_x: bool,
    need_weight: bool,
) -> list[Tensor]:
    """Of scale · conv2d(x, weight): the gradient to x, where needed, and to the weight as if scale were 1.

    The former in the memory format of x, the latter contiguous.
    """
    dtype = sum_dtype(grad)
    grad, geometry, result = grad.to(dtype), (stride, padding, dilation), []
    if need_x:
        scaled = weight.to(dtype) if scale is None else weight.to(dtype) * scale.to(dtype)[:, None, None, None]
        to_x = conv2d_backward_x(grad, x, scaled, *geometry)
        result.append(to_x.to(x.dtype).contiguous(memory_format=format_of(x)))
    if need_weight:
        result.append(conv2d_backward_weight(grad, x.to(dtype), weight, *geometry).to(weight.dtype).contiguous())
    return result


def relu_backward(grad: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """grad (N, K, H, W) where out is positive, else 0; and its sum over N, H and W, in the dtype of sums."""
    masked = torch.where(out > 0, grad, 0)
    return masked, masked.sum((0, 2, 3), dtype=sum_dtype(grad))


# --- Upsampling ---------------------------------------------------------------------------------------------------


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
