"""aspp_sum: the sum of DeepLab-v2's four atrous convolutions of 2048 channels, against stock PyTorch."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d

import deeplab_fast
from bench.case import Backend, Case, Target, installed
from bench.cases.common import (
    CHANNELS_LAST,
    COMPILED,
    LAST,
    NCHW,
    OURS,
    THREADS,
    TRITON,
    by_path,
    compiled,
    dtypes,
    name_of,
    relative_error,
    seeded,
    stock_layouts,
)

RATES = (6, 12, 18, 24)


class Inputs(NamedTuple):
    x: Tensor  # (1, 2048, side, side)
    weights: list[Tensor]  # four of (classes, 2048, 3, 3)
    grad: Tensor  # (1, classes, side, side)
    packed: Tensor | None  # the weights as the Triton kernels take them


def cases(target: Target) -> Iterator[Case]:
    passes = ("forward", "forward + backward", *(["backward"] if target.gpu else []))
    for what, classes, side, (name, dtype) in itertools.product(passes, (21, 182), (41, 65), dtypes(target).items()):
        channels, columns, actual_side = target.pick((2048, classes, side), (32, min(classes, 40), 8))
        yield Case(
            op="aspp_sum",
            size=f"{what}, {side}x{side}, 2048->{classes}, {name}",
            inputs=functools.partial(_inputs, target, channels, columns, actual_side, dtype),
            backends=_gpu_backends(what, target) if target.gpu else _cpu_backends(what, dtype),
            error=relative_error,
            allowed=8 * torch.finfo(dtype).eps if target.gpu else 0.03,
            quick=side == 65 if target.gpu else classes == 21 and name == "float32",
            sizes={
                "batch": 1,
                "channels": channels,
                "classes": columns,
                "side": actual_side,
                "rates": list(RATES),
                "dtype": name_of(dtype),
            },
            device="cuda" if target.gpu else "cpu",
        )


def _inputs(target: Target, channels: int, classes: int, side: int, dtype: torch.dtype) -> dict[str, Inputs]:
    seeded()
    x, grad = torch.randn(1, channels, side, side), torch.randn(1, classes, side, side)
    weights = [torch.randn(classes, channels, 3, 3) / (3 * channels**0.5) for _ in RATES]
    x, grad, *weights = (t.to(target.device, dtype) for t in (x, grad, *weights))
    last = [t.contiguous(memory_format=LAST) for t in (x, grad, *weights)]
    packed = None
    if target.gpu and installed("triton"):
        from deeplab_fast.kernels.aspp_sum import pack

        packed = pack(last[2:], dtype)
    return {NCHW: Inputs(x, weights, grad, None), CHANNELS_LAST: Inputs(last[0], last[2:], last[1], packed)}


def _cpu_backends(what: str, dtype: torch.dtype) -> dict[str, Backend]:
    run = _forward if what == "forward" else _forward_and_backward
    stock = {
        layout: Backend(functools.partial(run, _stock), takes=layout, threads=THREADS)
        for layout in stock_layouts(dtype)
    }
    return stock | {OURS: Backend(functools.partial(run, _ours), takes=CHANNELS_LAST, threads=THREADS)}


def _stock(x: Tensor, weights: list[Tensor]) -> Tensor:
    first, *others = (conv2d(x, w, padding=rate, dilation=rate) for w, rate in zip(weights, RATES, strict=True))
    return sum(others, first)


def _ours(x: Tensor, weights: list[Tensor]) -> Tensor:
    return deeplab_fast.aspp_sum(x, weights, None, RATES)


@torch.inference_mode()
def _forward(function: Callable[..., Tensor], inputs: Inputs) -> Tensor:
    return function(inputs.x, inputs.weights)


def _forward_and_backward(function: Callable[..., Tensor], inputs: Inputs) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in (inputs.x, *inputs.weights)]
    return list(torch.autograd.grad(function(leaves[0], leaves[1:]), leaves, inputs.grad))


# --- On a GPU ------------------------------------------------------------------------------------------------------


def _gpu_backends(what: str, target: Target) -> dict[str, Backend]:
    in_graph = functools.partial(Backend, takes=CHANNELS_LAST, clock="graph")
    if what == "backward":
        return {
            CHANNELS_LAST: in_graph(_stock_backward),
            f"{OURS}, kernels": in_graph(_kernels_backward, needs=TRITON),
        }
    run = _forward if what == "forward" else _forward_and_backward
    backends = {
        CHANNELS_LAST: in_graph(functools.partial(run, _stock)),
        OURS: in_graph(functools.partial(run, _ours)),
    }
    if what == "forward + backward":
        return backends
    backends |= by_path(_kernel, CHANNELS_LAST, ("gemm", "on_chip"), "on_chip", target)
    backends[COMPILED] = in_graph(functools.partial(_forward, compiled(_stock)), compiles=True)
    return backends


def _kernel(path: str, tile: Any, inputs: Inputs) -> Tensor:
    from deeplab_fast.kernels import aspp_sum

    x, weights, _, packed = inputs
    return aspp_sum.forward(x, weights, None, RATES, packed=packed, path=path, tile=tile)


def _stock_backward(inputs: Inputs) -> list[Tensor]:
    x, weights, grad, _ = inputs
    parts = [
        torch.ops.aten.convolution_backward(
            grad, x, w, None, [1, 1], [r, r], [r, r], False, [0, 0], 1, [True, True, False]
        )
        for w, r in zip(weights, RATES, strict=True)
    ]
    return [parts[0][0] + parts[1][0] + parts[2][0] + parts[3][0], *(part[1] for part in parts)]


def _kernels_backward(inputs: Inputs) -> list[Tensor]:
    from deeplab_fast.kernels import aspp_sum

    x, weights, grad, packed = inputs
    to_x = aspp_sum.backward_x(grad, weights, RATES, packed=packed)
    return [to_x, *aspp_sum.backward_weights(grad, x, weights, RATES)]
