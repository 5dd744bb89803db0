"""`dense_crf`: the function that users call, its ops and gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from deeplab_fast import reference
from deeplab_fast._arguments import (
    NORMALIZE_SYMMETRIC,
    Compat,
    Features,
    Normalization,
    check_crf_arguments,
    sum_dtype,
)
from deeplab_fast.ops.define import OPS, define, in_format_of, is_inference
from deeplab_fast.ops.permutohedral_filter import empty_sums, kernel_takes, with_errors_of


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
    if is_inference(unary, *features, *compats):
        Q = with_errors_of(features, OPS["dense_crf"], *arguments, float(collapse))
    elif recompute:
        Q = with_errors_of(features, OPS["dense_crf"], *arguments)
    else:
        Q, _ = with_errors_of(features, OPS["dense_crf_history"], *arguments)
    return in_format_of(unary, Q)


# --- Ops -----------------------------------------------------------------------------------------------------------


def _reference(
    unary: Tensor,
    features: Sequence[Tensor],
    compat: Sequence[Tensor],
    iterations: int,
    normalization: Sequence[int],
    collapse: float = 0.0,
) -> Tensor:
    return reference.dense_crf(unary, features, list(compat), iterations, normalization, collapse).contiguous()


def _reference_history(
    unary: Tensor,
    features: Sequence[Tensor],
    compat: Sequence[Tensor],
    iterations: int,
    normalization: Sequence[int],
) -> tuple[Tensor, Tensor]:
    Q, history = reference.dense_crf_history(unary, features, compat, iterations, normalization)
    return Q.contiguous(), history


def _reference_backward(
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
    gradients = reference.dense_crf_backward(
        grad, unary, features, compat, iterations, normalization, history, need_features, need_compat
    )
    return [gradient.contiguous() for gradient in gradients]


def _history_fake(
    unary: Tensor,
    features: Sequence[Tensor],
    compat: Sequence[Tensor],
    iterations: int,
    normalization: Sequence[int],
) -> tuple[Tensor, Tensor]:
    shape = (iterations, unary.shape[0], math.prod(unary.shape[2:]), unary.shape[1])
    return unary.new_empty(unary.shape), unary.new_empty(shape, dtype=sum_dtype(unary))


def _backward_fake(
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
    sums = [*(features if need_features else ()), *(compat if need_compat else ())]
    return [unary.new_empty(unary.shape), *(empty_sums(tensor) for tensor in sums)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    unary, features, compat, ctx.iterations, ctx.normalization, *_ = inputs
    history = output[1] if isinstance(output, tuple) else None
    ctx.kernels = len(features)
    ctx.save_for_backward(unary, history, *features, *compat)


def _backward(ctx: Any, grad: Tensor, _history_grad: Tensor | None = None) -> tuple:
    unary, history, *rest = ctx.saved_tensors
    features, compat = rest[: ctx.kernels], rest[ctx.kernels :]
    need_features, need_compat = any(ctx.needs_input_grad[1]), any(ctx.needs_input_grad[2])
    to_unary, *others = OPS["dense_crf_backward"](
        grad, unary, features, compat, ctx.iterations, ctx.normalization, history, need_features, need_compat
    )
    none = [None] * ctx.kernels
    to_features = others[: ctx.kernels] if need_features else none
    to_compat = others[-ctx.kernels :] if need_compat else none
    # torch takes an empty list, as that of normalizations is without kernels, for one of tensors.
    to_normalization: list[None] | None = None if ctx.normalization else []
    gradients = (to_unary, to_features, to_compat, None, to_normalization)
    # As many as arguments were given: torch counts no argument left at its default here.
    return gradients + (None,) * (len(ctx.needs_input_grad) - len(gradients))


_autograd: dict[str, Any] = {"setup_context": _setup_context, "backward": _backward}
define(
    "dense_crf",
    reference=_reference,
    fake=lambda unary, *_, **__: unary.new_empty(unary.shape),
    takes=lambda unary, features, compat, *_: kernel_takes(unary, features, *compat),
    **_autograd,
)
define(
    "dense_crf_history",
    reference=_reference_history,
    fake=_history_fake,
    takes=lambda unary, features, compat, *_: kernel_takes(unary, features, *compat),
    **_autograd,
)
define(
    "dense_crf_backward",
    reference=_reference_backward,
    fake=_backward_fake,
    takes=lambda grad, unary, features, compat, *_: kernel_takes(unary, features, grad, *compat),
)
