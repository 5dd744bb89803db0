"""What the convolution and upsampling ops accept and return: checks of shapes, dtypes and devices; size and format.

Nothing here looks at elements, so the checks also run on the tensors without data that `torch.compile` traces with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deeplab_fast._arguments import check_device, check_floating, shape_of
from deeplab_fast.errors import ArgumentError, ArgumentTypeError

Pair = int | Sequence[int]
Size = int | Sequence[int]


class Geometry(NamedTuple):
    """Where the windows of a convolution lie; each [vertical, horizontal]."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]


class Epilogue(NamedTuple):
    """What `atrous_conv2d` does with the result of the convolution: relu(scale · result + bias + residual)."""

    bias: Tensor | None = None
    scale: Tensor | None = None
    residual: Tensor | None = None
    relu: bool = False


def check_aspp_arguments(x: Tensor, weights: Sequence[Tensor], bias: Tensor | None, rates: Sequence[int]) -> None:
    """Raise TypeError or ValueError for what `aspp_sum` cannot take."""
    _check_maps("x", x)
    if isinstance(weights, Tensor) or not isinstance(weights, Sequence) or len(weights) == 0:
        raise ArgumentTypeError("weights", type(weights), "a sequence of tensors, one a branch")
    if isinstance(rates, int) or len(rates) != len(weights):
        raise ArgumentError("rates", rates, f"one rate for each of the {len(weights)} weights")
    for rate in rates:
        _check_integer("rates", rate, least=1)
    for b, weight in enumerate(weights):
        name = f"weights[{b}]"
        _check_weight(name, weight, x)
        if weight.shape[0] != weights[0].shape[0]:
            text = f"has {weight.shape[0]} output channels, should have {weights[0].shape[0]} as weights[0]"
            raise ArgumentError(name, weight.shape[0], str(weights[0].shape[0]), what="output channels", text=text)
        if weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
            raise ArgumentError(name, shape_of(weight), "odd in kernel height and width", what="shape")
    _check_vector("bias", bias, weights[0], x)


def check_atrous_arguments(
    x: Tensor, weight: Tensor, stride: Pair, padding: Pair | str, dilation: Pair, epilogue: Epilogue
) -> Geometry:
    """Raise TypeError or ValueError for what `atrous_conv2d` cannot take; return what its ops take."""
    _check_maps("x", x)
    _check_weight("weight", weight, x)
    _check_vector("bias", epilogue.bias, weight, x)
    _check_vector("scale", epilogue.scale, weight, x)
    strides = pair("stride", stride, least=1)
    dilations = pair("dilation", dilation, least=1)
    paddings = padding_of(padding, weight, strides, dilations)
    geometry = Geometry(strides, paddings, dilations)
    size = output_size(x, weight, geometry)
    if min(size) < 1:
        wanted = (
            f"larger: it is too small for weight {shape_of(weight)} with stride {strides}, padding {paddings} and "
            f"dilation {dilations}, the output would be {size[0]} x {size[1]}"
        )
        raise ArgumentError("x", shape_of(x), wanted, what="shape")
    residual = epilogue.residual
    if residual is not None:
        check_floating("residual", residual)
        output = (x.shape[0], weight.shape[0], *size)
        if shape_of(residual) != output:
            raise ArgumentError("residual", shape_of(residual), f"{output}, that of the output", what="shape")
        check_device("residual", residual, "x", x)
    return geometry


def check_upsample_arguments(logits: Tensor, size: Size) -> tuple[int, int]:
    """Raise TypeError or ValueError for what `upsample_*` cannot take; returns (height, width)."""
    _check_maps("logits", logits)
    height, width = pair("size", size, least=1)
    return height, width


def output_size(x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[int, int]:
    """Height and width of a convolution's output."""
    stride, padding, dilation = geometry
    height, width = (
        (x.shape[2 + a] + 2 * padding[a] - dilation[a] * (weight.shape[2 + a] - 1) - 1) // stride[a] + 1
        for a in range(2)
    )
    return height, width


def live_taps(size: int, kernel: int, stride: int, padding: int, dilation: int) -> Iterator[tuple[int, slice, slice]]:
    """Along one axis, every tap that lies inside the map for some outputs: these outputs, the inputs they look at."""
    outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    for tap in range(kernel):
        offset = tap * dilation - padding  # output y looks at input y · stride + offset
        first, end = max(-(offset // stride), 0), min((size - 1 - offset) // stride + 1, outputs)
        if first < end:
            yield tap, slice(first, end), slice(first * stride + offset, (end - 1) * stride + offset + 1, stride)


def every_tap_meets(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether every tap lies inside the map, x, for some outputs."""
    return all(sum(1 for _ in live_taps(*axis)) == axis[1] for axis in axes(x, weight, geometry))


def every_window_meets(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether every output has a tap inside the map, x."""
    return all(_windows_meet(*axis) for axis in axes(x, weight, geometry))


def _windows_meet(size: int, kernel: int, stride: int, padding: int, dilation: int) -> bool:
    if padding <= dilation * (kernel - 1) and dilation <= size:  # windows are neither beside the map nor across it
        return True
    met = 0  # so many outputs; the last tap is the first to come into the map
    for _, outputs, _ in reversed(list(live_taps(size, kernel, stride, padding, dilation))):
        if outputs.start > met:
            return False
        met = max(met, outputs.stop)
    return met == (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def axes(x: Tensor, weight: Tensor, geometry: Geometry) -> list[tuple[int, int, int, int, int]]:
    """Of each: size of the map, size of the kernel, stride, padding, dilation."""
    return list(zip(x.shape[2:], weight.shape[2:], *geometry, strict=True))


def pixel_rows(x: Tensor) -> Tensor:
    """(N, C, H, W) as (N·H·W, C); without a copy if x is channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def format_of(x: Tensor) -> torch.memory_format:
    """The format that an output gets which follows `x`: channels_last if `x` is that only, else contiguous."""
    last = torch.channels_last
    return last if x.is_contiguous(memory_format=last) and not x.is_contiguous() else torch.contiguous_format


def pair(name: str, value: Pair, least: int) -> list[int]:
    """[vertical, horizontal] of one number for both, or of two."""
    values = [value] * 2 if isinstance(value, int) or not isinstance(value, Sequence) else list(value)
    if len(values) == 1:
        values = values * 2
    if len(values) != 2:
        raise ArgumentError(name, value, "one integer or two")
    for entry in values:
        _check_integer(name, entry, least)
    return values


def padding_of(padding: Pair | str, weight: Tensor, strides: Sequence[int], dilations: Sequence[int]) -> list[int]:
    if not isinstance(padding, str):
        return pair("padding", padding, least=0)
    if padding == "valid":
        return [0, 0]
    if padding != "same":
        raise ArgumentError("padding", padding, "integers, 'same' or 'valid'")
    if max(strides) > 1:
        raise ArgumentError("padding", padding, "integers", text=f"'same' needs stride 1, stride is {strides}")
    if weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
        text = f"'same' needs odd kernel height and width, weight is {shape_of(weight)}"
        raise ArgumentError("padding", padding, "integers", text=text)
    return [dilations[a] * (weight.shape[2 + a] // 2) for a in range(2)]


def _check_integer(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not (isinstance(value, int | torch.SymInt) or hasattr(value, "__index__")):
        raise ArgumentTypeError(name, value, "an integer")
    if value < least:  # type: ignore[operator]
        raise ArgumentError(name, value, f"at least {least}")


def _check_maps(name: str, maps: Tensor) -> None:
    check_floating(name, maps)
    if maps.ndim != 4 or 0 in maps.shape[1:]:
        raise ArgumentError(name, shape_of(maps), "(N, C, H, W) with C, H and W at least 1", what="shape")


def _check_weight(name: str, weight: Tensor, x: Tensor) -> None:
    check_floating(name, weight)
    if weight.ndim != 4 or weight.shape[1] != x.shape[1] or 0 in weight.shape:
        wanted = f"(K, {x.shape[1]}, kh, kw) to go with x {shape_of(x)}"
        raise ArgumentError(name, shape_of(weight), wanted, what="shape")
    check_device(name, weight, "x", x)
    # Under autocast x comes in 16 bits and parameters stay in float32.
    if weight.dtype != x.dtype and not (weight.dtype == torch.float32 and x.dtype.itemsize == 2):
        raise ArgumentTypeError(name, weight.dtype, f"{x.dtype}, that of x", what="dtype")


def _check_vector(name: str, vector: Tensor | None, weight: Tensor, x: Tensor) -> None:
    if vector is None:
        return
    check_floating(name, vector)
    if shape_of(vector) != (weight.shape[0],):
        raise ArgumentError(name, shape_of(vector), f"({weight.shape[0]},)", what="shape")
    check_device(name, vector, "x", x)
