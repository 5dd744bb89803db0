"""`pairwise_energy`: the energy that `deeplab_fast.nn.DenseCRFLoss` is made of, and its gradient, in one op.

An energy is a number for each image, so what its gradient will be multiplied with is all that the backward pass
brings: the filtering for the gradient is done together with that for the energy, on the same lattice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deeplab_fast import reference
from deeplab_fast._arguments import check_filter_arguments, lattice_dtype, sum_dtype
from deeplab_fast.ops.define import OPS, compiled, define
from deeplab_fast.ops.permutohedral_filter import kernel_takes, with_errors_of
from deeplab_fast.reference.pairwise_energy import scaled


def pairwise_energy(values: Tensor, features: Tensor, inside: Tensor | None = None, factor: float = 1.0) -> Tensor:
    """sum_c S_cᵀ A S_c of every image, S = inside · (values scaled by `factor`), A as `permutohedral_filter` has it.

    Differentiable, once, with respect to `values` and `features`. The lattice is not quite symmetric; the gradient is
    that of what is computed, (A + Aᵀ) S.

    Args:
        values: (N, C, H, W), floating.
        features: (N, D, h, w), floating, h = int(H·factor) and w likewise, in units of standard deviations.
        inside: (N, 1, h, w), floating: weights of the pixels; None for 1. Not differentiated.
        factor: by which values are resized first, bilinearly (align_corners=False); 1 leaves them.

    Returns:
        (N,), in the dtype of `values`, float32 for 16-bit ones.

    Raises:
        TypeError: for a tensor that is not floating.
        ValueError: for shapes or devices that do not fit, features as in `permutohedral_filter`.
    """
    features = features.to(lattice_dtype(features, values))
    size = [int(length * factor) for length in values.shape[2:]]
    check_filter_arguments(values.new_empty((1,)).expand(*values.shape[:2], *size), features)
    energy, _ = with_errors_of([features], OPS["pairwise_energy"], values, features, inside, factor)
    return energy


def _cuda(values: Tensor, features: Tensor, inside: Tensor | None, factor: float) -> tuple[Tensor, Tensor]:
    """The filtering by a kernel; the passes over pixels before and after are torch's."""
    takes = kernel_takes(values, [features], inside)
    return _reference(values, features, inside, factor, _both_ways_cuda if takes else None)


def _reference(
    values: Tensor,
    features: Tensor,
    inside: Tensor | None,
    factor: float,
    both_ways: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    energy, gradient = reference.pairwise_energy(values.to(sum_dtype(values)), features, inside, factor, both_ways)
    return energy, gradient.contiguous()


def _both_ways_cuda(values: Tensor, features: Tensor) -> Tensor:
    return torch.ops.deeplab_fast.permutohedral_filter_both_ways_cuda.default(values, features)


def _reference_backward(grad: Tensor, gradient: Tensor, size: Sequence[int], factor: float) -> Tensor:
    return reference.pairwise_energy_backward(grad, gradient, size, factor).contiguous()


def _fake(values: Tensor, features: Tensor, inside: Tensor | None, factor: float) -> tuple[Tensor, Tensor]:
    dtype = sum_dtype(values)
    shape = (*values.shape[:2], *features.shape[2:])
    return values.new_empty(values.shape[:1], dtype=dtype), values.new_empty(shape, dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    values, features, inside, ctx.factor = inputs
    ctx.size, ctx.dtype = list(values.shape[2:]), values.dtype
    ctx.set_materialize_grads(False)
    needs_features = ctx.needs_input_grad[1]
    ctx.save_for_backward(output[1], features, inside, values if needs_features else None)


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
    gradient, features, inside, values = ctx.saved_tensors
    to_values = to_features = None
    if grad is None:
        return None, None, None, None
    if ctx.needs_input_grad[0]:
        to_values = OPS["pairwise_energy_backward"](grad, gradient, ctx.size, ctx.factor).to(ctx.dtype)
    if ctx.needs_input_grad[1]:
        S = scaled(values.to(gradient.dtype), ctx.factor)
        S = S if inside is None else S * inside
        weighted = S * grad[:, None, None, None]
        to_features = OPS["permutohedral_filter_backward_features"](weighted, S, features, False)
    return to_values, to_features, None, None


define(
    "pairwise_energy",
    reference=_reference,
    fake=_fake,
    cpu=compiled(
        "pairwise_energy_cpu",
        _reference,
        lambda values, features, inside, factor: kernel_takes(values, [features], inside),
    ),
    cuda=_cuda,
    setup_context=_setup_context,
    backward=_backward,
)
define(
    "pairwise_energy_backward",
    reference=_reference_backward,
    fake=lambda grad, gradient, size, factor: gradient.new_empty((*gradient.shape[:2], *size)),
    cpu=compiled(
        "pairwise_energy_backward_cpu",
        _reference_backward,
        lambda grad, gradient, size, factor: kernel_takes(gradient, [], grad),
    ),
)
