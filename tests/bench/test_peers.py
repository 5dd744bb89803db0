"""Peers that are written here, for want of a package: each against its definition, on small pictures."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # last, as these tests may run against an installed package

torch = pytest.importorskip("torch")

from bench.conv_crf import conv_crf  # noqa: E402


def exact(image: np.ndarray, prob: np.ndarray, radius: int, iterations: int) -> np.ndarray:
    """Mean field with all pairs of pixels, those further apart than `radius` left out."""
    classes, height, width = prob.shape
    places = np.stack(np.mgrid[:height, :width]).reshape(2, -1).T.astype(float)
    colours = image.reshape(3, -1).T
    near = np.abs(places[:, None] - places).max(axis=2) <= radius
    kernel = np.zeros((height * width, height * width))
    for weight, features in ((3, places / 3), (10, np.hstack([places / 50, colours / 5]))):
        gauss = near * np.exp(-0.5 * np.square(features[:, None] - features).sum(axis=2))
        norm = np.sqrt(gauss.sum(axis=1))
        kernel += weight * gauss / norm / norm[:, None]
    unary = -np.log(prob.reshape(classes, -1))
    Q = np.exp(-unary)
    for _ in range(iterations):
        Q = np.exp(Q @ kernel - unary)
        Q /= Q.sum(axis=0)
    return Q.reshape(prob.shape)


@pytest.mark.parametrize("radius", [1, 2, 9])
def test_conv_crf_is_mean_field_in_a_window(radius):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 40, (3, 6, 7)).astype(np.float32)
    prob = rng.dirichlet([1, 1, 1], (6, 7)).transpose(2, 0, 1).astype(np.float32).clip(1e-4)
    prob /= prob.sum(axis=0)
    Q = conv_crf(torch.from_numpy(image), torch.from_numpy(prob), radius=radius, iterations=4).numpy()
    np.testing.assert_allclose(Q, exact(image, prob, radius, 4), atol=1e-4)


def test_bilateral_solver_fills_in_along_edges():
    pytest.importorskip("scipy")
    from bench.bilateral_solver import solve

    image = np.full((40, 60, 3), 30, np.uint8)
    image[:, 30:] = 220
    truth = np.zeros((40, 60), np.float32)
    truth[:, 30:] = 1
    confidence = np.zeros_like(truth)
    confidence[::8, ::8] = 1  # known in few places, anything elsewhere
    targets = np.where(confidence > 0, truth, 0.5)
    found = solve(image, np.stack([targets, 1 - targets]), np.stack([confidence, confidence]))
    assert found.shape == (2, 40, 60)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[0] > 0.5, truth > 0.5)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-2)  # it is linear in the targets
    same = solve(image, np.full((1, 40, 60), 0.3), np.ones((1, 40, 60)))
    np.testing.assert_allclose(same, 0.3, atol=1e-4)
