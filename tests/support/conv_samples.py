"""Sample inputs of the convolution and upsampling ops, and what "accurate" means for them; as in samples.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from samples import BFLOAT, HALF, LAYOUTS, random
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from deeplab_fast._conv_arguments import Geometry, every_window_meets, output_size, padding_of, pair
from deeplab_fast.reference.aspp_sum import same_geometry

ASPP_RATES = (6, 12, 18, 24)


def by_name(sample: AsppSample | AtrousSample | UpsampleSample) -> str:
    return sample.name


def centred(seed: int, *shape: int) -> Tensor:
    """Uniform in -1..1, float32."""
    return 2 * random(seed, *shape) - 1


@dataclass(frozen=True)
class AsppSample:
    """One input of `aspp_sum`."""

    name: str
    batch: int = 2
    channels: int = 16
    classes: int = 5
    size: tuple[int, int] = (13, 11)
    rates: tuple[int, ...] = (1, 2, 4, 6)
    kernel: tuple[int, int] = (3, 3)
    bias: bool = True
    dtype: torch.dtype = torch.float32
    weight_dtype: torch.dtype | None = None  # that of x
    layout: str = "contiguous"

    def inputs(self, device: str = "cpu") -> tuple[Tensor, list[Tensor], Tensor | None, list[int]]:
        x = LAYOUTS[self.layout](centred(1, self.batch, self.channels, *self.size).to(device, self.dtype))
        weight_dtype = self.weight_dtype or self.dtype
        weights = [
            centred(10 + b, self.classes, self.channels, *self.kernel).to(device, weight_dtype)
            for b in range(len(self.rates))
        ]
        bias = centred(2, self.classes).to(device, weight_dtype) if self.bias else None
        return x, weights, bias, list(self.rates)


ASPP_SAMPLES = [
    AsppSample("plain"),
    AsppSample("deeplab", channels=64, size=(41, 41), classes=21, rates=ASPP_RATES, batch=1),
    AsppSample("deeplab_wide", channels=40, size=(33, 65), classes=21, rates=ASPP_RATES),
    AsppSample("map_smaller_than_rates", size=(5, 3), rates=ASPP_RATES),
    AsppSample("one_pixel", size=(1, 1), rates=ASPP_RATES),
    AsppSample("one_row", size=(1, 30), rates=ASPP_RATES),
    AsppSample("one_column", size=(30, 1), rates=ASPP_RATES),
    AsppSample("huge_rate", rates=(1, 10**6)),
    *(AsppSample(f"classes_{classes}", classes=classes) for classes in (1, 2, 8, 21, 24, 33, 182)),
    *(AsppSample(f"channels_{channels}", channels=channels) for channels in (1, 3, 7, 9, 130, 300)),
    AsppSample("empty_batch", batch=0),
    AsppSample("batch_10", batch=10),
    *(AsppSample(f"branches_{len(rates)}", rates=rates) for rates in ((3,), (2, 4), (1, 3, 5), (1, 2, 3, 4, 5))),
    AsppSample("equal_rates", rates=(2, 2)),
    AsppSample("no_bias", bias=False),
    AsppSample("kernel_1x1", kernel=(1, 1)),
    AsppSample("kernel_5x3", kernel=(5, 3)),
    *(AsppSample(layout, layout=layout) for layout in LAYOUTS if layout != "contiguous"),
    *(
        AsppSample(f"{name}_{layout}", dtype=dtype, layout=layout, channels=70)
        for name, dtype in (("bfloat16", BFLOAT), ("float16", HALF))
        for layout in ("contiguous", "channels_last")
    ),
    AsppSample("bfloat16_deeplab", dtype=BFLOAT, channels=64, size=(41, 41), classes=21, rates=ASPP_RATES, batch=1),
    AsppSample("bfloat16_float32_weights", dtype=BFLOAT, weight_dtype=torch.float32),
    AsppSample("float64", dtype=torch.float64),
    AsppSample("float64_channels_last", dtype=torch.float64, layout="channels_last"),
]


@dataclass(frozen=True)
class AtrousSample:
    """One input of `atrous_conv2d`."""

    name: str
    batch: int = 2
    channels: int = 16
    out_channels: int = 24
    size: tuple[int, int] = (13, 11)
    kernel: tuple[int, int] = (3, 3)
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] | str = 2
    dilation: int | tuple[int, int] = 2
    bias: bool = True
    scale: bool = True
    residual: bool = True
    relu: bool = True
    dtype: torch.dtype = torch.float32
    weight_dtype: torch.dtype | None = None  # that of x
    layout: str = "contiguous"

    def inputs(self, device: str = "cpu") -> tuple[tuple, dict]:
        """Positional and keyword arguments."""
        layout = LAYOUTS[self.layout]
        x = layout(centred(1, self.batch, self.channels, *self.size).to(device, self.dtype))
        weight_dtype = self.weight_dtype or self.dtype
        weight = centred(3, self.out_channels, self.channels, *self.kernel).to(device, weight_dtype)
        bias = centred(4, self.out_channels).to(device, weight_dtype) if self.bias else None
        scale = centred(5, self.out_channels).to(device, weight_dtype) if self.scale else None
        residual = None
        if self.residual:
            stride, dilation = pair("stride", self.stride, 1), pair("dilation", self.dilation, 1)
            padding = padding_of(self.padding, weight, stride, dilation)
            size = output_size(x, weight, Geometry(stride, padding, dilation))
            residual = layout(centred(6, self.batch, self.out_channels, *size).to(device, self.dtype))
        arguments = (x, weight, bias, self.stride, self.padding, self.dilation)
        return arguments, {"scale": scale, "residual": residual, "relu": self.relu}


_BARE = {"bias": False, "scale": False, "residual": False, "relu": False}

ATROUS_SAMPLES = [
    AtrousSample("plain"),
    AtrousSample("bare", **_BARE),
    *(AtrousSample(f"only_{part}", **{**_BARE, part: True}) for part in _BARE),
    *(AtrousSample(f"without_{part}", **{part: False}) for part in _BARE),
    AtrousSample("kernel_1x1", kernel=(1, 1), padding=0, dilation=1),
    AtrousSample("kernel_1x1_stride_2", kernel=(1, 1), padding=0, dilation=1, stride=2),
    AtrousSample("kernel_1x1_padded", kernel=(1, 1), padding=1, dilation=1, batch=1),
    AtrousSample("kernel_3x3", padding=1, dilation=1),
    AtrousSample("kernel_3x3_stride_2", padding=1, dilation=1, stride=2),
    AtrousSample("stem", kernel=(7, 7), stride=2, padding=3, dilation=1, channels=3, size=(33, 32)),
    AtrousSample("kernel_2x4", kernel=(2, 4), padding=(1, 2), dilation=1),
    AtrousSample("uneven", stride=(1, 2), padding=(3, 1), dilation=(2, 1)),
    AtrousSample("same", padding="same"),
    AtrousSample("valid", padding="valid"),
    AtrousSample("rate_4", padding=4, dilation=4, size=(17, 17), channels=32),
    # Large enough for Winograd's way, forward and to x (deeplab_fast.ops.paths).
    AtrousSample("many_channels", channels=64, out_channels=48, size=(21, 19)),
    AtrousSample("many_channels_last", channels=48, out_channels=70, size=(20, 23), layout="channels_last"),
    AtrousSample("rate_beyond_map", padding=12, dilation=12, size=(9, 7)),
    AtrousSample("one_pixel", size=(1, 1)),
    # Outputs that see nothing but padding: all columns, some at the border, some in the middle, all rows, nearly all.
    AtrousSample("columns_miss", channels=3, out_channels=35, size=(4, 1), kernel=(1, 1), stride=2, padding=1),
    AtrousSample("columns_miss_batch_1", batch=1, size=(6, 3), kernel=(1, 3), padding=(0, 20), dilation=1),
    AtrousSample("middle_misses", size=(5, 6), kernel=(2, 2), padding=5, dilation=10),
    AtrousSample("rows_miss", channels=3, size=(1, 4), kernel=(1, 1), stride=2, padding=1),
    AtrousSample("vast_padding", batch=1, channels=2, size=(2, 3), stride=(40, 30), padding=99, dilation=30),
    *(
        AtrousSample(f"windows_miss_{name}", size=(4, 1), kernel=(1, 1), stride=2, padding=1, dtype=dtype)
        for name, dtype in (("bfloat16", BFLOAT), ("float16", HALF), ("float64", torch.float64))
    ),
    AtrousSample("taps_miss_bfloat16", size=(9, 1), kernel=(3, 3), stride=(1, 3), padding=1, dilation=1, dtype=BFLOAT),
    AtrousSample("few_channels_bfloat16", channels=33, size=(17, 41), kernel=(3, 1), padding=(3, 0), dtype=BFLOAT),
    AtrousSample("dilated_1x1", channels=3, size=(3, 40), kernel=(1, 1), padding=0, dilation=(4, 5), stride=(1, 2)),
    AtrousSample("empty_batch", batch=0),
    AtrousSample("batch_10", batch=10),
    *(AtrousSample(f"channels_{c}", channels=c) for c in (1, 3, 9, 130)),
    *(
        AtrousSample(
            f"one_channel_strided_{layout}_{name}",
            3,
            1,
            7,
            (12, 8),
            (7, 7),
            (1, 3),
            (1, 0),
            1,
            False,
            layout=layout,
            dtype=dtype,
        )
        for layout in ("contiguous", "channels_last")
        for name, dtype in (("float32", torch.float32), ("bfloat16", BFLOAT))
    ),
    *(AtrousSample(f"out_channels_{k}", out_channels=k) for k in (1, 2, 21, 130)),
    *(AtrousSample(layout, layout=layout) for layout in LAYOUTS if layout != "contiguous"),
    *(
        AtrousSample(f"{name}_{layout}", dtype=dtype, layout=layout)
        for name, dtype in (("bfloat16", BFLOAT), ("float16", HALF))
        for layout in ("contiguous", "channels_last")
    ),
    AtrousSample("bfloat16_many_channels", dtype=BFLOAT, channels=48, out_channels=33, size=(18, 17)),
    AtrousSample("bfloat16_bare", dtype=BFLOAT, **_BARE),
    AtrousSample("bfloat16_float32_weight", dtype=BFLOAT, weight_dtype=torch.float32, layout="channels_last"),
    AtrousSample("float64", dtype=torch.float64),
    AtrousSample("float64_channels_last", dtype=torch.float64, layout="channels_last"),
]


@dataclass(frozen=True)
class UpsampleSample:
    """One input of `upsample_argmax` and `upsample_softmax`."""

    name: str
    batch: int = 2
    classes: int = 5
    size: tuple[int, int] = (7, 6)
    to: int | tuple[int, int] = (29, 23)
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"

    def inputs(self, device: str = "cpu") -> tuple[Tensor, int | tuple[int, int]]:
        logits = 8 * centred(7, self.batch, self.classes, *self.size)
        return LAYOUTS[self.layout](logits.to(device, self.dtype)), self.to


UPSAMPLE_SAMPLES = [
    UpsampleSample("plain"),
    UpsampleSample("one_number", to=20),
    UpsampleSample("same_size", to=(7, 6)),
    UpsampleSample("smaller", to=(3, 4)),
    UpsampleSample("taller_narrower", to=(30, 2)),
    UpsampleSample("one_pixel", size=(1, 1)),
    UpsampleSample("to_one_pixel", to=1),
    UpsampleSample("by_eight", size=(9, 9), to=(65, 65), batch=1),
    UpsampleSample("photo", size=(41, 41), to=(321, 321), batch=1, classes=21),
    UpsampleSample("row", size=(1, 9), to=(1, 70)),
    UpsampleSample("column", size=(9, 1), to=(70, 1)),
    UpsampleSample("empty_batch", batch=0),
    *(UpsampleSample(f"classes_{classes}", classes=classes) for classes in (1, 2, 8, 21, 91, 182)),
    *(UpsampleSample(layout, layout=layout) for layout in LAYOUTS if layout != "contiguous"),
    *(
        UpsampleSample(f"{name}_{layout}", dtype=dtype, layout=layout)
        for name, dtype in (("bfloat16", BFLOAT), ("float16", HALF))
        for layout in ("contiguous", "channels_last")
    ),
    UpsampleSample("float64", dtype=torch.float64),
]


# --- Accuracy ------------------------------------------------------------------------------------------------------
#
# A result may be off the exact one (float64) by at most twice what stock PyTorch is off in the same dtype, and a few
# roundings of the size that a sum has typically: the root of the sum of the squares of its terms. The ops are linear
# in each of their inputs, so that is the root of what they make of the inputs' squares.
#
# How far stock is off depends on the memory format that it is given: the larger error counts. But where oneDNN makes
# stock's result meaningless (deeplab_fast.ops.onednn), not more than MEANINGLESS roundings of all terms.

ROUNDINGS = 4
MEANINGLESS = 100


def assert_accurate(
    result: Tensor,
    stock: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    what: str = "",
    squares: Tensor | None = None,
) -> None:
    """`result` is `stock(*inputs)` to the accuracy of its dtype.

    squares: sums of the squares of the terms, where they are not what stock makes of the inputs' squares.
    """
    exact = stock(*_each(Tensor.double, inputs))
    assert result.shape == exact.shape, what
    if result.numel() == 0:
        return
    own_error = stock_error(stock, inputs, exact)
    error = (result.double() - exact).abs().max().item()
    squares = stock(*_each(lambda t: t.double() ** 2, inputs)) if squares is None else squares
    size = max(exact.abs().max().item(), squares.abs().max().item() ** 0.5)
    allowed = 2 * own_error + ROUNDINGS * torch.finfo(result.dtype).eps * size
    assert error <= allowed, f"{what}: error {error:.2e}; stock PyTorch's {own_error:.2e}, allowed {allowed:.2e}"


def stock_error(stock: Callable[..., Tensor], inputs: Sequence[Tensor | None], exact: Tensor) -> float:
    """How far stock PyTorch is off in the lowest dtype among the inputs, in the memory format that is worst for it."""
    lowest = max((t.dtype for t in inputs if t is not None), key=lambda dtype: torch.finfo(dtype).eps)
    terms = stock(*_each(lambda t: t.double().abs(), inputs)).abs().max().item()
    errors = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        own = stock(*_each(lambda t: in_format(t.to(lowest), memory_format), inputs))  # noqa: B023 - called at once
        errors.append((own.double() - exact).abs().max().item())
    return worst_error(errors, lowest, terms)


def worst_error(errors: Sequence[float], dtype: torch.dtype, terms: float) -> float:
    """The largest, but for those that are larger than any rounding of terms which add up to `terms` can be, or NaN."""
    meaningless = MEANINGLESS * torch.finfo(dtype).eps * terms
    return max(error if error <= meaningless else meaningless for error in errors)


def _each(change: Callable[[Tensor], Tensor], inputs: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if t is None else change(t) for t in inputs]


def in_format(tensor: Tensor, memory_format: torch.memory_format) -> Tensor:
    last = memory_format == torch.channels_last and tensor.ndim == 4 and tensor.shape[1] > 1
    return tensor.clone(memory_format=memory_format if last else torch.contiguous_format)


def stock_conv2d(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """torch's conv2d, but for calls at which oneDNN crashes, or its gradients do (deeplab_fast.ops.onednn)."""
    stride, padding, dilation = geometry
    dilation = [rate if length > 1 else 1 for rate, length in zip(dilation, weight.shape[2:], strict=True)]
    if not every_window_meets(x, weight, Geometry(stride, padding, dilation)):
        x, padding = pad(x, (padding[1], padding[1], padding[0], padding[0])), (0, 0)
    if weight.shape[2] == weight.shape[3] == 1 and max(padding) == 0:
        x, stride = x[:, :, :: stride[0], :: stride[1]], (1, 1)
    return conv2d(x, weight, None, stride, padding, dilation)


def stock_conv2d_gradients(x: Tensor, weight: Tensor, grad: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Of `stock_conv2d`, to x and to the weight. Neither depends on the content of what it is the gradient to."""
    x, weight = (t.detach().requires_grad_() for t in (x, weight))
    return torch.autograd.grad(stock_conv2d(x, weight, geometry), (x, weight), grad)


def stock_aspp(rates: Sequence[int]) -> Callable[..., Tensor]:
    """`aspp_sum` as people write it, of (x, bias, *weights)."""

    def run(x: Tensor, bias: Tensor | None, *weights: Tensor) -> Tensor:
        if x.shape[0] == 0:
            return x.new_empty(0, weights[0].shape[0], *x.shape[2:])
        branches = zip(weights, rates, strict=True)
        total = sum(stock_conv2d(x, weight, same_geometry(weight, rate)) for weight, rate in branches)
        return total if bias is None else total + bias[:, None, None]

    return run


def stock_atrous(stride, padding, dilation, relu: bool) -> Callable[..., Tensor]:
    """`atrous_conv2d` as people write it, of (x, weight, bias, scale, residual)."""
    stride, dilation = pair("stride", stride, 1), pair("dilation", dilation, 1)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, residual: Tensor | None) -> Tensor:
        geometry = Geometry(stride, padding_of(padding, weight, stride, dilation), dilation)
        out = stock_conv2d(x, weight, geometry)
        out = out if scale is None else out * scale[:, None, None]
        out = out if bias is None else out + bias[:, None, None]
        out = out if residual is None else out + residual
        return out.relu() if relu else out

    return run


def stock_upsample(size: int | tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """The scores at full size, as people write it."""

    def run(logits: Tensor) -> Tensor:
        height, width = (size, size) if isinstance(size, int) else size
        if logits.shape[0] == 0:
            return logits.new_empty(0, logits.shape[1], height, width)
        return interpolate(logits, (height, width), mode="bilinear", align_corners=False)

    return run
