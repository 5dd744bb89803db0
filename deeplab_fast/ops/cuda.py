"""The convolution ops' kernels on a GPU: launchers of Triton kernels (deeplab_fast.kernels), whose tables choose.

Float64, and everything where there is no Triton, is the reference's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from deeplab_fast import _native
from deeplab_fast.ops import define
from deeplab_fast.ops.packing import packed_for

WITHOUT_TRITON = (
    "deeplab_fast's convolutions on a GPU are not used, plain PyTorch is: Triton is not installed; pip install triton"
)


def kernel_of(stem: str, launcher: str, reference: Callable) -> Callable:
    """`launcher` of deeplab_fast.kernels.`stem`, or for what it does not take, `reference`."""

    @wraps(reference)
    def run(*arguments: Any) -> Any:
        if not _takes(arguments[0]):
            return reference(*arguments)
        return getattr(_module(stem), launcher)(*arguments)

    return run


def inference_kernel_of(
    stem: str, packed: Callable[[ModuleType, Tensor, Any], Tensor], reference: Callable
) -> Callable:
    """The same of the launcher `forward`, with weights packed by packed(deeplab_fast.kernels.`stem`, x, weights)."""

    @wraps(reference)
    def run(x: Tensor, weights: Any, *arguments: Any) -> Tensor:
        if not _takes(x):
            return reference(x, weights, *arguments)
        kernels = _module(stem)
        return kernels.forward(x, weights, *arguments, packed=packed(kernels, x, weights))

    return run


def kept(x: Tensor, tensors: Sequence[Tensor], pack: Callable[[], Tensor]) -> Tensor:
    """pack(), or what it returned when last called for the same tensors with the same content.

    Here version counters stand for the content: for a checksum the host would have to wait. They do not see what is
    written through `.data`. Tensors of inference mode have none.
    """
    if any(tensor.is_inference() for tensor in tensors):
        return pack()
    versions = tuple((tensor._version, tensor.data_ptr()) for tensor in tensors)
    return packed_for(("triton", x.dtype), tensors, pack, state=versions)


def _takes(maps: Tensor) -> bool:
    if maps.dtype == torch.float64 or not define.kernels_wanted():
        return False
    if not has_triton():
        _native.warn_once(WITHOUT_TRITON)
    return has_triton()


@cache
def has_triton() -> bool:
    return find_spec("triton") is not None


def _module(stem: str) -> ModuleType:
    return import_module(f"deeplab_fast.kernels.{stem}")  # imports Triton
