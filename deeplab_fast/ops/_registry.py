"""How ops are defined as `torch.library` custom ops, and chosen between compiled kernels and the reference.

The body of every op is its function in `deeplab_fast.reference`. An op of the dense CRF gets a kernel for the same
schema from the compiled library, which the dispatcher prefers where it is loaded; its twin `X_reference` has the
reference as its only kernel, and takes what compiled kernels do not (float64, very many feature dimensions), hidden
from `torch.compile` too. The convolution ops have a Python function as their kernel for each kind of device, which
chooses between paths (`deeplab_fast.ops.paths`).

Called as `torch.ops.deeplab_fast.X`, an op takes lists of tensors only, and checks less; the output of the dense CRF's
is contiguous. The functions in `deeplab_fast` give the output the input's memory format.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from deeplab_fast import _native
from deeplab_fast._conv_arguments import format_of as format_of

OPS: dict[str, Callable] = {}


def kernels_wanted() -> bool:
    """Whether kernels are used at all; tests that want the reference throughout replace this."""
    return True


def kernels_loaded(kind: str = "cpu") -> bool:
    """Whether the compiled kernels for this kind of device are there, and wanted; a warning if only wanted."""
    if not kernels_wanted():
        return False
    _native.warn_if_missing(kind)
    return _native.load() and (kind == "cpu" or _native.cuda_loaded())


def define(
    name: str,
    body: Callable,
    fake: Callable | None = None,
    setup_context: Callable | None = None,
    backward: Callable | None = None,
) -> None:
    """Define the ops `name` and `name`_reference; without `fake` the output has shape and dtype of the first input."""
    schema = torch.library.infer_schema(body, mutates_args=())

    @wraps(body)
    def instead_of_kernel(*arguments: Any, **named: Any) -> Any:
        _native.warn_if_missing(_device_of([*arguments, *named.values()]))
        return body(*arguments, **named)

    for op_name, function in ((name, instead_of_kernel), (f"{name}_reference", body)):
        op = torch.library.custom_op(f"deeplab_fast::{op_name}", function, mutates_args=(), schema=schema)
        op.register_fake(fake or (lambda like, *_, **__: like.new_empty(like.shape)))
        if backward is not None:
            op.register_autograd(backward, setup_context=setup_context)
        OPS[op_name] = op


def _device_of(arguments: Sequence[Any]) -> str:
    """The kind of device of an op's first tensor."""
    return next(argument.device.type for argument in arguments if isinstance(argument, Tensor))


def choose(name: str, kernel_takes: bool) -> Callable:
    """The op itself, or its twin with the reference as its only kernel."""
    return OPS[name if kernel_takes and kernels_wanted() else f"{name}_reference"]


def in_format_of(like: Tensor, out: Tensor) -> Tensor:
    """`out` in the memory format of `like`, which has its shape."""
    return out if like.is_contiguous() else torch.empty_like(like).copy_(out)


def define_convolution(name: str, body: Callable, cpu: Callable, cuda: Callable, fake: Callable) -> None:
    """Define the op `name` with a Python function for each kind of device, `body` being the one for all others.

    Not as a `custom_op`: that imports torch.compile's machinery with the first call of a Python kernel, which takes a
    second and 130 MB.
    """
    qualified = f"deeplab_fast::{name}"
    torch.library.define(qualified, torch.library.infer_schema(body, mutates_args=()))
    torch.library.impl(qualified, "default", body)
    torch.library.impl(qualified, "cpu", cpu)
    torch.library.impl(qualified, "cuda", cuda)
    torch.library.register_fake(qualified, fake)
    OPS[name] = getattr(torch.ops.deeplab_fast, name).default


def empty_maps(like: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    """(N, channels, *size), uninitialised, otherwise as `like`: batch, dtype, device, memory format."""
    shape = (like.shape[0], channels, *size)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=format_of(like))


def autocast(x: Tensor) -> Tensor:
    """`x` in the dtype that autocast, where it is on, runs convolutions in."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(kind))
    return x


def is_inference(*tensors: Tensor | None) -> bool:
    """Whether nothing is recorded for a backward pass, so that weights probably stay what they are."""
    return not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))
