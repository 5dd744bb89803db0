"""The spatial kernel at a deviation of one pixel, which has a stencil, beside the lattice that it stands for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from deeplab_fast.pydensecrf import densecrf as dcrf

NORMALIZATIONS = {
    "none": dcrf.NO_NORMALIZATION,
    "before": dcrf.NORMALIZE_BEFORE,
    "after": dcrf.NORMALIZE_AFTER,
    "symmetric": dcrf.NORMALIZE_SYMMETRIC,
}


def both(
    width: int, height: int, labels: int, weight: Any = 2.0, normalization: int = dcrf.NORMALIZE_SYMMETRIC
) -> Iterator[dcrf.DenseCRF]:
    """A CRF of an image; and one of the same points without their width, which filters with the lattice."""
    generator = np.random.default_rng(0)
    unary = generator.random((labels, height * width), dtype=np.float32) * 3
    colour = generator.random((3, height * width), dtype=np.float32) * 5
    y, x = np.mgrid[:height, :width].reshape(2, -1).astype(np.float32)
    for image in (True, False):
        made = dcrf.DenseCRF2D(width, height, labels) if image else dcrf.DenseCRF(width * height, labels)
        made.setUnaryEnergy(unary)
        if image:
            made.addPairwiseGaussian(1, weight, normalization=normalization)
        else:
            made.addPairwiseEnergy(np.stack([x, y]), weight, normalization=normalization)
        made.addPairwiseEnergy(np.concatenate([[x / 20, y / 20], colour]).astype(np.float32), 1.5)
        yield made


@pytest.mark.parametrize("labels", [1, 2, 3, 8, 21, 40])
@pytest.mark.parametrize("normalization", NORMALIZATIONS.values(), ids=NORMALIZATIONS.keys())
def test_equals_the_lattice(labels: int, normalization: int) -> None:
    stencil, lattice = both(37, 41, labels, normalization=normalization)
    np.testing.assert_allclose(stencil.inference(3), lattice.inference(3), atol=1e-5)


# From 22 lines on there is a stencil; images narrower than its reach; several chunks, blocks that end anywhere.
@pytest.mark.parametrize("size", [(1, 30), (2, 22), (3, 23), (5, 21), (31, 22), (64, 65), (500, 90), (1203, 41)])
@pytest.mark.parametrize("labels", [2, 5])
def test_any_size(size: tuple[int, int], labels: int) -> None:
    stencil, lattice = both(*size, labels)
    np.testing.assert_allclose(stencil.inference(3), lattice.inference(3), atol=1e-5)


@pytest.mark.parametrize("labels", [2, 4])
def test_step_by_step(labels: int) -> None:
    results = []
    for made in both(33, 29, labels):
        q, first, second = made.startInference()
        for _ in range(3):
            made.stepInference(q, first, second)
        results.append((np.asarray(q).copy(), made.klDivergence(q)))
    np.testing.assert_allclose(results[0][0], results[1][0], atol=1e-5)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5)


# They have a stencil, too, or the lattice: the answers are the same.
@pytest.mark.parametrize("compat", ["repulsive", "diagonal", "matrix"])
def test_other_compatibilities(compat: str) -> None:
    matrix = np.random.default_rng(1).random((4, 4), dtype=np.float32)
    weight = {"repulsive": -1.5, "diagonal": np.asarray([1, 2, 0, 1], np.float32), "matrix": matrix + matrix.T}[compat]
    stencil, lattice = both(30, 40, 4, weight)
    np.testing.assert_allclose(stencil.inference(4), lattice.inference(4), atol=1e-5)


@pytest.mark.parametrize("labels", [2, 4])
def test_gradients_with_and_without_history(labels: int) -> None:
    """Q that is inferred again has the same bits; the gradients are those of the lattice."""
    torch = pytest.importorskip("torch")
    from deeplab_fast import reference
    from deeplab_fast.ops import dense_crf

    generator = torch.Generator().manual_seed(0)
    unary = torch.rand(1, labels, 24, 25, generator=generator) * 3
    grid = torch.stack(torch.meshgrid(torch.arange(24.0), torch.arange(25.0), indexing="ij")[::-1])[None]
    gradients = []
    for function, options in ((dense_crf, {"recompute": False}), (dense_crf, {"recompute": True}), (None, {})):
        leaf = unary.clone().requires_grad_()
        compute = function or reference.dense_crf
        q = compute(leaf, [grid], [torch.tensor(2.0)], 5, **options)
        (q * torch.linspace(0, 1, q.numel()).reshape(q.shape)).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], gradients[2], rtol=1e-3, atol=1e-5)


def test_high_energies_do_not_overflow() -> None:
    """Weights so large that exp of an energy, taken as it is, would be infinite."""
    stencil, lattice = (np.asarray(made.inference(4)) for made in both(40, 40, 3, 500.0))
    assert np.isfinite(stencil).all()
    np.testing.assert_allclose(stencil.sum(axis=0), 1, atol=1e-5)
    assert (stencil.argmax(0) == lattice.argmax(0)).mean() > 0.999
