"""Runs a module and its fused twin on random input, forward and backward, in every mode, and says where they differ.

Everything happens on copies; random generators are as they were afterwards. Gradients are compared in float64, where no
element is so near 0 that rounding decides what ReLU does; the dtype of the module is compared on top.
"""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake
from torch.utils import _pytree as pytree

from deeplab_fast.nn import fusing
from deeplab_fast.patching.replacing import Program, fuse
from deeplab_fast.patching.tracing import Untraceable, deep_copy_of

# Largest difference allowed, relative to the largest value; in 16 bits an early rounding grows through a network.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
EVALUATION, FROZEN, TRAINING = "evaluation mode", "training mode with frozen batch norm", "training mode"


def why_not_alike(module: nn.Module, program: Program, shapes: Sequence[tuple[int, ...]], known: set[str]) -> str:
    """What differs between `module` and `program` run on it; "" if nothing does.

    Args:
        module: to be copied.
        program: that would be put into it.
        shapes: of inputs to try; the first one that `module` takes is used.
        known: modules found alike, to which this one is added. Networks have many blocks that are the same but for
            numbers in tensors: only the first is probed in every mode, the others in evaluation mode.
    """
    first = next(module.parameters())
    if first.is_meta or is_fake(first):
        kind = "fake" if is_fake(first) else "on the meta device"
        return f"its parameters are {kind} and have no values, so it cannot be probed"
    kind = _kind(module, program)
    with undisturbed(module):
        try:
            original, fused = deep_copy_of(module), deep_copy_of(module)
            _fuse(fused, program)
            shape = _fitting(original, first, shapes)
            _compare_outputs(original, fused, first, shape, None)
            if kind not in known:
                if first.device.type in ("cpu", "cuda") and first.dtype == torch.float32:
                    # Tells about dtypes, so little input will do; where bfloat16 is emulated it is slow.
                    small = _fitting(original, first, [(*shape[:2], 4, 3), shape])
                    _compare_outputs(original, fused, first, small, torch.bfloat16)
                exact = first.dtype if first.device.type == "mps" else torch.float64  # which has no float64
                _compare_gradients(original.to(exact), fused.to(exact), shape)
        except (Untraceable, _Differs) as error:
            return str(error)
    known.add(kind)
    return ""


def _fuse(module: nn.Module, program: Program) -> None:
    try:
        fuse(module, program)
    except Exception as error:  # of a class that minds subclasses
        raise _Differs(f"its class cannot be given a fused forward ({error})") from error


def _kind(module: nn.Module, program: Program) -> str:
    """The same for modules that are the same but for numbers in tensors."""
    parts = [
        (name, type(part), {key: value for key, value in vars(part).items() if not key.startswith("_")})
        for name, part in module.named_modules()
    ]
    tensors = [(tensor.dtype, tensor.device, tensor.shape) for tensor in module.state_dict().values()]
    return f"{program.source} {parts} {tensors}"


@contextlib.contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Random generators of torch, numpy and Python are restored; gradients are on, warnings off."""
    # Of fake tensors on a GPU there need not be one.
    devices = {p.device for p in module.parameters() if p.is_cuda and not is_fake(p)}
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with (
        torch.random.fork_rng(devices=list(devices)),
        torch.inference_mode(False),
        torch.enable_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


_Result = TypeVar("_Result")


class _Differs(Exception):
    """The two are not alike, or it cannot be told; the text says how."""


def _fitting(module: nn.Module, like: Tensor, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The first of the shapes that `module` takes."""
    reason = "the size of its input cannot be guessed"
    for shape in shapes:
        try:
            _set_mode(module, EVALUATION)
            with torch.no_grad():
                module.forward(_random(shape, like))
            return shape
        except Exception as error:  # whatever a module raises that gets no fitting input
            reason = str(error).strip().split("\n")[0]
    raise _Differs(f"it cannot be probed ({reason}); an example input may help")


def _compare_outputs(
    original: nn.Module, fused: nn.Module, like: Tensor, shape: tuple[int, ...], autocast: torch.dtype | None
) -> None:
    """Forward in the dtype of the module, or under autocast."""
    x = _random(shape, like)
    where = EVALUATION if autocast is None else "evaluation mode under autocast"
    results = []
    for module in (original, fused):
        _set_mode(module, EVALUATION)
        with torch.no_grad(), torch.autocast(like.device.type, dtype=autocast, enabled=autocast is not None):
            results.append(_run(module, lambda one: pytree.tree_leaves(one.forward(x)), where))
    expected, result = results
    _check_alike(expected, result, f"output in {where}", TOLERANCE[autocast or like.dtype])


def _compare_gradients(original: nn.Module, fused: nn.Module, shape: tuple[int, ...]) -> None:
    """Forward and gradients in every mode, and the buffers that are left."""
    like = next(original.parameters()).detach()
    for mode in (EVALUATION, FROZEN, TRAINING):
        results = []
        for module in (original, fused):
            _set_mode(module, mode)
            results.append(_run(module, lambda one: _outputs_and_gradients(one, _random(shape, like)), mode))
        for what, expected in results[0].items():
            _check_alike(expected, results[1][what], f"{what} in {mode}", TOLERANCE[like.dtype])


def _outputs_and_gradients(module: nn.Module, x: Tensor) -> dict[str, list]:
    for parameter in module.parameters():
        parameter.grad = None
        parameter.requires_grad_(parameter.is_floating_point())
    x.requires_grad_()
    outputs = pytree.tree_leaves(module.forward(x))
    loss = sum(
        (out * _random(out.shape, out, seed)).sum()
        for seed, out in enumerate(outputs)
        if isinstance(out, Tensor) and out.requires_grad
    )
    if isinstance(loss, Tensor):
        loss.backward()
    gradients = [x.grad, *(parameter.grad for parameter in module.parameters())]
    return {"output": outputs, "gradient": gradients, "buffers": list(module.buffers())}


def _run(module: nn.Module, function: Callable[[nn.Module], _Result], where: str) -> _Result:
    torch.manual_seed(0)  # the same dropout in both
    try:
        return function(module)
    except Exception as error:
        raise _Differs(f"probing failed in {where} ({str(error).strip().split(chr(10))[0]})") from error


def _check_alike(expected: Sequence, results: Sequence, what: str, tolerance: float) -> None:
    if len(expected) != len(results):
        raise _Differs(f"the fused {what} has another structure")
    for one, other in zip(expected, results, strict=True):
        if not isinstance(one, Tensor) or not isinstance(other, Tensor):
            if type(one) is not type(other):
                raise _Differs(f"the fused {what} is a {type(other).__name__}, not a {type(one).__name__}")
            continue
        if one.shape != other.shape or one.dtype != other.dtype:
            kinds = [f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in (other, one)]
            raise _Differs(f"the fused {what} is {kinds[0]}, not {kinds[1]}")
        if one.numel() == 0:
            continue
        largest, difference = one.detach().abs().max(), (one.detach() - other.detach()).abs().max()
        if not torch.isfinite(largest):
            raise _Differs(f"it cannot be probed: {what} is not finite on random input")
        if not difference <= tolerance * largest + 1e-12:
            raise _Differs(f"the fused {what} differs by {difference / largest:.1e} of the largest value")


def _set_mode(module: nn.Module, mode: str) -> None:
    module.train(mode != EVALUATION)
    if mode == FROZEN:
        for part in module.modules():
            if isinstance(part, fusing.BATCH_NORMS):
                part.eval()


def _random(shape: Sequence[int], like: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(like.device, like.dtype)
