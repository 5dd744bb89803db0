"""`atrous_conv2d` and its gradients on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deeplab_fast import reference
from deeplab_fast._conv_arguments import Epilogue, Geometry, every_window_meets, pixel_rows
from deeplab_fast.ops import onednn
from deeplab_fast.ops.cpu.tensors import as_native
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


def atrous_conv2d(
    x: Tensor, weight: Tensor, geometry: Geometry, epilogue: Epilogue, *, keep_packed: bool = False
) -> Tensor:
    """The op on a CPU; with `keep_packed`, packed weights are kept for the next call."""
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
    grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor | None, geometry: Geometry, need_x: bool, need_weight: bool
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
        _internal.aspp_sum_backward_weights_cpu(as_native(grad), as_native(x), list(geometry.dilation), [sums])
        return sums
    dtype = grad.dtype if path in (GEMM, ONEDNN) else torch.float32
    grad, x, weight = grad.to(dtype), x.to(dtype), weight.to(dtype)
    if path in (GEMM, GEMM_FLOAT):
        if weight.shape[2] == weight.shape[3] == 1 and max(geometry.stride) == 1 and max(geometry.padding) == 0:
            return (pixel_rows(grad).t() @ pixel_rows(x))[:, :, None, None]
        return convolution.conv2d_backward_weight(grad, x, weight, geometry)
    _, to_weight = onednn.convolution_backward(grad, x, weight, geometry, False, True)
    assert to_weight is not None
    return to_weight


def atrous_conv2d_backward_relu(grad: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """grad where out is positive, else 0, in the format of out; and its sum over N, H and W."""
    if aspp_path(out) == REFERENCE or grad.dtype != out.dtype or out.dtype == torch.float16:
        return reference.relu_backward(grad, out)
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
