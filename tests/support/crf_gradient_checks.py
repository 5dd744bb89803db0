"""Gradients of the dense CRF's ops beside those of the reference, and how close they have to be."""

from __future__ import annotations

import torch
from samples import ROUNDINGS, random
from torch import Tensor

import deeplab_fast.ops  # noqa: F401  defines them
from deeplab_fast import reference
from deeplab_fast._arguments import lattice_dtype, sum_dtype

ops = torch.ops.deeplab_fast
SINGLE = torch.float32


def gradient(like: Tensor) -> Tensor:
    return (random(8, *like.shape) - 0.5).to(like.dtype)


def assert_close(results: list[Tensor], own: list[Tensor], exact: list[Tensor], floors: list[float]) -> None:
    """Off the exact one by at most twice what the reference in the same dtype is off, and a few roundings."""
    for result, other, expected, floor in zip(results, own, exact, floors, strict=True):
        assert result.shape == expected.shape
        if result.numel() == 0:
            continue
        eps = torch.finfo(result.dtype).eps
        error = (result.double() - expected).abs().max().item()
        own_error = (other.double() - expected).abs().max().item()
        limit = 2 * own_error + ROUNDINGS * eps * (expected.abs().max().item() + floor)
        assert error <= limit, f"error {error:.2e}; the reference's {own_error:.2e}, limit {limit:.2e}"


# From compiled kernels, from the reference in the dtype of its sums, and exactly; and the size of terms that cancel in
# each. What `assert_close` takes.
Gradients = tuple[list[Tensor], list[Tensor], list[Tensor], list[float]]


def filter_gradients(grad: Tensor, values: Tensor, features: Tensor, reverse: bool) -> Gradients:
    """To the features."""
    result = ops.permutohedral_filter_backward_features(grad, values, features, reverse)
    assert result.dtype == SINGLE
    assert result.is_contiguous()
    features = features.to(lattice_dtype(features, values))
    backward = reference.permutohedral_filter_backward_features
    exact = backward(grad.double(), values.double(), features, reverse)
    own = backward(grad, values, features, reverse)
    terms = backward(grad.double().abs(), values.double().abs(), features, reverse)  # sums over vertices
    return [result], [own], [exact], [terms.abs().max().item() if len(grad) else 0]


def crf_gradients(
    unary: Tensor,
    features: list[Tensor],
    compat: list[Tensor],
    iterations: int,
    normalization: list[int],
    perturb: bool = False,
) -> Gradients:
    """To the unary, the features and the compat.

    perturb: count as terms also what becomes of one rounding of all that the gradients are made of. A mean field may
    magnify it a hundredfold at each iteration: where labels are alike, and whatever sets them apart decides.
    """
    grad = gradient(unary)
    rest = (features, compat, iterations, normalization)
    _, history = ops.dense_crf_history(unary, *rest)
    result = ops.dense_crf_backward(grad, unary, *rest, history, True, True)
    lattices = [f.to(lattice_dtype(f, unary)) for f in features]

    def backward(dtype: torch.dtype, rounding: float = 0) -> list[Tensor]:
        def rounded(tensor: Tensor, seed: int) -> Tensor:
            return tensor.to(dtype) * (1 + rounding * (2 * random(seed, *tensor.shape) - 1).to(dtype))

        compats = [rounded(c, 20 + k) for k, c in enumerate(compat)]
        arguments = rounded(unary, 9), lattices, compats, iterations, normalization
        return reference.dense_crf_backward(rounded(grad, 10), *arguments, rounded(history, 11), True, True)

    own, exact = backward(sum_dtype(unary)), backward(torch.float64)
    own[0] = own[0].to(unary.dtype)
    points = unary[0, 0].numel() if len(unary) else 0
    # Gradients to compat are sums over all points, of both signs.
    floors = [0.0] * (1 + len(features)) + [float(iterations * points) ** 0.5] * len(compat)
    if perturb and points > 0:
        eps = torch.finfo(SINGLE).eps
        off = zip(backward(torch.float64, eps), exact, strict=True)
        floors = [floor + (a - b).abs().max().item() / eps for floor, (a, b) in zip(floors, off, strict=True)]
    return list(result), own, exact, floors
