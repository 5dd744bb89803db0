"""How ops are defined, in one way for all: a schema, the reference, and a kernel for each kind of device.

An op's reference, its function in `deeplab_fast.reference`, is what every device gets that has no kernel. A kernel is a
Python function that chooses: a compiled kernel (`compiled`), a path (`deeplab_fast.ops.paths`), a Triton launcher
(`deeplab_fast.ops.cuda`), or the reference for what these do not take, such as float64.

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
from deeplab_fast.ops.schemas import COMPILED, PUBLIC, parsed

OPS: dict[str, Callable] = {}

_schemas = parsed(PUBLIC)
for _name, _schema in parsed(COMPILED).items():
    torch.library.define(f"deeplab_fast::{_name}", _schema)


def define(
    name: str,
    *,
    reference: Callable,
    fake: Callable,
    cpu: Callable | None = None,
    cuda: Callable | None = None,
    takes: Callable[..., bool] | None = None,
    backward: Callable | None = None,
    setup_context: Callable | None = None,
) -> None:
    """Define the op `name`, whose schema is in `deeplab_fast.ops.schemas`.

    Not as a `custom_op`: that imports torch.compile's machinery with the first call of a Python kernel, which takes a
    second and 130 MB.

    Args:
        reference: what computes it where there is no kernel. All functions take the schema's arguments by position.
        fake: its results, without data: shapes, dtypes and formats.
        cpu, cuda: the kernels of these devices; by default the reference.
        takes: in place of both, where there is one compiled kernel for both, `{name}_kernel`: whether it takes the
            arguments, which the reference gets otherwise.
        backward, setup_context: the gradient, as `torch.library.register_autograd` wants it. An op that is a gradient
            itself has none: asking for it raises an error, where torch would only warn, and give something.
    """
    if takes is not None:
        cpu = cuda = compiled(f"{name}_kernel", reference, takes)
    qualified = f"deeplab_fast::{name}"
    torch.library.define(qualified, _schemas[name])
    torch.library.impl(qualified, "default", reference)
    for device, kernel in (("cpu", cpu), ("cuda", cuda)):
        if kernel is not None:
            torch.library.impl(qualified, device, kernel)
    torch.library.register_fake(qualified, fake)
    if backward is None and "_backward" in name:
        backward = _no_second_derivative(name[: name.index("_backward")])
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup_context)
    OPS[name] = getattr(torch.ops.deeplab_fast, name).default


def _no_second_derivative(name: str) -> Callable:
    def backward(*_: Any) -> None:
        raise NotImplementedError(f"{name} has no second derivative")

    return backward


def compiled(kernel: str, reference: Callable, takes: Callable[..., bool]) -> Callable:
    """The compiled kernel of this name where it is loaded, wanted, and takes the arguments; else `reference`."""
    packet = getattr(torch.ops.deeplab_fast, kernel)

    @wraps(reference)
    def run(*arguments: Any) -> Any:
        return (packet.default if takes(*arguments) else reference)(*arguments)

    return run


def kernels_wanted() -> bool:
    """Whether kernels are used at all; tests that want the reference throughout replace this."""
    return True


def kernels_loaded(device: str = "cpu") -> bool:
    """Whether the compiled kernels of this kind of device are there, and wanted; a warning if only wanted."""
    if not kernels_wanted():
        return False
    _native.warn_if_missing(device)
    return _native.load() and (device == "cpu" or _native.cuda_loaded())


def in_format_of(like: Tensor, out: Tensor) -> Tensor:
    """`out` in the memory format of `like`, which has its shape."""
    return out if like.is_contiguous() else torch.empty_like(like).copy_(out)


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
