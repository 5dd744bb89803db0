"""A residual block and the whole of DeepLab-v2: as people write them in stock PyTorch, and the same made fast by us."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import deeplab_fast
from bench.case import Backend, Case, Target
from bench.cases.common import (
    CHANNELS_LAST,
    LAST,
    NCHW,
    OURS,
    THREADS,
    dtypes,
    formatted,
    relative_error,
    seeded,
    stock_layouts,
)
from bench.stock_networks import Bottleneck, calibrate, deeplabv2_resnet, shape_of_resnet

CLASSES = 21
COMPILED = "torch.compile, freezing"
Variants = dict[str, tuple[nn.Module, Tensor]]


def cases(target: Target) -> Iterator[Case]:
    if target.gpu:
        return
    for stage, channels, rate in (("layer4", 1024, 2), ("layer5", 2048, 4)):
        for name, dtype in dtypes(target).items():
            yield _block_case(target, stage, channels, rate, name, dtype)
    yield _inference_case(target)
    yield _training_case(target)


def _backend(run: Callable[[Any], Any], takes: str, **options: Any) -> Backend:
    return Backend(run, takes=takes, threads=THREADS, **options)


@torch.inference_mode()
def _infer(inputs: tuple[nn.Module, Tensor]) -> Tensor:
    net, x = inputs
    return net(x)


def _variants(net: nn.Module, x: Tensor, dtype: torch.dtype) -> Variants:
    net, x = net.eval().requires_grad_(False).to(dtype), x.to(dtype)
    fused = deeplab_fast.accelerate(copy.deepcopy(net), dtype=dtype)
    last = x.contiguous(memory_format=LAST)
    return {
        NCHW: (net, x),
        CHANNELS_LAST: (formatted(copy.deepcopy(net), LAST), last),
        OURS: (fused, last),
    }


# --- A residual block ----------------------------------------------------------------------------------------------


def _block_case(target: Target, stage: str, channels: int, rate: int, name: str, dtype: torch.dtype) -> Case:
    actual_channels, side = target.pick((channels, 65), (16, 9))
    return Case(
        op="bottleneck",
        size=f"{stage} of ResNet-101, 65x65, {name}, inference",
        inputs=functools.partial(_block_inputs, actual_channels, side, rate, dtype),
        backends={which: _backend(_infer, which) for which in (*stock_layouts(dtype), OURS)},
        error=relative_error,
        allowed=0.03,
        quick=name == "float32",
        sizes={"batch": 1, "channels": actual_channels, "side": side, "rate": rate, "dtype": name},
    )


def _block_inputs(channels: int, side: int, rate: int, dtype: torch.dtype) -> Variants:
    seeded()
    block = Bottleneck(channels, channels, 1, rate, project=False)
    return _variants(block, torch.randn(1, channels, side, side), dtype)


# --- DeepLab-v2 ----------------------------------------------------------------------------------------------------


def _inference_case(target: Target) -> Case:
    side = target.pick(513, 65)
    return Case(
        op="deeplabv2_resnet101",
        size=f"513x513, {CLASSES} classes, float32, inference",
        inputs=functools.partial(_inference_inputs, target, side),
        backends={which: _backend(_infer, which) for which in (NCHW, CHANNELS_LAST)}
        | {COMPILED: _backend(_infer, COMPILED, compiles=True), OURS: _backend(_infer, OURS)},
        error=relative_error,
        allowed=0.03,
        sizes={"batch": 1, "side": side, "classes": CLASSES, "dtype": "float32"},
    )


def _inference_inputs(target: Target, side: int) -> Variants:
    seeded()
    net, x = deeplabv2_resnet(CLASSES, *shape_of_resnet(target)).eval(), torch.randn(1, 3, side, side)
    calibrate(net, x)
    variants = _variants(net, x, torch.float32)
    return variants | {COMPILED: (Frozen(formatted(copy.deepcopy(net), LAST)), variants[OURS][1])}


class Frozen(nn.Module):
    """The network through torch.compile, compiled when first called."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.compiled: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.compiled is None:
            torch._inductor.config.freezing = True
            self.compiled = torch.compile(self.net)
        return self.compiled(x)


def _training_case(target: Target) -> Case:
    side, batch = target.pick(321, 65), 1
    return Case(
        op="deeplabv2_resnet101",
        size=f"321x321, batch {batch}, {CLASSES} classes, float32, training step",
        inputs=functools.partial(_training_inputs, target, side, batch),
        backends={which: _backend(_step, which) for which in (NCHW, CHANNELS_LAST, OURS)},
        error=None,  # each step starts from the weights that the one before left
        sizes={"batch": batch, "side": side, "classes": CLASSES, "dtype": "float32"},
    )


TrainingInputs = tuple[nn.Module, torch.optim.Optimizer, Tensor, Tensor]


def _training_inputs(target: Target, side: int, batch: int) -> dict[str, TrainingInputs]:
    seeded()
    net, x = deeplabv2_resnet(CLASSES, *shape_of_resnet(target)), torch.randn(batch, 3, side, side)
    calibrate(net, x)  # and leave the batch norms frozen, as DeepLab does
    out_side = net(x[:1]).shape[-1]
    labels = torch.randint(0, CLASSES, (batch, out_side, out_side))
    result: dict[str, TrainingInputs] = {}
    for which in (NCHW, CHANNELS_LAST, OURS):
        own = copy.deepcopy(net)
        if which != NCHW:
            own = formatted(own, LAST)
        if which == OURS:
            deeplab_fast.patch(own)
        optimizer = torch.optim.SGD(own.parameters(), lr=1e-6, momentum=0.9)
        result[which] = (own, optimizer, x if which == NCHW else x.contiguous(memory_format=LAST), labels)
    return result


def _step(inputs: TrainingInputs) -> Tensor:
    net, optimizer, x, labels = inputs
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(net(x), labels)
    loss.backward()
    optimizer.step()
    return loss.detach()
