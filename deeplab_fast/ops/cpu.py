"""The convolution ops' kernels on a CPU: which path (deeplab_fast.ops.paths), and the calls it is made of.

The compiled kernels are internal ops, `X_cpu`, that fill a tensor given to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from deeplab_fast import reference
from deeplab_fast._conv_arguments import Epilogue, Geometry, every_window_meets
from deeplab_fast.ops import onednn
from deeplab_fast.ops.define import empty_maps, format_of
from deeplab_fast.ops.packing import packed_for
from deeplab_fast.ops.paths import (
    GEMM,
    GEMM_FLOAT,
    ONEDNN,
    REFERENCE,
    TAPS,
    WINOGRAD,
    aspp_path,
    atrous_backward_path,
    atrous_path,
)
from deeplab_fast.reference import convolution

_internal = torch.ops.deeplab_fast


# --- aspp_sum ------------------------------------------------------------------------------------------------------


def aspp_sum(*arguments: Any) -> Tensor:
    """The op on a CPU."""
    return _aspp_sum(*arguments, keep_packed=False)


def aspp_sum_inference(*arguments: Any) -> Tensor:
    """As `aspp_sum`; packed weights are kept for the next call."""
    return _aspp_sum(*arguments, keep_packed=True)


def _aspp_sum(
    x: Tensor, weights: Sequence[Tensor], bias: Tensor | None, rates: Sequence[int], *, keep_packed: bool
) -> Tensor:
    path = aspp_path(x)
    if path == REFERENCE:
        return reference.aspp_sum(x, weights, bias, rates).contiguous(memory_format=format_of(x))
    out = empty_maps(x, weights[0].shape[0], x.shape[2:])
    if out.numel() == 0:
        return out
    kernels, both_rates = _shapes(weights, rates)
    bias = onednn.vector(bias, torch.float32)
    if path == GEMM:
        packed = packed_for(("gemm", *rates), weights, lambda: _rows(weights, rates, x.dtype), keep_packed)
        products = (_pixels(x) @ packed).view(x.shape[0], *x.shape[2:], -1)
        _internal.aspp_shift_sum_cpu(products, bias, kernels, both_rates, out)
        return out
    packed = packed_for(
        ("taps", *rates), weights, lambda: _internal.aspp_sum_pack(_native(weights), both_rates), keep_packed
    )
    native = _native_like(out)
    _internal.aspp_sum_cpu(_as_native(x), packed, bias, kernels, both_rates, native)
    return _back(native, out)


def aspp_sum_backward_x(grad: Tensor, weights: Sequence[Tensor], rates: Sequence[int]) -> Tensor:
    """The gradient to x on a CPU."""
    path = aspp_path(grad)
    if path == REFERENCE:
        return reference.aspp_sum_backward_x(grad, weights, rates).contiguous(memory_format=format_of(grad))
    out = empty_maps(grad, weights[0].shape[1], grad.shape[2:])
    if out.numel() == 0:
        return out
    if path == GEMM:
        product = _columns(grad, weights, rates) @ _rows(weights, rates, grad.dtype).t()
        return out.copy_(product.view(grad.shape[0], *grad.shape[2:], -1).permute(0, 3, 1, 2))
    native = _native_like(out)
    _internal.aspp_sum_backward_x_cpu(_as_native(grad), _native(weights), _shapes(weights, rates)[1], native)
    return _back(native, out)


def aspp_sum_backward_weights(grad: Tensor, x: Tensor, weights: Sequence[Tensor], rates: Sequence[int]) -> list[Tensor]:
    """The gradients to the weights on a CPU."""
    path = aspp_path(grad)
    if path == REFERENCE:
        return [g.contiguous() for g in reference.aspp_sum_backward_weights(grad, x, weights, rates)]
    gradients = [torch.empty(weight.shape, dtype=torch.float32) for weight in weights]
    if x.shape[0] == 0:
        return [torch.zeros_like(weight, memory_format=torch.contiguous_format) for weight in weights]
    if path == GEMM:
        rows = (_columns(grad, weights, rates).t() @ _pixels(x)).view(-1, *weights[0].shape[:2])
        for sources, row in zip(tap_sources(weights, rates), rows, strict=True):
            for b, i, j in sources:
                gradients[b][:, :, i, j] = row
    else:
        _, both_rates = _shapes(weights, rates)
        _internal.aspp_sum_backward_weights_cpu(_as_native(grad), _as_native(x), both_rates, gradients)
    return [gradient.to(weight.dtype) for gradient, weight in zip(gradients, weights, strict=True)]


def tap_sources(weights: Sequence[Tensor], rates: Sequence[int]) -> list[list[tuple[int, int, int]]]:
    """For each offset of a tap, the (branch, i, j) that have it, the centre first: csrc/convolution/tap_list.h."""
    taps: dict[tuple[int, int], list[tuple[int, int, int]]] = {(0, 0): []}
    for b, (weight, rate) in enumerate(zip(weights, rates, strict=True)):
        height, width = weight.shape[2:]
        for i in range(height):
            for j in range(width):
                taps.setdefault(((i - height // 2) * rate, (j - width // 2) * rate), []).append((b, i, j))
    return list(taps.values())


def _rows(weights: Sequence[Tensor], rates: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The weights as one matrix (C, taps · K), those of equal offset added."""
    rows = [
        reduce(torch.add, (weights[b][:, :, i, j].float() for b, i, j in sources))
        for sources in tap_sources(weights, rates)
    ]
    return torch.cat(rows).to(dtype).t().contiguous()


def _pixels(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _columns(grad: Tensor, weights: Sequence[Tensor], rates: Sequence[int]) -> Tensor:
    """(pixels, taps · K): what of grad enters each pixel's gradient."""
    taps = len(tap_sources(weights, rates))
    columns = grad.new_empty(grad.shape[0], *grad.shape[2:], taps * grad.shape[1])
    _internal.aspp_shift_gather_cpu(grad, *_shapes(weights, rates), columns)
    return columns.flatten(0, 2)


def _shapes(weights: Sequence[Tensor], rates: Sequence[int]) -> tuple[list[int], list[int]]:
    """Height and width of each kernel, and the rate along both."""
    return [size for weight in weights for size in weight.shape[2:]], [rate for rate in rates for _ in range(2)]


# --- atrous_conv2d -------------------------------------------------------------------------------------------------


def atrous_conv2d(
    x: Tensor, weight: Tensor, geometry: Geometry, epilogue: Epilogue, *, keep_packed: bool = False
) -> Tensor:
    """The op on a CPU."""
    path = REFERENCE if x.numel() == 0 else atrous_path(x, weight, geometry)
    if path == WINOGRAD:
        return _winograd(x, weight, geometry.dilation, epilogue)
    scale = epilogue.scale
    dtype = x.dtype if path == ONEDNN else torch.float32
    padded = None
    if path != REFERENCE:
        padded = onednn.pad_where_windows_miss(x.to(dtype), weight, geometry)
    if padded is None:
        return reference.atrous_conv2d_forward(x, weight, geometry, epilogue)
    source, geometry = padded
    packed = packed_for(
        ("oneDNN", *geometry.stride, *geometry.padding, *geometry.dilation),
        [weight] if scale is None else [weight, scale],
        lambda: onednn.pack(_scaled(weight, scale).to(dtype), source, geometry),
        keep_packed and dtype != torch.float32,
    )
    out = onednn.convolution(source, packed, geometry, epilogue)
    return out.to(x.dtype).contiguous(memory_format=format_of(x))


def _winograd(x: Tensor, weight: Tensor, rates: Sequence[int], epilogue: Epilogue) -> Tensor:
    # Packing takes 2 to 8 % of the time, and packed weights nearly twice the memory of weights: they are not kept.
    bias, scale = (onednn.vector(values, torch.float32) for values in (epilogue.bias, epilogue.scale))
    packed = _internal.winograd_pack_cpu(weight.float(), scale)
    out = torch.empty(x.shape[0], weight.shape[0], *x.shape[2:], dtype=torch.float32, memory_format=format_of(x))
    residual = None if epilogue.residual is None else epilogue.residual.float()
    _internal.winograd_conv2d_cpu(x.float(), packed, bias, residual, epilogue.relu, *rates, out)
    return out.to(x.dtype)


def atrous_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    geometry: Geometry,
    need_x: bool,
    need_weight: bool,
) -> list[Tensor]:
    """Of scale · conv2d(x, weight) on a CPU: the gradient to x, where needed, and to the weight as if scale were 1."""
    path = atrous_backward_path(grad, x, weight, geometry)
    if path == REFERENCE or x.numel() == 0:
        return reference.atrous_conv2d_backward(grad, x, weight, scale, geometry, need_x, need_weight)
    result = []
    if need_x:
        to_x = _atrous_backward_x(grad, x, weight, scale, geometry)
        result.append(to_x.to(x.dtype).contiguous(memory_format=format_of(x)))
    if need_weight:
        to_weight = _atrous_backward_weight(grad, x, weight, geometry, path)
        result.append(to_weight.to(weight.dtype).contiguous())
    return result


def _atrous_backward_x(grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor | None, geometry: Geometry) -> Tensor:
    # Where the stride is 1 and the padding "same", the gradient to x is a convolution with the turned kernel.
    path = atrous_path(grad, weight.transpose(0, 1), geometry)
    scaled = _scaled(weight, scale)
    if path == WINOGRAD:
        return _winograd(grad, scaled.transpose(0, 1).flip(2, 3), geometry.dilation, Epilogue())
    dtype = grad.dtype if path == ONEDNN else torch.float32
    if not every_window_meets(x, weight, geometry):
        return convolution.conv2d_backward_x(grad.float(), x, scaled.float(), geometry)
    to_x, _ = onednn.convolution_backward(grad.to(dtype), x.to(dtype), scaled.to(dtype), geometry, True, False)
    assert to_x is not None
    return to_x


def _atrous_backward_weight(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, path: str) -> Tensor:
    if path == TAPS:
        sums = torch.empty(weight.shape, dtype=torch.float32)
        _internal.aspp_sum_backward_weights_cpu(_as_native(grad), _as_native(x), list(geometry.dilation), [sums])
        return sums
    dtype = grad.dtype if path in (GEMM, ONEDNN) else torch.float32
    grad, x, weight = grad.to(dtype), x.to(dtype), weight.to(dtype)
    if path in (GEMM, GEMM_FLOAT):
        if weight.shape[2] == weight.shape[3] == 1 and max(geometry.stride) == 1 and max(geometry.padding) == 0:
            return (_pixels(grad).t() @ _pixels(x))[:, :, None, None]
        return convolution.conv2d_backward_weight(grad, x, weight, geometry)
    _, to_weight = onednn.convolution_backward(grad, x, weight, geometry, False, True)
    assert to_weight is not None
    return to_weight


def atrous_conv2d_backward_relu(grad: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """grad where out is positive, else 0, in the format of out; and its sum over N, H and W."""
    if aspp_path(out) == REFERENCE or grad.dtype != out.dtype or out.dtype == torch.float16:
        masked, sums = reference.relu_backward(grad, out)
        return masked.contiguous(memory_format=format_of(out)), sums
    masked = empty_maps(out, out.shape[1], out.shape[2:])
    sums = torch.empty(out.shape[1], dtype=torch.float32)
    _internal.relu_backward_cpu(grad, out, masked, sums)
    return masked, sums


def _scaled(weight: Tensor, scale: Tensor | None) -> Tensor:
    """The weight with each output channel's scale in it."""
    if scale is None:
        return weight
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return weight.to(dtype) * scale.to(dtype)[:, None, None, None]


# --- Tensors as the compiled kernels take them: float32 or bfloat16 ------------------------------------------------


def _as_native(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def _native(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [_as_native(tensor) for tensor in tensors]


def _native_like(out: Tensor) -> Tensor:
    """`out`, or what a kernel fills in its place."""
    return torch.empty_like(out, dtype=torch.float32) if out.dtype == torch.float16 else out


def _back(native: Tensor, out: Tensor) -> Tensor:
    return out if native is out else out.copy_(native)
