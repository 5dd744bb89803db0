"""`aspp_sum` and its gradients on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from deeplab_fast import reference
from deeplab_fast._conv_arguments import pixel_rows
from deeplab_fast.ops import onednn
from deeplab_fast.ops.cpu.tensors import all_native, as_native, back, native_like
from deeplab_fast.ops.define import empty_maps
from deeplab_fast.ops.packing import packed_for
from deeplab_fast.ops.paths import GEMM, REFERENCE, aspp_path

_internal = torch.ops.deeplab_fast


def aspp_sum(
    x: Tensor, weights: Sequence[Tensor], bias: Tensor | None, rates: Sequence[int], *, keep_packed: bool = False
) -> Tensor:
    """The op on a CPU; with `keep_packed`, packed weights are kept for the next call."""
    path = aspp_path(x)
    if path == REFERENCE:
        return reference.aspp_sum(x, weights, bias, rates)
    out = empty_maps(x, weights[0].shape[0], x.shape[2:])
    if out.numel() == 0:
        return out
    kernels, both_rates = _shapes(weights, rates)
    bias = onednn.vector(bias, torch.float32)
    if path == GEMM:
        packed = packed_for(("gemm", *rates), weights, lambda: _rows(weights, rates, x.dtype), keep_packed)
        products = (pixel_rows(x) @ packed).view(x.shape[0], *x.shape[2:], -1)
        _internal.aspp_shift_sum_cpu(products, bias, kernels, both_rates, out)
        return out
    packed = packed_for(
        ("taps", *rates), weights, lambda: _internal.aspp_sum_pack(all_native(weights), both_rates), keep_packed
    )
    native = native_like(out)
    _internal.aspp_sum_cpu(as_native(x), packed, bias, kernels, both_rates, native)
    return back(native, out)


def aspp_sum_backward_x(grad: Tensor, weights: Sequence[Tensor], rates: Sequence[int]) -> Tensor:
    """The gradient to x on a CPU."""
    path = aspp_path(grad)
    if path == REFERENCE:
        return reference.aspp_sum_backward_x(grad, weights, rates)
    out = empty_maps(grad, weights[0].shape[1], grad.shape[2:])
    if out.numel() == 0:
        return out
    if path == GEMM:
        product = _columns(grad, weights, rates) @ _rows(weights, rates, grad.dtype).t()
        return out.copy_(product.view(grad.shape[0], *grad.shape[2:], -1).permute(0, 3, 1, 2))
    native = native_like(out)
    _internal.aspp_sum_backward_x_cpu(as_native(grad), all_native(weights), _shapes(weights, rates)[1], native)
    return back(native, out)


def aspp_sum_backward_weights(grad: Tensor, x: Tensor, weights: Sequence[Tensor], rates: Sequence[int]) -> list[Tensor]:
    """The gradients to the weights on a CPU."""
    path = aspp_path(grad)
    if path == REFERENCE:
        return reference.aspp_sum_backward_weights(grad, x, weights, rates)
    gradients = [torch.empty(weight.shape, dtype=torch.float32) for weight in weights]
    if x.shape[0] == 0:
        return [torch.zeros_like(weight, memory_format=torch.contiguous_format) for weight in weights]
    if path == GEMM:
        rows = (_columns(grad, weights, rates).t() @ pixel_rows(x)).view(-1, *weights[0].shape[:2])
        for sources, row in zip(tap_sources(weights, rates), rows, strict=True):
            for b, i, j in sources:
                gradients[b][:, :, i, j] = row
    else:
        _, both_rates = _shapes(weights, rates)
        _internal.aspp_sum_backward_weights_cpu(as_native(grad), as_native(x), both_rates, gradients)
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


def _columns(grad: Tensor, weights: Sequence[Tensor], rates: Sequence[int]) -> Tensor:
    """(pixels, taps · K): what of grad enters each pixel's gradient."""
    taps = len(tap_sources(weights, rates))
    columns = grad.new_empty(grad.shape[0], *grad.shape[2:], taps * grad.shape[1])
    _internal.aspp_shift_gather_cpu(grad, *_shapes(weights, rates), columns)
    return columns.flatten(0, 2)


def _shapes(weights: Sequence[Tensor], rates: Sequence[int]) -> tuple[list[int], list[int]]:
    """Height and width of each kernel, and the rate along both."""
    return [size for weight in weights for size in weight.shape[2:]], [rate for rate in rates for _ in range(2)]
