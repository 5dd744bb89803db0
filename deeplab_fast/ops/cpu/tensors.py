"""Tensors as the compiled kernels take them: float32 or bfloat16."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def as_native(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def all_native(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [as_native(tensor) for tensor in tensors]


def native_like(out: Tensor) -> Tensor:
    """`out`, or what a kernel fills in its place."""
    return torch.empty_like(out, dtype=torch.float32) if out.dtype == torch.float16 else out


def back(native: Tensor, out: Tensor) -> Tensor:
    return out if native is out else out.copy_(native)
