"""What tests/fuzz/fuzz.py draws tensors with: of any dtype and strides."""

from __future__ import annotations

import math
from random import Random

import torch
from conv_samples import centred
from torch import Tensor

Case = dict[str, object]
SINGLE, DOUBLE, BFLOAT, HALF = torch.float32, torch.float64, torch.bfloat16, torch.float16
LENGTHS = (1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 16, 17)


def pair_of(draw: Random, choices: tuple[int, ...]) -> tuple[int, int]:
    return draw.choice(choices), draw.choice(choices)


def relaid(draw: Random, tensor: Tensor) -> Tensor:
    """The same shape with other strides: permuted, of a larger tensor, expanded, and so on; twice over at times."""
    for _ in range(draw.choice((0, 1, 1, 2))):
        tensor = draw.choice((_last, _permuted, _strided, _surrounded, _expanded, _odd))(draw, tensor)
    return tensor


def _last(draw: Random, tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor.contiguous()


def _permuted(draw: Random, tensor: Tensor) -> Tensor:
    order = draw.sample(range(tensor.ndim), tensor.ndim)
    return tensor.permute(order).contiguous().permute([order.index(axis) for axis in range(tensor.ndim)])


def _strided(draw: Random, tensor: Tensor) -> Tensor:
    steps = [draw.choice((1, 1, 2, 3)) for _ in tensor.shape]
    larger = tensor.new_full([size * step for size, step in zip(tensor.shape, steps, strict=True)], math.nan)
    return larger[tuple(slice(None, None, step) for step in steps)].copy_(tensor)


def _surrounded(draw: Random, tensor: Tensor) -> Tensor:
    before = [draw.choice((0, 0, 1, 5)) for _ in tensor.shape]
    larger = tensor.new_full([size + 2 * b for size, b in zip(tensor.shape, before, strict=True)], math.nan)
    return larger[tuple(slice(b, b + size) for size, b in zip(tensor.shape, before, strict=True))].copy_(tensor)


def _expanded(draw: Random, tensor: Tensor) -> Tensor:
    axis = draw.randrange(tensor.ndim) if tensor.ndim else 0
    return tensor.narrow(axis, 0, 1).expand_as(tensor) if tensor.ndim and tensor.numel() else tensor


def _odd(draw: Random, tensor: Tensor) -> Tensor:
    """Any stride along axes of length 1."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.as_strided(tensor.shape, [draw.choice((0, 1, 7, 640)) if n == 1 else stride for n, stride in sizes])


def random_tensor(draw: Random, dtype: torch.dtype, *shape: int) -> Tensor:
    return relaid(draw, centred(draw.randrange(2**31), *shape).to(dtype))
