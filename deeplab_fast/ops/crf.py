"""`permutohedral_filter` and `dense_crf`: the functions that users call, and their custom ops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
)
from deeplab_fast.ops import _registry

KERNEL_DIMENSIONS = 64  # compiled kernels take as many feature dimensions


def permutohedral_filter(values: Tensor, features: Tensor) -> Tensor:
    """Gaussian filtering on the permutohedral lattice: about sum_j exp(-|f_i - f_j|²/2) v_j, times a constant.

    As in pydensecrf between its normalisations: alpha is included, nothing is divided by. Paper: Adams, Baek and Davis,
    "Fast High-Dimensional Filtering Using the Permutohedral Lattice", 2010. Differentiable with respect to `values`
    (the exact adjoint), not yet to `features`.

    Whether features are in range is looked at before filtering, which on a GPU makes the host wait for it.

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
        NotImplementedError: in the backward pass, when `features` require a gradient.
    """
    check_filter_arguments(values, features)
    features = features.to(lattice_dtype(features, values))
    op = _op("permutohedral_filter", values, [features])
    return _registry.in_format_of(values, _call(op, [features], values, features))


def dense_crf(
    unary: Tensor,
    features: Features,
    compat: Compat,
    iterations: int,
    normalization: Normalization = NORMALIZE_SYMMETRIC,
    collapse: float = 0.0,
) -> Tensor:
    """Mean-field inference in a fully connected CRF with Gaussian pairwise terms, with pydensecrf's semantics.

    Q = softmax(-unary), then `iterations` times Q = softmax(-unary - sum_k compat_k(filter_k(Q))). Paper: Krähenbühl
    and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", 2011, algorithm 1. Lattices
    are built once. Not differentiable yet.

    Whether features are in range is looked at before inference, which on a GPU makes the host wait for it.

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
            that are proven to stay below it everywhere are computed together.

    Returns:
        Q (N, K, *S), the marginals: dtype and memory format of `unary`. Sums are in its dtype, but for 16-bit ones in
        float32, under autocast as well.

    Raises:
        TypeError: for a tensor that is not floating, or iterations that are no integer.
        ValueError: for shapes or devices that do not fit, numbers out of range, NaN or infinite features, and lattice
            coordinates beyond ±32767.
        NotImplementedError: in the backward pass.
    """
    features, compats, numbers = check_crf_arguments(unary, features, compat, iterations, normalization, collapse)
    op = _op("dense_crf", unary, features)
    arguments = (unary, features, compats, int(iterations), numbers, float(collapse))
    return _registry.in_format_of(unary, _call(op, features, *arguments))


# --- Calling -------------------------------------------------------------------------------------------------------


def _kernel_takes(maps: Tensor, features: Sequence[Tensor]) -> bool:
    """Whether a compiled kernel, where there is one, takes these values or unary, and features."""
    return maps.dtype != torch.float64 and all(f.shape[1] <= KERNEL_DIMENSIONS for f in features)


def _op(name: str, maps: Tensor, features: Sequence[Tensor]) -> Callable[..., Tensor]:
    return _registry.choose(name, _kernel_takes(maps, features))


def _call(op: Callable[..., Tensor], features: Sequence[Tensor], *arguments: object) -> Tensor:
    try:
        return op(*arguments)
    except RuntimeError:
        # Before torch 2.13 an exception of a compiled kernel arrives without its type and text: find out again.
        for kernel_features in features:
            for image_features in kernel_features.flatten(2):
                reference.build_lattice(image_features)
        raise


# --- Ops -----------------------------------------------------------------------------------------------------------


def _permutohedral_filter(values: Tensor, features: Tensor, reverse: bool = False) -> Tensor:
    return reference.permutohedral_filter(values, features, reverse).contiguous()


def _filter_setup_context(ctx, inputs, output) -> None:
    _, features, ctx.reverse = inputs
    ctx.save_for_backward(features)


def _filter_backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
    if ctx.needs_input_grad[1]:
        raise NotImplementedError(
            "permutohedral_filter: there is no gradient with respect to features yet; pass features.detach()"
        )
    (features,) = ctx.saved_tensors
    op = _op("permutohedral_filter", grad, [features])
    return op(grad, features, not ctx.reverse), None, None


def _dense_crf(
    unary: Tensor,
    features: Sequence[Tensor],
    compat: Sequence[Tensor],
    iterations: int,
    normalization: Sequence[int],
    collapse: float = 0.0,
) -> Tensor:
    return reference.dense_crf(unary, features, list(compat), iterations, normalization, collapse).contiguous()


def _crf_backward(ctx, grad: Tensor) -> None:
    raise NotImplementedError("dense_crf: there is no gradient yet; call it under torch.no_grad() or detach its inputs")


_registry.define("permutohedral_filter", _permutohedral_filter, _filter_setup_context, _filter_backward)
_registry.define("dense_crf", _dense_crf, lambda ctx, inputs, output: None, _crf_backward)
