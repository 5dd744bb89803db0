"""`permutohedral_filter` and `dense_crf`: the functions that users call, their custom ops and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deeplab_fast import reference
from deeplab_fast._arguments import (
    NORMALIZE_SYMMETRIC,
    Compat,
    Features,
    Normalization,
    check_crf_arguments,
    check_filter_arguments,
    lattice_dtype,
    sum_dtype,
)
from deeplab_fast.ops import _registry
from deeplab_fast.reference import crf_backward

KERNEL_DIMENSIONS = 64  # compiled kernels take as many feature dimensions


def permutohedral_filter(values: Tensor, features: Tensor) -> Tensor:
    """Gaussian filtering on the permutohedral lattice: about sum_j exp(-|f_i - f_j|²/2) v_j, times a constant.

    As in pydensecrf between its normalisations: alpha is included, nothing is divided by. Paper: Adams, Baek and Davis,
    "Fast High-Dimensional Filtering Using the Permutohedral Lattice", 2010. Differentiable with respect to `values`
    (the exact adjoint) and to `features` (through the barycentric weights; which vertices exist is taken as constant,
    as it is but where a point changes simplices), once: there is no second derivative.

    Whether features are in range is looked at before filtering, which on a GPU makes the host wait for the lattice, and
    for nothing after. While a CUDA graph is captured it does not wait: there is then memory for as many vertices as
    there can be, and features that are not valid give NaN. On one device results are the same bits every time.

    Args:
        values: (N, C, *S), floating.
        features: (N, D, *S), floating, in units of standard deviations. The lattice is built in float64 if values and
            features are both float64, else in float32.

    Returns:
        (N, C, *S), dtype and memory format of `values`. Sums are in its dtype, but for 16-bit ones in float32, under
        autocast as well.

    Raises:
        TypeError: for a tensor that is not floating.
        ValueError: for shapes or devices that do not fit, NaN or infinite features, and lattice coordinates beyond
            ±32767.
    """
    check_filter_arguments(values, features)
    features = features.to(lattice_dtype(features, values))
    op = op_for("permutohedral_filter", values, [features])
    return _registry.in_format_of(values, call_op(op, [features], values, features))


def dense_crf(
    unary: Tensor,
    features: Features,
    compat: Compat,
    iterations: int,
    normalization: Normalization = NORMALIZE_SYMMETRIC,
    collapse: float = 0.0,
    recompute: bool = False,
) -> Tensor:
    """Mean-field inference in a fully connected CRF with Gaussian pairwise terms, with pydensecrf's semantics.

    Q = softmax(-unary), then `iterations` times Q = softmax(-unary - sum_k compat_k(filter_k(Q))). Paper: Krähenbühl
    and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", 2011, algorithm 1. Lattices
    are built once. Differentiable, once, with respect to `unary`, `compat` and `features` (as `permutohedral_filter`
    is, the normalisation included), hence to the image and the standard deviations they are made of.

    Whether features are in range is looked at before inference, which on a GPU makes the host wait for the lattice, and
    for nothing after. While a CUDA graph is captured it does not wait: there is then memory for as many vertices as
    there can be, and features that are not valid give NaN. On one device results are the same bits every time.

    Args:
        unary: (N, K, *S), floating: energies, that is, negative log probabilities.
        features: (N, D, *S), floating, in units of standard deviations; or a sequence of such, one a kernel. Lattices
            are built in float64 if unary and features are both float64, else in float32.
        compat: label compatibility of the kernel: a number w (Potts: energy -w·F, so positive attracts), a vector (K,)
            (energy +v·F, so positive repels) or a matrix (K, K) (energy +½(m+mᵀ)·F), F being the filtered Q. A list or
            a tuple holds one compat for each kernel; so a vector must be a tensor or an array.
        iterations: number of mean-field iterations, 0 or more.
        normalization: of the kernel, "symmetric", "before", "after", "none" or pydensecrf's number for it; or a
            sequence of such, one a kernel.
        collapse: 0 computes every label exactly (labels of identical energies once). With a probability above 0, labels
            that are proven to stay below it everywhere are computed together; not where a gradient is needed.
        recompute: for a gradient, Q of every iteration is kept until the backward pass; with True nothing is, and the
            backward pass infers again, holding about 2·sqrt(iterations) of them. The gradient is the same.

    Returns:
        Q (N, K, *S), the marginals: dtype and memory format of `unary`. Sums are in its dtype, but for 16-bit ones in
        float32, under autocast as well.

    Raises:
        TypeError: for a tensor that is not floating, or iterations that are no integer.
        ValueError: for shapes or devices that do not fit, numbers out of range, NaN or infinite features, and lattice
            coordinates beyond ±32767.
    """
    features, compats, numbers = check_crf_arguments(unary, features, compat, iterations, normalization, collapse)
    arguments = (unary, features, compats, int(iterations), numbers)
    if _registry.is_inference(unary, *features, *compats):
        Q = call_op(op_for("dense_crf", unary, features), features, *arguments, float(collapse))
    elif recompute:
        Q = call_op(op_for("dense_crf", unary, features), features, *arguments)
    else:
        Q, _ = call_op(op_for("dense_crf_history", unary, features), features, *arguments)
    return _registry.in_format_of(unary, Q)


# --- Calling -------------------------------------------------------------------------------------------------------


def _kernel_takes(maps: Tensor, features: Sequence[Tensor]) -> bool:
    """Whether a compiled kernel, where there is one, takes these values or unary, and features."""
    return maps.dtype != torch.float64 and all(f.shape[1] <= KERNEL_DIMENSIONS for f in features)


def op_for(name: str, maps: Tensor, features: Sequence[Tensor]) -> Callable:
    """The op of this name that takes these values or unary, and features."""
    return _registry.choose(name, _kernel_takes(maps, features))


def call_op(op: Callable, features: Sequence[Tensor], *arguments: object) -> Any:
    """op(*arguments), of which `features` are some, with the errors that are theirs."""
    try:
        return op(*arguments)
    except RuntimeError:
        # Before torch 2.13 an exception of a compiled kernel arrives without its type and text: find out again.
        for kernel_features in features:
            for image_features in kernel_features.flatten(2):
                reference.build_lattice(image_features)
        raise


# --- Ops: permutohedral_filter -------------------------------------------------------------------------------------


def _permutohedral_filter(values: Tensor, features: Tensor, reverse: bool = False) -> Tensor:
    return reference.permutohedral_filter(values, features, reverse).contiguous()


def _filter_backward_features(grad: Tensor, values: Tensor, features: Tensor, reverse: bool = False) -> Tensor:
    return crf_backward.permutohedral_filter_backward_features(grad, values, features, reverse).contiguous()


def _filter_setup_context(ctx, inputs, output) -> None:
    values, features, ctx.reverse = inputs
    ctx.save_for_backward(values if ctx.needs_input_grad[1] else None, features)


def _filter_backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    values, features = ctx.saved_tensors
    to_values = to_features = None
    if ctx.needs_input_grad[0]:
        to_values = op_for("permutohedral_filter", grad, [features])(grad, features, not ctx.reverse)
    if ctx.needs_input_grad[1]:
        op = op_for("permutohedral_filter_backward_features", grad, [features])
        to_features = op(grad, values, features, ctx.reverse)
    return to_values, to_features, None


_registry.define(
    "permutohedral_filter", _permutohedral_filter, setup_context=_filter_setup_context, backward=_filter_backward
)
_registry.define(
    "permutohedral_filter_backward_features",
    _filter_backward_features,
    fake=lambda grad, values, features, reverse=False: _sums(features),
)


# --- Ops: dense_crf ------------------------------------------------------------------------------------------------


def _dense_crf(
    unary: Tensor,
    features: Sequence[Tensor],
    compat: Sequence[Tensor],
    iterations: int,
    normalization: Sequence[int],
    collapse: float = 0.0,
) -> Tensor:
    return reference.dense_crf(unary, features, list(compat), iterations, normalization, collapse).contiguous()


def _dense_crf_history(
    unary: Tensor,
    features: Sequence[Tensor],
    compat: Sequence[Tensor],
    iterations: int,
    normalization: Sequence[int],
) -> tuple[Tensor, Tensor]:
    Q, history = crf_backward.dense_crf_history(unary, features, compat, iterations, normalization)
    return Q.contiguous(), history


def _dense_crf_backward(
    grad: Tensor,
    unary: Tensor,
    features: Sequence[Tensor],
    compat: Sequence[Tensor],
    iterations: int,
    normalization: Sequence[int],
    history: Tensor | None,
    need_features: bool,
    need_compat: bool,
) -> list[Tensor]:
    gradients = crf_backward.dense_crf_backward(
        grad, unary, features, compat, iterations, normalization, history, need_features, need_compat
    )
    return [gradient.contiguous() for gradient in gradients]


def _sums(like: Tensor) -> Tensor:
    """An empty tensor in the shape of `like` and the dtype of its sums."""
    return like.new_empty(like.shape, dtype=sum_dtype(like))


def _history_fake(unary, features, compat, iterations, normalization) -> tuple[Tensor, Tensor]:
    shape = (iterations, unary.shape[0], math.prod(unary.shape[2:]), unary.shape[1])
    return unary.new_empty(unary.shape), unary.new_empty(shape, dtype=sum_dtype(unary))


def _backward_fake(
    grad, unary, features, compat, iterations, normalization, history, need_features, need_compat
) -> list[Tensor]:
    sums = [*(features if need_features else ()), *(compat if need_compat else ())]
    return [unary.new_empty(unary.shape), *(_sums(tensor) for tensor in sums)]


def _crf_setup_context(ctx, inputs, output) -> None:
    unary, features, compat, ctx.iterations, ctx.normalization, *_ = inputs
    history = output[1] if isinstance(output, tuple) else None
    ctx.kernels = len(features)
    ctx.save_for_backward(unary, history, *features, *compat)


def _crf_backward(ctx, grad: Tensor, _history_grad: Tensor | None = None) -> tuple:
    unary, history, *rest = ctx.saved_tensors
    features, compat = rest[: ctx.kernels], rest[ctx.kernels :]
    need_features, need_compat = any(ctx.needs_input_grad[1]), any(ctx.needs_input_grad[2])
    to_unary, *others = op_for("dense_crf_backward", unary, features)(
        grad, unary, features, compat, ctx.iterations, ctx.normalization, history, need_features, need_compat
    )
    none = [None] * ctx.kernels
    to_features = others[: ctx.kernels] if need_features else none
    to_compat = others[-ctx.kernels :] if need_compat else none
    # torch takes an empty list, as that of normalizations is without kernels, for one of tensors.
    to_normalization = None if ctx.normalization else []
    gradients = (to_unary, to_features, to_compat, None, to_normalization)
    # As many as arguments were given: torch counts no argument left at its default here.
    return gradients + (None,) * (len(ctx.needs_input_grad) - len(gradients))


_autograd = {"setup_context": _crf_setup_context, "backward": _crf_backward}
_registry.define("dense_crf", _dense_crf, **_autograd)
_registry.define("dense_crf_history", _dense_crf_history, fake=_history_fake, **_autograd)
_registry.define("dense_crf_backward", _dense_crf_backward, fake=_backward_fake)
