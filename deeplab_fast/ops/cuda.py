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
from deeplab_fast._conv_arguments import Epilogue, Geometry
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


def aspp_sum_inference(reference: Callable) -> Callable:
    """The launcher of aspp_sum, with packed weights that are kept for the next call."""

    @wraps(reference)
    def run(x: Tensor, weights: Sequence[Tensor], bias: Tensor | None, rates: Sequence[int]) -> Tensor:
        if not _takes(x):
            return reference(x, weights, bias, rates)
        kernels = _module("aspp_sum")
        packed = _packed(x, weights, lambda: kernels.pack(weights, x.dtype))
        return kernels.forward(x, weights, bias, rates, packed=packed)

    return run


def atrous_conv2d_inference(reference: Callable) -> Callable:
    """The launcher of atrous_conv2d, with packed weights that are kept for the next call."""

    @wraps(reference)
    def run(x: Tensor, weight: Tensor, geometry: Geometry, epilogue: Epilogue) -> Tensor:
        if not _takes(x):
            return reference(x, weight, geometry, epilogue)
        kernels = _module("atrous_conv2d")
        packed = weight
        if weight.dtype != x.dtype or not weight.is_contiguous(memory_format=torch.channels_last):
            packed = _packed(x, [weight], lambda: kernels.pack(weight, x.dtype))
        return kernels.forward(x, weight, geometry, epilogue, packed=packed)

    return run


def _packed(x: Tensor, tensors: Sequence[Tensor], pack: Callable[[], Tensor]) -> Tensor:
    """What pack() returned for the same tensors with the same content.

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
