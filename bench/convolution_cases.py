"""The cases of aspp_sum, atrous_conv2d, upsample_* and of whole networks, against stock PyTorch."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate

import deeplab_fast

from .cases import Case
from .networks import Bottleneck, deeplabv2_resnet101

THREADS = 2
RATES = (6, 12, 18, 24)
LAST = torch.channels_last
NCHW, CHANNELS_LAST, OURS = "stock, NCHW", "stock, channels_last", "deeplab_fast"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def convolution_cases() -> Iterator[Case]:
    yield from aspp_cases()
    yield from atrous_cases()
    yield from upsample_cases()
    yield from block_cases()
    yield from network_cases()


def _case(op: str, size: str, inputs: Callable, backends: dict[str, Callable], peer: str, **options: Any) -> Case:
    details = {"threads": THREADS} | options.pop("details", {})
    imports = ("torch", "deeplab_fast.ops", "deeplab_fast.patching", "bench.convolution_cases")
    return Case(
        op=op, size=size, inputs=inputs, backends=backends, peer=peer, details=details, imports=imports, **options
    )


def _close(result: Any, expected: Any) -> bool:
    """To be sure that work was done; the tests are stricter."""
    pairs = zip(result, expected, strict=True) if isinstance(result, list | tuple) else [(result, expected)]
    return all((a.float() - b.float()).abs().max() <= 0.03 * b.float().abs().max() + 1e-6 for a, b in pairs)


def _seeded() -> None:
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)


# --- aspp_sum ------------------------------------------------------------------------------------------------------


def aspp_cases() -> Iterator[Case]:
    for backward in (False, True):
        for classes in (21, 182):
            for side in (41, 65):
                for name, dtype in DTYPES.items():
                    yield _aspp_case(backward, classes, side, name, dtype)


def _aspp_case(backward: bool, classes: int, side: int, name: str, dtype: torch.dtype) -> Case:
    run = _aspp_both if backward else _aspp_forward
    backends = {which: functools.partial(run, which) for which in (CHANNELS_LAST, NCHW, OURS)}
    if dtype != torch.float32 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        del backends[NCHW]  # half a minute a call
    return _case(
        "aspp_sum", f"{'forward + backward' if backward else 'forward'}, {side}x{side}, 2048->{classes}, {name}",
        functools.partial(_aspp_inputs, classes, side, dtype), backends, CHANNELS_LAST, agree=_close,
        quick=classes == 21 and dtype == torch.float32,
        details={"side": side, "classes": classes, "dtype": name},
    )  # fmt: skip


def _aspp_inputs(classes: int, side: int, dtype: torch.dtype) -> dict[str, tuple[Tensor, list[Tensor], Tensor]]:
    _seeded()
    x, grad = torch.randn(1, 2048, side, side, dtype=dtype), torch.randn(1, classes, side, side, dtype=dtype)
    weights = [0.01 * torch.randn(classes, 2048, 3, 3, dtype=dtype) for _ in RATES]
    last = [t.contiguous(memory_format=LAST) for t in (x, grad, *weights)]
    in_last = (last[0], last[2:], last[1])
    return {NCHW: (x, weights, grad), CHANNELS_LAST: in_last, OURS: in_last}


def _aspp(which: str, x: Tensor, weights: list[Tensor]) -> Tensor:
    if which == OURS:
        return deeplab_fast.aspp_sum(x, weights, None, RATES)
    return sum(conv2d(x, w, padding=rate, dilation=rate) for w, rate in zip(weights, RATES, strict=True))


@torch.inference_mode()
def _aspp_forward(which: str, inputs: dict) -> Tensor:
    x, weights, _ = inputs[which]
    return _aspp(which, x, weights)


def _aspp_both(which: str, inputs: dict) -> list[Tensor]:
    x, weights, grad = inputs[which]
    leaves = [t.detach().requires_grad_() for t in (x, *weights)]
    return list(torch.autograd.grad(_aspp(which, leaves[0], leaves[1:]), leaves, grad))


# --- atrous_conv2d: convolution, batch norm, maybe a residual, ReLU ------------------------------------------------


class Layer(NamedTuple):
    """A convolution of ResNet-101 DeepLab-v2, at a 513 x 513 image."""

    channels: int
    out: int
    kernel: int
    stride: int
    rate: int
    side: int
    residual: bool

    def __str__(self) -> str:
        parts = [f"{self.kernel}x{self.kernel} {self.channels}->{self.out}", f"{self.side}x{self.side}"]
        parts += [f"rate {self.rate}"] * (self.rate > 1) + [f"stride {self.stride}"] * (self.stride > 1)
        return ", ".join(parts + ["residual"] * self.residual)


LAYERS = [
    Layer(3, 64, 7, 2, 1, 513, False),
    Layer(64, 64, 3, 1, 1, 129, False),
    Layer(64, 256, 1, 1, 1, 129, True),
    Layer(256, 128, 1, 2, 1, 129, False),
    Layer(1024, 256, 1, 1, 1, 65, False),
    Layer(256, 256, 3, 1, 2, 65, False),
    Layer(256, 1024, 1, 1, 1, 65, True),
    Layer(2048, 512, 1, 1, 1, 65, False),
    Layer(512, 512, 3, 1, 4, 65, False),
    Layer(512, 2048, 1, 1, 1, 65, True),
]


class Unit(nn.Module):
    """The layer in stock modules, its batch norm frozen."""

    def __init__(self, layer: Layer, layout: str):
        super().__init__()
        padding = layer.rate * (layer.kernel // 2)
        sizes = (layer.channels, layer.out, layer.kernel, layer.stride, padding, layer.rate)
        self.conv = nn.Conv2d(*sizes, bias=False)
        self.bn = nn.BatchNorm2d(layer.out)
        self.layout = layout
        self.eval().to(memory_format=LAST if layout != NCHW else torch.contiguous_format)

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        out = self.bn(self.conv(x))
        return torch.relu_(out if residual is None else out + residual)


class FusedUnit(Unit):
    """The same as one op."""

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        scale = self.bn.weight * (self.bn.running_var + self.bn.eps).rsqrt()
        bias = self.bn.bias - self.bn.running_mean * scale
        conv = self.conv
        return deeplab_fast.atrous_conv2d(
            x, conv.weight, bias, conv.stride, conv.padding, conv.dilation, scale=scale, residual=residual, relu=True
        )


def atrous_cases() -> Iterator[Case]:
    for backward in (False, True):
        for layer in LAYERS:
            for name, dtype in DTYPES.items():
                if dtype == torch.bfloat16 and backward:
                    continue
                run = _unit_both if backward else _unit_forward
                backends = {layout: functools.partial(run, layout) for layout in (CHANNELS_LAST, NCHW, OURS)}
                if dtype != torch.float32 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
                    del backends[NCHW]
                yield _case(
                    "atrous_conv2d", f"{'forward + backward' if backward else 'forward'}, {layer}, {name}",
                    functools.partial(_unit_inputs, layer, dtype), backends, CHANNELS_LAST, agree=_close,
                    quick=layer.side == 65 and dtype == torch.float32 and not backward,
                    details={"dtype": name},
                )  # fmt: skip


def _unit_inputs(layer: Layer, dtype: torch.dtype) -> dict[str, tuple[Unit, Tensor, Tensor | None, Tensor]]:
    _seeded()
    units = {layout: Unit(layer, layout) for layout in (CHANNELS_LAST, NCHW)} | {OURS: FusedUnit(layer, OURS)}
    side = (layer.side - 1) // layer.stride + 1
    x, grad = (torch.randn(1, c, s, s, dtype=dtype) for c, s in ((layer.channels, layer.side), (layer.out, side)))
    residual = torch.randn(1, layer.out, side, side, dtype=dtype) if layer.residual else None
    result = {}
    for layout, unit in units.items():
        unit.load_state_dict(units[NCHW].state_dict())
        unit.to(dtype)
        layouts = torch.contiguous_format if layout == NCHW else LAST
        tensors = [None if t is None else t.contiguous(memory_format=layouts) for t in (x, residual, grad)]
        result[layout] = (unit, *tensors)
    return result


@torch.inference_mode()
def _unit_forward(layout: str, inputs: dict) -> Tensor:
    unit, x, residual, _ = inputs[layout]
    return unit(x, residual)


def _unit_both(layout: str, inputs: dict) -> list[Tensor]:
    unit, x, residual, grad = inputs[layout]
    x = x.detach().requires_grad_()
    return list(torch.autograd.grad(unit(x, residual), [x, *unit.parameters()], grad))


# --- upsample_argmax, upsample_softmax -----------------------------------------------------------------------------


def upsample_cases() -> Iterator[Case]:
    for classes, size in ((21, (513, 513)), (182, (480, 640))):
        inputs = functools.partial(_logits, classes, size)
        text = f"{classes} classes, to {size[0]}x{size[1]}"
        for op, stock, ours in (
            ("upsample_argmax", lambda scores: scores.argmax(1), deeplab_fast.upsample_argmax),
            ("upsample_softmax", lambda scores: scores.softmax(1), deeplab_fast.upsample_softmax),
        ):
            backends = {
                "stock": functools.partial(_stock_upsample, stock, size),
                OURS: functools.partial(_our_upsample, ours, size),
            }
            yield _case(op, text, inputs, backends, "stock", quick=True)


def _logits(classes: int, size: tuple[int, int]) -> Tensor:
    _seeded()
    return 8 * torch.randn(1, classes, size[0] // 8 + 1, size[1] // 8 + 1)


@torch.inference_mode()
def _stock_upsample(after: Callable, size: tuple[int, int], logits: Tensor) -> Tensor:
    return after(interpolate(logits, size, mode="bilinear", align_corners=False))


@torch.inference_mode()
def _our_upsample(op: Callable, size: tuple[int, int], logits: Tensor) -> Tensor:
    return op(logits, size)


# --- Residual blocks and whole networks ----------------------------------------------------------------------------


def block_cases() -> Iterator[Case]:
    for stage, channels, rate in (("layer4", 1024, 2), ("layer5", 2048, 4)):
        for name, dtype in DTYPES.items():
            backends = {layout: functools.partial(_infer, layout) for layout in (CHANNELS_LAST, NCHW, OURS)}
            if dtype != torch.float32 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
                del backends[NCHW]
            yield _case(
                "bottleneck", f"{stage} of ResNet-101, 65x65, {name}, inference",
                functools.partial(_block_inputs, channels, rate, dtype), backends, CHANNELS_LAST, agree=_close,
                quick=dtype == torch.float32, details={"dtype": name},
            )  # fmt: skip


def _block_inputs(channels: int, rate: int, dtype: torch.dtype) -> dict[str, tuple[nn.Module, Tensor]]:
    _seeded()
    return _variants(Bottleneck(channels, channels, 1, rate, project=False), torch.randn(1, channels, 65, 65), dtype)


def _variants(net: nn.Module, x: Tensor, dtype: torch.dtype) -> dict[str, tuple[nn.Module, Tensor]]:
    net, x = net.eval().requires_grad_(False).to(dtype), x.to(dtype)
    fused = deeplab_fast.accelerate(copy.deepcopy(net), dtype=dtype)
    last = x.contiguous(memory_format=LAST)
    return {
        NCHW: (net, x),
        CHANNELS_LAST: (copy.deepcopy(net).to(memory_format=LAST), last),
        OURS: (fused, last),
    }


@torch.inference_mode()
def _infer(which: str, inputs: dict[str, tuple[nn.Module, Tensor]]) -> Tensor:
    net, x = inputs[which]
    return net(x)


COMPILED = "torch.compile, freezing"


def network_cases() -> Iterator[Case]:
    backends = {which: functools.partial(_infer, which) for which in (NCHW, CHANNELS_LAST, COMPILED, OURS)}
    yield _case(
        "deeplabv2_resnet101", "513x513, 21 classes, float32, inference", _network_inputs, backends, NCHW,
        agree=_close, details={"dtype": "float32"},
    )  # fmt: skip
    for crop, batch in ((321, 1),):
        backends = {which: functools.partial(_step, which) for which in (NCHW, CHANNELS_LAST, OURS)}
        yield _case(
            "deeplabv2_resnet101", f"{crop}x{crop}, batch {batch}, 21 classes, float32, training step",
            functools.partial(_training_inputs, crop, batch), backends, NCHW, details={"dtype": "float32"},
        )  # fmt: skip


def _network_inputs() -> dict[str, tuple[nn.Module, Tensor]]:
    _seeded()
    net, x = deeplabv2_resnet101().eval(), torch.randn(1, 3, 513, 513)
    _calibrate(net, x)
    variants = _variants(net, x, torch.float32)
    return variants | {COMPILED: (Frozen(copy.deepcopy(net).to(memory_format=LAST)), variants[OURS][1])}


class Frozen(nn.Module):
    """The network through torch.compile, compiled when first called."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.compiled = net, None

    def forward(self, x: Tensor) -> Tensor:
        if self.compiled is None:
            torch._inductor.config.freezing = True
            self.compiled = torch.compile(self.net)
        return self.compiled(x)


def _calibrate(net: nn.Module, x: Tensor) -> None:
    """Give the batch norms the statistics of `x`, so that values stay in a range as in a trained network."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.inference_mode():
        net.train()(x)
    net.eval()


def _training_inputs(crop: int, batch: int) -> dict[str, tuple[nn.Module, torch.optim.Optimizer, Tensor, Tensor]]:
    _seeded()
    net, x = deeplabv2_resnet101(), torch.randn(batch, 3, crop, crop)
    _calibrate(net, x)  # and leave the batch norms frozen, as DeepLab does
    side = net(x[:1, :, :, :]).shape[-1]
    labels = torch.randint(0, 21, (batch, side, side))
    result = {}
    for which in (NCHW, CHANNELS_LAST, OURS):
        own = copy.deepcopy(net)
        if which != NCHW:
            own = own.to(memory_format=LAST)
        if which == OURS:
            deeplab_fast.patch(own)
        optimizer = torch.optim.SGD(own.parameters(), lr=1e-6, momentum=0.9)
        result[which] = (own, optimizer, x if which == NCHW else x.contiguous(memory_format=LAST), labels)
    return result


def _step(which: str, inputs: dict) -> Tensor:
    net, optimizer, x, labels = inputs[which]
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(net(x), labels)
    loss.backward()
    optimizer.step()
    return loss.detach()
