"""`pairwise_energy`: the energy that `deeplab_fast.nn.DenseCRFLoss` is made of, and its gradient, in one op.

An energy is a number for each image, so what its gradient will be multiplied with is all that the backward pass
brings: the filtering for the gradient is done together with that for the energy, on the same lattice.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from deeplab_fast import reference
from deeplab_fast._arguments import check_filter_arguments, lattice_dtype, sum_dtype
from deeplab_fast.ops import _registry, crf
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
    energy, _ = crf.call_op(
        crf.op_for("pairwise_energy", values, [features]), [features], values, features, inside, factor
    )
    return energy


def _filter(values: Tensor, features: Tensor, reverse: bool) -> Tensor:
    """By compiled kernels where there are any: a GPU has those of the filter."""
    return crf.op_for("permutohedral_filter", values, [features])(values, features, reverse)


def _body(values: Tensor, features: Tensor, inside: Tensor | None, factor: float) -> tuple[Tensor, Tensor]:
    energy, gradient = reference.pairwise_energy(values.to(sum_dtype(values)), features, inside, factor, _filter)
    return energy, gradient.contiguous()


def _body_backward(grad: Tensor, gradient: Tensor, size: Sequence[int], factor: float) -> Tensor:
    return reference.pairwise_energy_backward(grad, gradient, size, factor).contiguous()


def _fake(values: Tensor, features: Tensor, inside: Tensor | None, factor: float) -> tuple[Tensor, Tensor]:
    dtype = sum_dtype(values)
    shape = (*values.shape[:2], *features.shape[2:])
    return values.new_empty(values.shape[:1], dtype=dtype), values.new_empty(shape, dtype=dtype)


def _setup_context(ctx, inputs, output) -> None:
    values, features, inside, ctx.factor = inputs
    ctx.size, ctx.dtype = list(values.shape[2:]), values.dtype
    ctx.set_materialize_grads(False)
    needs_features = ctx.needs_input_grad[1]
    ctx.save_for_backward(output[1], features, inside, values if needs_features else None)


def _backward(ctx, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
    gradient, features, inside, values = ctx.saved_tensors
    to_values = to_features = None
    if grad is None:
        return None, None, None, None
    if ctx.needs_input_grad[0]:
        op = crf.op_for("pairwise_energy_backward", gradient, [features])
        to_values = op(grad, gradient, ctx.size, ctx.factor).to(ctx.dtype)
    if ctx.needs_input_grad[1]:
        S = scaled(values.to(gradient.dtype), ctx.factor)
        S = S if inside is None else S * inside
        op = crf.op_for("permutohedral_filter_backward_features", S, [features])
        to_features = op(S * grad[:, None, None, None], S, features, False)
    return to_values, to_features, None, None


_registry.define("pairwise_energy", _body, fake=_fake, setup_context=_setup_context, backward=_backward)
_registry.define(
    "pairwise_energy_backward",
    _body_backward,
    fake=lambda grad, gradient, size, factor: gradient.new_empty((*gradient.shape[:2], *size)),
)
