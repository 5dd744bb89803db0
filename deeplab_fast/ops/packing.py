"""Weights in the layout that a kernel reads, kept from call to call in inference."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deeplab_fast.ops.define import kernels_loaded

# (kind and settings, ids of the tensors) -> what is kept of them
_kept: dict[tuple, _Kept] = {}


class _Kept:
    """The packed form of some tensors, and how to see whether they are what they were."""

    def __init__(self, key: tuple, tensors: Sequence[Tensor], state: tuple, packed: Any):
        self.tensors = [weakref.ref(tensor, lambda _: _kept.pop(key, None)) for tensor in tensors]
        self.state = state
        self.packed = packed

    def is_of(self, tensors: Sequence[Tensor]) -> bool:
        return all(kept() is tensor for kept, tensor in zip(self.tensors, tensors, strict=True))


def packed_for(
    kind: tuple, tensors: Sequence[Tensor], pack: Callable[[], Any], keep: bool = True, state: tuple | None = None
) -> Any:
    """pack(), or what it returned when called for the same tensors with the same content.

    A tensor's version counter does not see what is written through `.data`, nor what is written to a tensor of
    inference mode. So on a CPU it is the content that is compared, by its checksum; that takes a fiftieth of the time
    of the convolution. On a GPU, where the host would have to wait for a checksum, `state` stands for the content.
    """
    if not keep or not all(_is_dense(tensor) for tensor in tensors):
        return pack()
    key = (*kind, *map(id, tensors))
    if state is None and not kernels_loaded():  # the checksum is a compiled kernel
        return pack()
    if state is None:
        state = (torch.ops.deeplab_fast.checksum_cpu(list(tensors)),)
    state = (*state, *((tensor.dtype, tensor.shape, tensor.stride()) for tensor in tensors))
    kept = _kept.get(key)
    if kept is None or not kept.is_of(tensors) or kept.state != state:
        kept = _Kept(key, tensors, state, pack())
        _kept[key] = kept
    return kept.packed


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory without holes."""
    extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return tensor.numel() > 0 and extent == tensor.numel()
