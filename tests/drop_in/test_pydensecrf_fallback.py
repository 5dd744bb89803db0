"""Without the compiled module the same classes run on numpy, say so once, and give the same answers."""

from __future__ import annotations

import sys

import numpy as np
import pydensecrf.densecrf as peer
import pytest
from agreement import NORMALIZATIONS, add_preset, assert_agree, compare, peer_filter
from fresh_python import python
from photos import photo, unary

import deeplab_fast.pydensecrf.densecrf as ours
from deeplab_fast.pydensecrf import _backend, _fallback


@pytest.fixture
def numpy_core(monkeypatch):
    monkeypatch.setattr(ours, "core", lambda: _fallback)
    monkeypatch.setattr(_backend, "core", lambda: _fallback)


@pytest.mark.parametrize("preset", ["deeplab", "irn", "psa"])
def test_photo(numpy_core, preset):
    image = photo("astronaut", 75, 101)

    def build(crf, module):
        crf.setUnaryEnergy(unary(image, 5))
        add_preset(crf, image, preset)

    compare(build, (101, 75), 5)


@pytest.mark.parametrize("normalization", NORMALIZATIONS, ids=lambda n: n.name)
@pytest.mark.parametrize("compat", [3.0, np.float32([-1, -2, 0.5]), np.float32(-3 * np.eye(3) + 0.1)], ids=np.ndim)
def test_normalisations_and_compats(numpy_core, normalization, compat):
    rng = np.random.default_rng(0)
    features, energy = (
        rng.normal(0, 5, (3, 1001)).astype(np.float32),
        rng.uniform(0, 3, (3, 1001)).astype(np.float32),
    )

    def build(crf, module):
        crf.setUnaryEnergy(energy)
        crf.addPairwiseEnergy(features, compat, normalization=module.NormalizationType(normalization))

    compare(build, (1001,), 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (16, 2)], ids=str)
@pytest.mark.parametrize("labels", [1, 2, 9])
def test_sizes(numpy_core, size, labels):
    image = photo("rocket", size[1], size[0])

    def build(crf, module):
        crf.setUnaryEnergy(unary(image, labels))
        add_preset(crf, image, "afa")

    compare(build, size, labels)


def test_steps_and_kl_divergence(numpy_core):
    image = photo("coffee", 31, 42)
    states, crfs = [], []
    for module in (ours, peer):
        crf = module.DenseCRF2D(42, 31, 3)
        crf.setUnaryEnergy(unary(image, 3))
        add_preset(crf, image, "irn")
        state = crf.startInference()
        for _ in range(3):
            crf.stepInference(*state)
        states.append(state[0])
        crfs.append(crf)
    assert_agree(*states)
    assert crfs[0].klDivergence(states[0]) == pytest.approx(crfs[1].klDivergence(states[1]), rel=1e-5)


@pytest.mark.parametrize("dims", [1, 2, 3, 5, 6, 12])
def test_one_filter(dims):
    rng = np.random.default_rng(dims)
    features, values = (
        rng.normal(0, 4, (dims, 999)).astype(np.float32),
        rng.uniform(0.5, 1, (2, 999)).astype(np.float32),
    )
    result, expected = _fallback.Lattice(features).filter(values), peer_filter(features, values)
    relevant = expected > 0.1 * expected.max()  # see peer_filter
    assert np.abs(result / expected - 1)[relevant].max() <= 1e-5


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_the_reverse_filter_is_the_adjoint(dims):
    rng = np.random.default_rng(dims)
    lattice = _fallback.Lattice(rng.normal(0, 4, (dims, 202)).astype(np.float32))
    a, b = rng.normal(size=(2, 1, 202)).astype(np.float32)
    assert np.vdot(a, lattice.filter(b)) == pytest.approx(np.vdot(lattice.filter(a, reverse=True), b), rel=1e-4)


def test_lattice_arrays():
    lattice = _fallback.Lattice(np.random.default_rng(0).normal(0, 4, (3, 50)).astype(np.float32))
    assert (lattice.points, lattice.dimensions) == (50, 3)
    count = lattice.vertex_count
    for array, shape, dtype in (
        (lattice.keys(), (count, 3), np.int32),
        (lattice.vertices(), (50, 4), np.int32),
        (lattice.weights(), (50, 4), np.float32),
        (lattice.neighbours(), (4, 2, count), np.int32),
    ):
        assert (array.shape, array.dtype) == (shape, dtype)
    assert np.allclose(lattice.weights().sum(axis=1), 1, atol=1e-5)
    assert len(np.unique(lattice.keys(), axis=0)) == count


@pytest.mark.skipif(
    "deeplab_fast._densecrf" not in sys.modules and _backend.core() is _fallback, reason="not built here"
)
def test_both_cores_offer_the_same():
    from deeplab_fast import _densecrf

    names = {"Lattice", "DenseCRF", "set_num_threads", "get_num_threads", "isa", "build_info"}
    for module in (_densecrf, _fallback):
        assert names <= set(dir(module))
    for name in ("Lattice", "DenseCRF"):
        offered = {n for n in dir(getattr(_densecrf, name)) if not n.startswith("_")}
        assert offered <= set(dir(getattr(_fallback, name))) | {"points", "labels", "dimensions"}


def test_one_warning_without_the_compiled_module():
    out = python("""
        import sys, warnings
        sys.modules["deeplab_fast._densecrf"] = None  # makes its import fail
        import numpy as np
        import deeplab_fast.pydensecrf.densecrf as dcrf
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                dcrf.DenseCRF(8, 2).inference(1)
        print(len(caught), caught[0].category.__name__, "numpy" in str(caught[0].message), dcrf.core().isa())
    """)
    assert out == "1 RuntimeWarning True numpy"
