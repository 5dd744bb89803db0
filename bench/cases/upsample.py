"""upsample_argmax and upsample_softmax: bilinear upsampling with what follows it, against stock PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

import deeplab_fast
from bench.case import Backend, Case, Target
from bench.cases.common import OURS, THREADS, different_labels, relative_error, seeded


def cases(target: Target) -> Iterator[Case]:
    for classes, size in ((21, (513, 513)), (182, (480, 640))):
        yield _case(target, "upsample_argmax", _stock_argmax, _labels_error, 1e-4, classes, size)
        yield _case(target, "upsample_softmax", _stock_softmax, relative_error, 1e-4, classes, size)


def _case(
    target: Target, op: str, stock: Callable, error: Callable, allowed: float, classes: int, size: tuple[int, int]
) -> Case:
    height, width = target.pick(size, (33, 40))
    clock = "graph" if target.gpu else "wall"
    return Case(
        op=op,
        size=f"{classes} classes, to {size[0]}x{size[1]}",
        inputs=functools.partial(_logits, target, classes, (height, width)),
        backends={
            "stock": Backend(functools.partial(stock, (height, width)), clock=clock, threads=THREADS),
            OURS: Backend(functools.partial(_ours, op, (height, width)), clock=clock, threads=THREADS),
        },
        error=error,
        allowed=allowed,
        quick=True,
        sizes={"batch": 1, "classes": classes, "height": height, "width": width, "dtype": "float32"},
        device="cuda" if target.gpu else "cpu",
    )


def _logits(target: Target, classes: int, size: tuple[int, int]) -> Tensor:
    seeded()
    return (8 * torch.randn(1, classes, size[0] // 8 + 1, size[1] // 8 + 1)).to(target.device)


@torch.inference_mode()
def _stock_argmax(size: tuple[int, int], logits: Tensor) -> Tensor:
    return interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1)


@torch.inference_mode()
def _stock_softmax(size: tuple[int, int], logits: Tensor) -> Tensor:
    return interpolate(logits, size, mode="bilinear", align_corners=False).softmax(1)


@torch.inference_mode()
def _ours(op: str, size: tuple[int, int], logits: Tensor) -> Tensor:
    return getattr(deeplab_fast, op)(logits, size)


def _labels_error(result: Any, expected: Any) -> float:
    return different_labels(result.cpu(), expected.cpu())
