"""`permutohedral_filter`: the function that users call, its ops and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from deeplab_fast import reference
from deeplab_fast._arguments import check_filter_arguments, lattice_dtype, sum_dtype
from deeplab_fast.ops.define import OPS, compiled, define, in_format_of, kernels_loaded

KERNEL_DIMENSIONS = 64  # kernels on a GPU take as many feature dimensions, those on a CPU any number


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
    out = with_errors_of([features], OPS["permutohedral_filter"], values, features)
    return in_format_of(values, out)


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


_kernel = compiled(
    "permutohedral_filter_kernel",
    _reference,
    lambda values, features, *_: kernel_takes(values, [features]),
)
define(
    "permutohedral_filter",
    reference=_reference,
    fake=lambda values, features, reverse=False: values.new_empty(values.shape),
    cpu=_kernel,
    cuda=_kernel,
    setup_context=_setup_context,
    backward=_backward,
)
_kernel_backward = compiled(
    "permutohedral_filter_backward_features_kernel",
    _reference_backward,
    lambda grad, values, features, *_: kernel_takes(grad, [features], values),
)
define(
    "permutohedral_filter_backward_features",
    reference=_reference_backward,
    fake=lambda grad, values, features, reverse=False: empty_sums(features),
    cpu=_kernel_backward,
    cuda=_kernel_backward,
)
