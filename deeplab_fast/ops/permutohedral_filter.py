"""`permutohedral_filter`: the function that users call, its ops and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deeplab_fast import reference
from deeplab_fast._arguments import check_filter_arguments, check_query_features, lattice_dtype, sum_dtype
from deeplab_fast.ops.define import OPS, define, in_format_of, kernels_loaded

KERNEL_DIMENSIONS = 64  # kernels on a GPU take as many feature dimensions, those on a CPU any number


def permutohedral_filter(values: Tensor, features: Tensor, query_features: Tensor | None = None) -> Tensor:
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
        query_features: (N, D, *T), floating, where to slice, if not where `features` splat: other positions, as many
            and in any shape. The lattice is that of both sets of points: its vertices are the corners of the simplices
            around all of them, so query points pass the blur on, too, and where they are the same as `features`, the
            result is the one without. Differentiable. All points are splatted and sliced, those of queries with values
            of zero, which takes as long as filtering them together.

    Returns:
        (N, C, *S), dtype and memory format of `values`. Sums are in its dtype, but for 16-bit ones in float32, under
        autocast as well. With `query_features` (N, C, *T), contiguous.

    Raises:
        TypeError: for a tensor that is not floating.
        ValueError: for shapes or devices that do not fit, NaN or infinite features, and lattice coordinates beyond
            ±32767.
    """
    check_filter_arguments(values, features)
    if query_features is not None:
        check_query_features(query_features, features)
        return _filter_at(values, features, query_features)
    features = features.to(lattice_dtype(features, values))
    out = with_errors_of([features], OPS["permutohedral_filter"], values, features)
    return in_format_of(values, out)


def _filter_at(values: Tensor, features: Tensor, query_features: Tensor) -> Tensor:
    """Values splatted at `features`, sliced at `query_features`; both, one after the other, are one set of points."""
    size = query_features.shape[2:]
    nothing = values.new_zeros(*values.shape[:2], math.prod(size))
    everywhere = torch.cat([features.flatten(2), query_features.flatten(2)], dim=2)
    filtered = permutohedral_filter(torch.cat([values.flatten(2), nothing], dim=2), everywhere)
    return filtered[:, :, -nothing.shape[2] :].reshape(*values.shape[:2], *size).contiguous()


# --- What the ops on lattices share --------------------------------------------------------------------------------


def kernel_takes(maps: Tensor, features: Sequence[Tensor], *others: Tensor | None) -> bool:
    """Whether there is a compiled kernel for these values or unary, features, and other tensors."""
    tensors = [maps, *features, *(tensor for tensor in others if tensor is not None)]
    kind = maps.device.type
    few = kind == "cpu" or all(image_features.shape[1] <= KERNEL_DIMENSIONS for image_features in features)
    fits = few and all(tensor.dtype.itemsize <= 4 and tensor.device.type == kind for tensor in tensors)
    return fits and kernels_loaded(kind)  # last: it warns where there are none


def with_errors_of(features: Sequence[Tensor], op: Callable, *arguments: object) -> Any:
    """op(*arguments), of which `features` are some, with the errors that are theirs."""
    try:
        return op(*arguments)
    except RuntimeError:
        # Before torch 2.13 an exception of a compiled kernel arrives without its type and text: find out again.
        for kernel_features in features:
            for image_features in kernel_features.flatten(2):
                reference.build_lattice(image_features)
        raise


def empty_sums(like: Tensor) -> Tensor:
    """An empty tensor in the shape of `like` and the dtype of its sums."""
    return like.new_empty(like.shape, dtype=sum_dtype(like))


# --- Ops -----------------------------------------------------------------------------------------------------------


def _reference(values: Tensor, features: Tensor, reverse: bool = False) -> Tensor:
    return reference.permutohedral_filter(values, features, reverse).contiguous()


def _reference_backward(grad: Tensor, values: Tensor, features: Tensor, reverse: bool = False) -> Tensor:
    return reference.permutohedral_filter_backward_features(grad, values, features, reverse).contiguous()


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    values, features, ctx.reverse = inputs
    ctx.save_for_backward(values if ctx.needs_input_grad[1] else None, features)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    values, features = ctx.saved_tensors
    to_values = to_features = None
    if ctx.needs_input_grad[0]:
        to_values = OPS["permutohedral_filter"](grad, features, not ctx.reverse)
    if ctx.needs_input_grad[1]:
        to_features = OPS["permutohedral_filter_backward_features"](grad, values, features, ctx.reverse)
    return to_values, to_features, None


define(
    "permutohedral_filter",
    reference=_reference,
    fake=lambda values, features, reverse=False: values.new_empty(values.shape),
    takes=lambda values, features, *_: kernel_takes(values, [features]),
    setup_context=_setup_context,
    backward=_backward,
)
define(
    "permutohedral_filter_backward_features",
    reference=_reference_backward,
    fake=lambda grad, values, features, reverse=False: empty_sums(features),
    takes=lambda grad, values, features, *_: kernel_takes(grad, [features], values),
)
