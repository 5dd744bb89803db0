"""What tests/fuzz/fuzz.py draws of the lattice and the dense CRF, and its checks: as fuzz_cases.py says."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import torch
from conv_samples import ROUNDINGS, centred
from crf_gradient_checks import assert_close, crf_gradients, filter_gradients
from fuzz_tensors import BFLOAT, DOUBLE, HALF, SINGLE, Case, pair_of, random_tensor, relaid
from samples import ExactCRF, assert_crf_accurate, assert_filter_accurate, positions
from torch import Tensor

import deeplab_fast
from deeplab_fast import ops, reference
from deeplab_fast._arguments import sum_dtype


def _points(draw: Random) -> tuple[int, ...]:
    return draw.choice(((draw.randint(1, 40),), pair_of(draw, (1, 2, 3, 5, 8, 9)), (2, draw.randint(1, 4), 3)))


def _spread(draw: Random) -> float:
    return 3 * 10 ** draw.uniform(-2, 2)


def draw_filter(draw: Random) -> Case:
    return {
        "batch": draw.choice((0, 1, 1, 2)), "channels": draw.choice((1, 2, 3, 4, 5, 8, 9, 17, 31, 32, 33, 40)),
        "size": _points(draw), "dimensions": draw.choice((1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 11)), "spread": _spread(draw),
        "dtype": draw.choice((SINGLE, SINGLE, BFLOAT, HALF, DOUBLE)),
        "feature_dtype": draw.choice((SINGLE, SINGLE, SINGLE, BFLOAT, HALF, DOUBLE)),
        "not_finite": draw.choice((None, None, None, math.nan, math.inf)), "seed": draw.randrange(2**31),
    }  # fmt: skip


def check_filter(case: Case) -> None:
    draw = Random(case["seed"])
    values = random_tensor(draw, case["dtype"], case["batch"], case["channels"], *case["size"])
    features = _features(draw, case, case["dimensions"], case["spread"])
    if case["not_finite"] is not None and values.numel() > 0:
        _check_spreading(values.contiguous(), features, case["not_finite"], draw)
        return
    assert_filter_accurate(deeplab_fast.permutohedral_filter(values, features), values, features)
    if DOUBLE in (case["dtype"], case["feature_dtype"]):
        return
    leaf, grad = values.detach().requires_grad_(), random_tensor(draw, case["dtype"], *values.shape)
    (to_values,) = torch.autograd.grad(deeplab_fast.permutohedral_filter(leaf, features), leaf, grad)
    exact, own, terms = (
        reference.permutohedral_filter(g, features.float(), True) for g in (grad.double(), grad, grad.double().abs())
    )
    assert_close([to_values], [own], [exact], [terms.max().item() if terms.numel() else 0])
    results, own, exact, floors = filter_gradients(grad, values, features, draw.random() < 0.5)
    # To features these terms enter as differences, times up to the number of vertices of a simplex.
    assert_close(results, own, exact, [floor * (1 + case["dimensions"]) for floor in floors])


def _check_spreading(values: Tensor, features: Tensor, value: float, draw: Random) -> None:
    values.view(-1)[draw.randrange(values.numel())] = value
    result = deeplab_fast.permutohedral_filter(values, features)
    expected = reference.permutohedral_filter(values, features)
    assert torch.equal(result.isfinite(), expected.isfinite()), f"{value} spreads otherwise than in the reference"


def _features(draw: Random, case: Case, dimensions: int, spread: float) -> Tensor:
    features = positions(case["size"], case["batch"], dimensions, spread, draw.randrange(2**31))
    return relaid(draw, features.to(case["feature_dtype"]))


def draw_crf(draw: Random) -> Case:
    kernels = [
        (
            draw.choice((1, 2, 3, 5, 5, 6)),
            draw.choice(("number", "vector", "matrix")),
            draw.randint(0, 3),
            _spread(draw),
        )
        for _ in range(draw.choice((0, 1, 1, 2, 3)))
    ]
    return {
        "batch": draw.choice((0, 1, 1, 2)), "labels": draw.choice((1, 2, 2, 3, 4, 5, 8, 9, 17, 33, 40)),
        "size": _points(draw), "kernels": kernels, "iterations": draw.choice((0, 1, 2, 3, 5)),
        "dtype": draw.choice((SINGLE, SINGLE, BFLOAT, HALF, DOUBLE)),
        "feature_dtype": draw.choice((SINGLE, SINGLE, SINGLE, BFLOAT, HALF, DOUBLE)),
        "alike": draw.choice((0, 0, 3)), "seed": draw.randrange(2**31),
    }  # fmt: skip


def check_crf(case: Case) -> None:
    draw, labels = Random(case["seed"]), case["labels"]
    unary = 2 + 2 * centred(draw.randrange(2**31), case["batch"], labels, *case["size"])
    unary[:, : min(case["alike"], labels)] = 1
    unary = relaid(draw, unary.to(case["dtype"]))
    features = [_features(draw, case, dimensions, spread) for dimensions, _, _, spread in case["kernels"]]
    shapes = {"number": (), "vector": (labels,), "matrix": (labels, labels)}
    compat = [3 * random_tensor(draw, SINGLE, *shapes[kind]) for _, kind, _, _ in case["kernels"]]
    compat = [relaid(draw, c) for c in compat]
    inputs = (unary, features, compat, case["iterations"], [number for _, _, number, _ in case["kernels"]])
    assert_crf_accurate(deeplab_fast.dense_crf(*inputs), *inputs)
    if DOUBLE not in (case["dtype"], case["feature_dtype"]):
        results, own, exact, floors = crf_gradients(*inputs, perturb=True)
        terms = _terms(*inputs, exact[0])
        assert_close(results, own, exact, [floor + term for floor, term in zip(floors, terms, strict=True)])


def _terms(
    unary: Tensor,
    features: list[Tensor],
    compat: list[Tensor],
    iterations: int,
    normalization: list[int],
    exact: Tensor,
) -> list[float]:
    """Of what size terms are that all cancel at times, as with alike labels; exact: the gradient to the unary."""
    if exact.numel() == 0:
        return [0.0] * (1 + 2 * len(features))
    ones, largest = torch.ones(unary[0, 0].numel(), 1, dtype=DOUBLE), 1 + exact.abs().max().item()
    of_images = ExactCRF(unary, features, [torch.ones(())] * len(compat), normalization).kernels
    filtered = [max(k.energy(ones).abs().max().item() for k in of_kernel) for of_kernel in zip(*of_images, strict=True)]
    kernels = zip(features, compat, strict=True)
    to_features = [iterations * c.abs().max().item() * (1 + f.shape[1]) for f, c in kernels]
    return [1.0, *to_features, *(largest * f * unary[0].numel() ** 0.5 for f in filtered)]


def draw_pairwise(draw: Random) -> Case:
    return {
        "batch": draw.choice((0, 1, 1, 2)), "channels": draw.choice((1, 2, 3, 5, 21, 33, 40)),
        "size": pair_of(draw, (2, 3, 5, 8, 9, 13)), "factor": draw.choice((1.0, 1.0, 0.5, 0.5, 0.75, 1.5, 2.0)),
        "dimensions": draw.choice((1, 2, 3, 5, 5, 6)), "spread": _spread(draw), "inside": draw.random() < 0.5,
        "dtype": draw.choice((SINGLE, SINGLE, BFLOAT, HALF)), "seed": draw.randrange(2**31),
    }  # fmt: skip


def check_pairwise(case: Case) -> None:
    draw, factor = Random(case["seed"]), case["factor"]
    size = tuple(int(length * factor) for length in case["size"])
    values = random_tensor(draw, case["dtype"], case["batch"], case["channels"], *case["size"])
    features = positions(size, case["batch"], case["dimensions"], case["spread"], draw.randrange(2**31))
    features = relaid(draw, features.to(case["dtype"]))
    inside = (
        (random_tensor(draw, case["dtype"], case["batch"], 1, *size) > 0).to(case["dtype"]) if case["inside"] else None
    )
    weights = random_tensor(draw, SINGLE, case["batch"])
    leaf = values.detach().requires_grad_()
    energy = ops.pairwise_energy(leaf, features, inside, factor)
    (to_values,) = torch.autograd.grad(energy, leaf, weights)

    def run(change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        changed = change(values)
        region = None if inside is None else inside.to(changed.dtype)
        lattice = features.to(SINGLE)
        of_images, gradient = reference.pairwise_energy(changed, lattice, region, factor)
        times = weights.to(changed.dtype).abs() if change is terms else weights.to(changed.dtype)
        back = reference.pairwise_energy_backward(times, gradient, values.shape[2:], factor)
        return [of_images, back]

    def terms(t: Tensor) -> Tensor:
        return t.double().abs()

    exact, own, absolute = run(Tensor.double), run(lambda t: t.to(sum_dtype(t))), run(terms)
    own[1] = own[1].to(values.dtype)
    # As for convolutions: what the worst order of a sum is off.
    longest = max(1.0, 0.8 / ROUNDINGS * (case["channels"] * size[0] * size[1]) ** 0.5)
    floors = [longest * part.abs().max().item() if part.numel() else 0.0 for part in absolute]
    assert_close([energy.detach(), to_values], own, exact, floors)
