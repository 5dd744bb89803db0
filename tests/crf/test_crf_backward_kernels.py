"""Gradients that compiled kernels compute, against those of the reference in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from compiled import require_kernels
from crf_gradient_checks import assert_close, crf_gradients, filter_gradients, gradient
from photos import photo
from samples import CRF_SAMPLES, FILTER_SAMPLES, CRFSample, FilterSample, by_name, random
from torch import Tensor

import deeplab_fast.ops  # defines them

require_kernels()

ops = torch.ops.deeplab_fast
SINGLE = torch.float32
FILTERS = [s for s in FILTER_SAMPLES if torch.float64 not in (s.dtype, s.feature_dtype)]
CRFS = [s for s in CRF_SAMPLES if torch.float64 not in (s.dtype, s.feature_dtype) and s.name != "no_iterations"]
GRADIENTS = ["unary", "features", "compat"]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sample", FILTERS, ids=by_name)
def test_filter_to_features(sample: FilterSample, reverse: bool):
    values, features = sample.inputs()
    assert_close(*filter_gradients(gradient(values), values, features, reverse))


@pytest.mark.parametrize("sample", CRFS, ids=by_name)
def test_crf(sample: CRFSample):
    assert_close(*crf_gradients(*sample.inputs()))


@pytest.mark.parametrize("labels", [1, 2, 3, 21, 33])
@pytest.mark.parametrize("sample", [s for s in CRFS if s.name in ("mixed_kernels", "points_by_4")], ids=by_name)
def test_crf_labels(sample: CRFSample, labels: int):
    changed = CRFSample(sample.name, labels=labels, size=sample.size, kernels=sample.kernels)
    assert_close(*crf_gradients(*changed.inputs()))


@pytest.mark.parametrize("iterations", [0, 1, 2, 3, 10])
@pytest.mark.parametrize(
    "sample",
    [s for s in CRFS if s.name in ("image", "labels_1", "labels_2", "labels_alike", "mixed_kernels", "bfloat16")],
    ids=by_name,
)
def test_same_bits_with_history_and_without(sample: CRFSample, iterations: int):
    unary, features, compat, _, normalization = sample.inputs()
    rest = (features, compat, iterations, normalization)
    Q, history = ops.dense_crf_history(unary, *rest)
    assert torch.equal(Q, ops.dense_crf(unary, *rest))
    if iterations > 0:
        assert torch.equal(history[-1].transpose(1, 2).reshape(Q.shape).to(Q.dtype), Q)
    grad = gradient(unary)
    kept = ops.dense_crf_backward(grad, unary, *rest, history, True, True)
    again = ops.dense_crf_backward(grad, unary, *rest, None, True, True)
    assert all(torch.equal(a, b) for a, b in zip(again, kept, strict=True))


def test_what_is_not_needed_changes_nothing():
    unary, *rest = CRFSample("").inputs()
    grad = gradient(unary)
    _, history = ops.dense_crf_history(unary, *rest)
    to_unary, *others = ops.dense_crf_backward(grad, unary, *rest, history, True, True)
    for need_features, need_compat in ((False, False), (True, False), (False, True)):
        expected = [to_unary, *(others[:2] if need_features else ()), *(others[2:] if need_compat else ())]
        result = ops.dense_crf_backward(grad, unary, *rest, history, need_features, need_compat)
        assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


def photo_problem(width: int = 320, height: int = 240) -> tuple[Tensor, list[Tensor], list[Tensor], int, list[int]]:
    """Several chunks of points."""
    image = torch.from_numpy(photo("coffee", height, width).copy()).permute(2, 0, 1).float()
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    features = [torch.stack([x, y])[None] / 3, torch.cat([torch.stack([x, y]) / 67, image / 3])[None]]
    return 3 * random(1, 1, 7, height, width), features, [torch.tensor(3.0), 2 * random(2, 7, 7)], 3, [3, 3]


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("problem", [photo_problem, CRFSample("", batch=5).inputs], ids=["chunks", "images"])
def test_same_bits_with_any_number_of_threads(problem: Callable, threads: int):
    """Threads share out parts of a large image, or else whole images."""
    unary, *rest = problem()
    grad = gradient(unary)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            Q, history = ops.dense_crf_history(unary, *rest)
            again = ops.dense_crf_backward(grad, unary, *rest, None, True, True)
            results.append([Q, history, *ops.dense_crf_backward(grad, unary, *rest, history, True, True), *again])
            results[-1].append(ops.permutohedral_filter_backward_features(grad, unary, rest[0][1]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_batch_is_as_single_images():
    unary, features, compat, iterations, normalization = CRFSample("", batch=3).inputs()
    grad = gradient(unary)

    def run(n: slice) -> list[Tensor]:
        rest = ([f[n] for f in features], compat, iterations, normalization)
        Q, history = ops.dense_crf_history(unary[n], *rest)
        return [Q, *ops.dense_crf_backward(grad[n], unary[n], *rest, history, True, False)]

    singles = [run(slice(n, n + 1)) for n in range(3)]
    for k, together in enumerate(run(slice(None))):
        assert torch.equal(together, torch.cat([single[k] for single in singles]))


def test_transposed_filter_on_a_photo():
    """<Kx, y> = <x, K'y>, where K' is what the backward pass applies."""
    _, (_, features), *_ = photo_problem()
    x, y = random(4, 1, 4, 240, 320), random(5, 1, 4, 240, 320)
    leaf = x.clone().requires_grad_()
    out = deeplab_fast.permutohedral_filter(leaf, features)
    out.backward(y)
    left, right = (out.double() * y).sum().item(), (leaf.grad.double() * x).sum().item()
    assert np.isclose(left, right, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grad": torch.zeros(1, 4, 13, 11)}, "grad: shape should be that of unary"),
        (
            {"history": torch.zeros(5, 2, 143, 3)},
            "history: should be float32 .iterations, N, points, K. and contiguous",
        ),
        ({"history": torch.zeros(5, 2, 143, 4).double()}, "history: should be float32"),
        ({"features": []}, "features, compat, normalization: should have one entry per kernel each"),
        ({"compat": [torch.zeros(3), torch.zeros(())]}, "compat: should be a number, .K,. or .K, K. with K = 4"),
        ({"iterations": -1}, "iterations: should be 0 or more"),
    ],
)
def test_refuses(changes: dict, message: str):
    names = ("unary", "features", "compat", "iterations", "normalization")
    arguments = dict(zip(names, CRFSample("").inputs(), strict=True))
    arguments |= {"grad": arguments["unary"], "history": None, "need_features": True, "need_compat": True} | changes
    order = ("grad", *names, "history", "need_features", "need_compat")
    # Before torch 2.13 the message does not survive.
    with pytest.raises((ValueError, RuntimeError), match=f"{message}|API call failed"):
        ops.dense_crf_backward(*(arguments[name] for name in order))
