"""The specification against what it specifies: pydensecrf, the Gaussian it approximates, and its own mathematics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from samples import FILTER_SAMPLES, FilterSample, by_name, positions, random

from deeplab_fast import reference

LABELS = 3


@pytest.fixture(scope="module")
def peer():
    return pytest.importorskip("pydensecrf.densecrf")


@pytest.fixture(scope="module")
def compiled():
    return pytest.importorskip("deeplab_fast._densecrf")


# --- pydensecrf ----------------------------------------------------------------------------------------------------


def peer_crf(peer, unary: torch.Tensor, features: torch.Tensor, compat, normalization: int):
    labels, points = unary.shape
    crf = peer.DenseCRF(points, labels)
    crf.setUnaryEnergy(unary.numpy())
    crf.addPairwiseEnergy(features.numpy(), compat, normalization=peer.NormalizationType(normalization))
    return crf


def compats(labels: int) -> dict[str, float | np.ndarray]:
    matrix = 2 * random(7, labels, labels).numpy() - 1
    return {"number": 2.5, "vector": -4 * random(8, labels).numpy(), "matrix": matrix}


@pytest.mark.parametrize("points", [96, 97, 98, 99])
@pytest.mark.parametrize("form", ["number", "vector", "matrix"])
@pytest.mark.parametrize("normalization", range(4))
def test_agrees_with_pydensecrf(peer, normalization, form, points):
    unary = 3 * random(1, LABELS, points)
    features = positions((points,), 1, 5, 4)[0]
    compat = compats(LABELS)[form]
    expected = np.array(peer_crf(peer, unary, features, compat, normalization).inference(10))
    Q = reference.dense_crf(unary[None], features[None], compat, 10, normalization)[0].numpy()
    assert np.abs(Q - expected).max() < 1e-4
    assert np.abs(Q - expected).mean() < 1e-6


@pytest.mark.parametrize("dimensions", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("spread", [0.1, 3, 100])
def test_agrees_with_pydensecrf_in_any_dimension(peer, dimensions, spread):
    unary = 3 * random(1, LABELS, 150)
    features = spread * random(2, dimensions, 150)
    expected = np.array(peer_crf(peer, unary, features, 3.0, reference.NORMALIZE_SYMMETRIC).inference(5))
    Q = reference.dense_crf(unary[None], features[None], 3.0, 5)[0].numpy()
    assert np.abs(Q - expected).max() < 2e-6


@pytest.mark.parametrize("labels", [1, 2, 21])
@pytest.mark.parametrize("normalization", range(4))
def test_steps_agree_with_pydensecrf(peer, labels, normalization):
    """From beliefs of one's own, one iteration at a time."""
    unary, features = 3 * random(1, labels, 61), positions((61,), 1, 3, 5)[0]
    crf = peer_crf(peer, unary, features, 2.0, normalization)
    expected, *scratch = crf.startInference()
    Q = random(3, labels, 61)
    np.asarray(expected)[:] = Q
    kernels = [reference.build_kernel(features, torch.tensor(2.0), normalization)]
    Q = Q.t()
    for _ in range(3):
        crf.stepInference(expected, *scratch)
        Q = reference.mean_field_step(Q, unary.t(), kernels)
        assert np.abs(Q.t().numpy() - np.asarray(expected)).max() < 2e-6


# --- The lattice ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [1, 2, 3, 5, 6, 8, 11])
@pytest.mark.parametrize("spread", [0.1, 3, 30])
@pytest.mark.parametrize("points", [1, 3, 4, 503])
def test_lattice_is_the_compiled_one(compiled, dimensions, spread, points):
    """Vertex for vertex, bit for bit; only the numbering is free."""
    features = (spread * (random(dimensions, dimensions, points) - 0.5)).contiguous()
    theirs, ours = compiled.Lattice(features.numpy()), reference.build_lattice(features)
    assert theirs.vertex_count == ours.vertex_count
    row = {tuple(key): row for row, key in enumerate(theirs.keys().tolist())}
    rows = np.array([row[tuple(key)] for key in ours.keys.tolist()] + [-1])  # ours -> theirs; the last: no neighbour
    np.testing.assert_array_equal(rows[ours.vertices], theirs.vertices())
    np.testing.assert_array_equal(ours.barycentric, theirs.weights())
    np.testing.assert_array_equal(rows[ours.neighbours], theirs.neighbours()[:, :, rows[:-1]])


@pytest.mark.parametrize("sample", FILTER_SAMPLES, ids=by_name)
def test_lattice_is_consistent(sample: FilterSample):
    for features in sample.inputs()[1].flatten(2):
        lattice = reference.build_lattice(features)
        points, dimensions = features.shape[1], sample.dimensions
        rows = torch.arange(lattice.vertex_count)
        assert lattice.vertices.shape == lattice.barycentric.shape == (points, dimensions + 1)
        assert lattice.keys.unique(dim=0).shape == lattice.keys.shape
        torch.testing.assert_close(lattice.barycentric.sum(dim=1), torch.ones_like(lattice.barycentric[:, 0]))
        # Coordinates of a vertex of remainder k are congruent to k, modulo D+1, along every axis.
        remainder = lattice.keys[lattice.vertices].remainder(dimensions + 1)
        assert (remainder == torch.arange(dimensions + 1)[:, None]).all()
        for behind, ahead in lattice.neighbours:  # the neighbour's neighbour on the other side is oneself
            has = ahead < lattice.vertex_count
            assert (behind[ahead[has]] == rows[has]).all()


def test_number_of_points_not_a_multiple_of_four_adds_the_simplex_at_zero():
    features = torch.full((2, 4), 50.0)
    assert reference.build_lattice(features).vertex_count == 3
    assert reference.build_lattice(features[:, :3]).vertex_count == 6


def test_float64_features_make_a_float64_lattice():
    features = positions((30,), 1, 3, 5)[0].double()
    lattice = reference.build_lattice(features)
    assert lattice.barycentric.dtype == torch.float64
    torch.testing.assert_close(
        lattice.filter(torch.ones(1, 30, dtype=torch.float64)),
        reference.build_lattice(features.float()).filter(torch.ones(1, 30)).double(),
        rtol=0.05,
        atol=0,
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_features_must_be_finite(value, dtype):
    features = torch.zeros(2, 5, dtype=dtype)
    features[1, 3] = value
    with pytest.raises(ValueError, match="features: there are NaN or infinite values, all should be finite"):
        reference.build_lattice(features)


@pytest.mark.parametrize("value", [3e4, -3e4, 1e20, 3e38])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_keys_must_fit_16_bits(value, dtype):
    features = torch.zeros(3, 4, dtype=dtype)
    features[0, 2] = value
    with pytest.raises(ValueError, match=r"features: key range overflow: .* standard deviations .* larger"):
        reference.build_lattice(features)


@pytest.mark.parametrize("shape", [(5,), (0, 5), (5, 0), (1, 2, 3)])
def test_lattice_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"features: shape is .*, should be \(D, P\)"):
        reference.build_lattice(torch.zeros(shape))


# --- Mathematics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [1, 2, 3, 5])
def test_filter_approximates_a_gaussian(dimensions):
    """The normalised filter is within 5 % of the exact one: the lattice is an approximation."""
    features = 3 * random(1, 1, dimensions, 800)
    values = features[:, :1]  # smooth in the features
    filtered = reference.permutohedral_filter(torch.cat([values, torch.ones_like(values)], dim=1), features)[0]
    kernel = torch.exp(-0.5 * torch.cdist(features[0].t(), features[0].t()).square())
    exact = (kernel @ values[0, 0]) / kernel.sum(dim=1)
    assert (filtered[0] / filtered[1] - exact).abs().max() < 0.05 * 3


@pytest.mark.parametrize("sample", FILTER_SAMPLES, ids=by_name)
def test_reverse_is_the_adjoint(sample: FilterSample):
    values, features = sample.inputs()
    values = values.double()
    other = random(11, *values.shape).double()
    forward = (reference.permutohedral_filter(values, features) * other).sum()
    adjoint = (values * reference.permutohedral_filter(other, features, reverse=True)).sum()
    torch.testing.assert_close(forward, adjoint, rtol=1e-12, atol=1e-12)


def test_filter_is_differentiable_with_respect_to_values():
    features = positions((4, 3), 1, 3, 3)
    values = random(1, 1, 2, 4, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: reference.permutohedral_filter(v, features), values)


@pytest.mark.parametrize("normalization", range(4))
@pytest.mark.parametrize("form", ["number", "vector", "matrix"])
def test_crf_is_differentiable_with_respect_to_unary_and_compat(form, normalization):
    features = positions((4, 3), 1, 3, 3)
    unary = random(1, 1, LABELS, 4, 3).double().requires_grad_()
    compat = torch.tensor(compats(LABELS)[form]).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda u, c: reference.dense_crf(u, features, c, 2, normalization), (unary, compat))


def test_batch_is_each_image_by_itself():
    features, values = positions((7, 5), 3, 5, 4, seed=1), random(2, 3, 4, 7, 5)
    whole = reference.dense_crf(values, features, 2.0, 3)
    for n in range(3):
        single = reference.dense_crf(values[n : n + 1], features[n : n + 1], 2.0, 3)
        torch.testing.assert_close(whole[n : n + 1], single, rtol=0, atol=0)


@pytest.mark.cuda
@pytest.mark.parametrize("sample", FILTER_SAMPLES, ids=by_name)
def test_lattice_is_the_same_on_a_gpu(sample: FilterSample):
    for features in sample.inputs()[1].flatten(2):
        here, there = reference.build_lattice(features), reference.build_lattice(features.cuda()).to("cpu")
        for table in ("vertices", "barycentric", "neighbours", "keys"):
            torch.testing.assert_close(getattr(here, table), getattr(there, table), rtol=0, atol=0)
