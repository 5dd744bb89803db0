"""The drop-in can stand wherever pydensecrf does, and accepts what pydensecrf should have accepted."""

from __future__ import annotations

import contextlib
import enum

import numpy as np
import pydensecrf.densecrf as peer
import pytest
from fresh_python import python
from photos import photo, unary

import deeplab_fast.pydensecrf
import deeplab_fast.pydensecrf.densecrf as ours

IMAGE = photo("coffee", 23, 31)
ENERGY = unary(IMAGE, 4)
POINTS = 23 * 31


def model(module=ours, energy=ENERGY):
    crf = module.DenseCRF2D(31, 23, 4)
    crf.setUnaryEnergy(energy)
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=50, srgb=5, rgbim=IMAGE.copy(), compat=10)
    return crf


def test_every_public_name_of_the_peer():
    names = {n for n in dir(peer) if not n.startswith("_")}
    assert names <= set(dir(ours))
    assert names - {"Number", "eigen"} <= set(ours.__all__)  # which the peer's module happens to import
    assert {n for n in dir(peer.eigen) if not n.startswith("_")} <= set(ours.eigen.__all__)
    for name in ("DenseCRF", "DenseCRF2D", "ConstUnary", "LogisticUnary"):
        methods = {n for n in dir(getattr(peer, name)) if not n.startswith("_")}
        assert methods <= set(dir(getattr(ours, name)))


@pytest.mark.parametrize("name", ["KernelType", "NormalizationType"])
def test_enums(name):
    kind, theirs = getattr(ours, name), getattr(peer, name)
    assert issubclass(kind, enum.IntEnum)
    assert {m.name: m.value for m in kind} == {m.name: m.value for m in theirs}
    for member in kind:
        assert getattr(ours, member.name) is member
    model().addPairwiseEnergy(np.ones((1, POINTS), np.float32), 1, theirs(0) if name == "KernelType" else 0, 3)


def test_the_result_is_laid_out_as_the_peers():
    result, expected = model().inference(3), np.asarray(model(peer).inference(3))
    assert isinstance(result, np.ndarray)
    assert (result.shape, result.strides, result.dtype) == (expected.shape, expected.strides, expected.dtype)
    assert memoryview(result).format == memoryview(expected).format
    assert np.array_equal(np.array(result), result)
    assert np.array_equal(np.argmax(result, axis=0), np.argmax(expected, axis=0))
    assert np.allclose(result.sum(axis=0), 1, atol=1e-5)
    assert result.flags.writeable


def test_width_comes_first():
    crf = ours.DenseCRF2D(31, 23, 4)
    crf.addPairwiseBilateral(3, 3, IMAGE, 1)
    with pytest.raises(ValueError, match=r"\(31, 23, 3\)"):
        ours.DenseCRF2D(23, 31, 4).addPairwiseBilateral(3, 3, IMAGE, 1)
    named = ours.DenseCRF2D(w=31, h=23, nlabels=4)
    named.addPairwiseBilateral(3, 3, IMAGE, 1)
    ours.DenseCRF(nvar=5, nlabels=2).setUnaryEnergy(u=np.zeros((2, 5), np.float32))


def test_results_are_independent():
    crf = model()
    first = crf.inference(2)
    copy = first.copy()
    crf.inference(5)
    energy = ENERGY.copy()
    crf.setUnaryEnergy(energy)
    energy[...] = 0
    assert np.array_equal(first, copy)
    assert np.array_equal(crf.inference(2), copy)


def test_strides_and_dtypes():
    expected = model().inference(3)
    for energy in (
        np.asfortranarray(ENERGY),
        ENERGY.astype(np.float64),
        np.repeat(ENERGY, 2, axis=1)[:, ::2],
        ENERGY[:, ::-1].copy()[:, ::-1],
        ENERGY.tolist(),
    ):
        assert np.array_equal(model(energy=energy).inference(3), expected)
    crf = ours.DenseCRF2D(31, 23, 4)
    crf.setUnaryEnergy(ENERGY)
    crf.addPairwiseGaussian(np.array([3.0, 3.0]), np.float64(3))
    crf.addPairwiseBilateral([50, 50], np.float32(5), np.asfortranarray(IMAGE), 10)
    assert np.array_equal(crf.inference(3), expected)
    flipped = ours.DenseCRF2D(31, 23, 4)
    flipped.setUnaryEnergy(ENERGY)
    flipped.addPairwiseGaussian(3, 3)
    flipped.addPairwiseBilateral(50, 5, IMAGE[..., ::-1].copy()[..., ::-1], 10)
    assert np.array_equal(flipped.inference(3), expected)


def test_features_and_compat_of_any_real_dtype():
    features = np.random.default_rng(0).integers(-9, 9, (3, POINTS))
    matrix = np.arange(16.0).reshape(4, 4) / 10
    beliefs = []
    for cast in (np.float32, np.float64, lambda a: np.asfortranarray(a, np.float32)):
        crf = ours.DenseCRF(POINTS, 4)
        crf.setUnaryEnergy(ENERGY)
        crf.addPairwiseEnergy(cast(features), cast(matrix))
        crf.addPairwiseEnergy(features, list(matrix[1]))
        beliefs.append(crf.inference(3))
    assert all(np.array_equal(q, beliefs[0]) for q in beliefs)


@pytest.mark.parametrize("cast", [float, np.float32, np.float64, np.array, np.int16, lambda n: n + 0.7], ids=str)
def test_sizes_and_counts_of_any_number(cast):
    """A fraction is cut off, as in the peer."""
    results = []
    for module in (ours, peer):
        crf = module.DenseCRF2D(cast(31), cast(23), cast(4))
        crf.setUnaryEnergy(ENERGY)
        crf.addPairwiseGaussian(3, 3, kernel=cast(0), normalization=cast(2))
        results.append(np.array(crf.inference(cast(2))))
        module.DenseCRF(cast(POINTS), cast(4)).setUnaryEnergy(ENERGY)
    np.testing.assert_allclose(*results, atol=1e-6)
    again = model()
    assert np.array_equal(again.inference(2.0), again.inference(2))


def test_of_more_sigmas_than_needed_the_first_count():
    beliefs = []
    for module, more in ((ours, (9,)), (ours, ()), (peer, (9,))):
        crf = module.DenseCRF2D(31, 23, 4)
        crf.setUnaryEnergy(ENERGY)
        with contextlib.ExitStack() as stack:
            if more and module is ours:
                stack.enter_context(pytest.warns(RuntimeWarning, match="sxy has 3 values, only the first 2"))
                stack.enter_context(pytest.warns(RuntimeWarning, match="srgb has 4 values, only the first 3"))
            crf.addPairwiseGaussian((3, 4, *more), 3)
            crf.addPairwiseBilateral((50, 40, *more), (5, 6, 7, *more), IMAGE.copy(), 3)
        beliefs.append(np.array(crf.inference(2)))
    assert np.array_equal(beliefs[0], beliefs[1])
    np.testing.assert_allclose(beliefs[0], beliefs[2], atol=1e-3)


def test_an_image_of_bools():
    mask = IMAGE > 100
    beliefs = []
    for module in (ours, peer):
        crf = module.DenseCRF2D(31, 23, 4)
        crf.setUnaryEnergy(ENERGY)
        crf.addPairwiseBilateral(20, 0.5, mask.copy(), 3)
        beliefs.append(np.array(crf.inference(2)))
    np.testing.assert_allclose(*beliefs, atol=1e-3)


def test_eigen():
    q = np.random.default_rng(0).dirichlet(np.ones(4), POINTS).T.astype(np.float32)
    copy, expected = ours.eigen.matrixXf(q), np.asarray(peer.eigen.matrixXf(np.ascontiguousarray(q)))
    assert (copy.shape, copy.strides, copy.dtype) == (expected.shape, expected.strides, expected.dtype)
    assert np.array_equal(copy, expected)
    vector = ours.eigen.vectorXf(q[0])
    assert np.array_equal(vector, np.asarray(peer.eigen.vectorXf(np.ascontiguousarray(q[0]))))
    states = [np.array(q), copy]
    crf = model()
    for state in states:
        crf.stepInference(state, ours.eigen.MatrixXf(), ours.eigen.MatrixXf())
    assert np.array_equal(*states)
    assert not np.array_equal(copy, q)
    assert isinstance(crf.inference(1), ours.eigen.MatrixXf)
    assert isinstance(vector, ours.eigen.VectorXf)
    assert not isinstance(vector, ours.eigen.MatrixXf)
    assert ours.eigen.VectorXf().shape == np.asarray(peer.eigen.VectorXf()).shape
    for call in (ours.eigen.matrixXf, ours.eigen.vectorXf):
        with pytest.raises(ValueError, match="arr must have"):
            call(np.zeros((2, 2, 2)))
        with pytest.raises(TypeError, match="arr"):
            call(None)


def test_step_changes_any_float_array_in_place():
    crf = model()
    q, tmp1, tmp2 = crf.startInference()
    others = [np.array(q, order="C"), q.astype(np.float64), np.repeat(q, 2, axis=1)[:, ::2]]
    assert crf.stepInference(q, tmp1, tmp2) is None
    for other in others:
        crf.stepInference(other)
        assert np.allclose(other, q, atol=1e-6)
    assert crf.klDivergence(others[0]) == crf.klDivergence(q)


def test_subclasses():
    class Cached(ours.DenseCRF2D):
        def __init__(self, image, labels, *, name="crf"):
            height, width, _ = image.shape
            super().__init__(width, height, labels)
            self.image, self.name = image, name

        def inference(self, niter):
            return super().inference(niter) + 0

    class Plain(ours.DenseCRF):
        pass

    class Forgetful(ours.DenseCRF):
        def __init__(self, nvar, nlabels):
            self.nvar = nvar

    crf = Cached(IMAGE, 4, name="mine")
    crf.setUnaryEnergy(ENERGY)
    crf.addPairwiseGaussian(3, 3)
    crf.addPairwiseBilateral(50, 5, crf.image, 10)
    assert np.array_equal(crf.inference(3), model().inference(3))
    Plain(POINTS, 4).setUnaryEnergy(ENERGY)
    for call in (
        lambda c: c.setUnaryEnergy(ENERGY),
        lambda c: c.addPairwiseEnergy(np.zeros((2, POINTS)), 1),
        lambda c: c.inference(1),
        lambda c: c.startInference(),
        lambda c: c.klDivergence(ENERGY),
    ):
        with pytest.raises(RuntimeError, match="super"):
            call(Forgetful(POINTS, 4))
    assert not hasattr(crf, "no_such_attribute")


def test_importing_and_computing_without_torch():
    out = python("""
        import sys
        import numpy as np
        from deeplab_fast.pydensecrf import densecrf, utils
        crf = densecrf.DenseCRF2D(5, 4, 2)
        crf.setUnaryEnergy(utils.unary_from_labels(np.arange(20) % 3, 2, 0.7))
        crf.addPairwiseGaussian(3, 3)
        crf.inference(2)
        loaded = {name.split(".")[0] for name in sys.modules}
        print(sorted(loaded & {"torch", "skimage", "scipy", "PIL", "typer", "rich"}))
    """)
    assert out == "[]"


def test_release_memory_leaves_objects_usable():
    crf = ours.DenseCRF2D(400, 300, 21)
    crf.setUnaryEnergy(np.random.default_rng(0).random((21, 400 * 300), dtype=np.float32))
    crf.addPairwiseGaussian(3, 3)
    before = crf.inference(2)
    kept = before.copy()
    for _ in range(2):
        deeplab_fast.pydensecrf.release_memory()
        np.testing.assert_array_equal(crf.inference(2), kept)
    np.testing.assert_array_equal(before, kept)
