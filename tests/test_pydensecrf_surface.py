"""The drop-in can stand wherever pydensecrf does, and accepts what pydensecrf should have accepted."""

from __future__ import annotations

import enum
import subprocess
import sys
import textwrap

import numpy as np
import pydensecrf.densecrf as peer
import pytest
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


def python(code: str, **environment: str) -> str:
    """Output of a fresh interpreter."""
    import os

    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_every_public_name_of_the_peer():
    # Left out: modules and helpers that the peer's module happens to import.
    names = {n for n in dir(peer) if not n.startswith("_")} - {"Number", "eigen"}
    assert names <= set(dir(ours))
    assert names <= set(ours.__all__)
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


def test_install_as_pydensecrf():
    out = python("""
        import deeplab_fast.pydensecrf
        deeplab_fast.pydensecrf.install_as_pydensecrf()
        import pydensecrf.densecrf as dcrf
        from pydensecrf.utils import unary_from_labels
        from pydensecrf import densecrf, utils
        import pydensecrf
        deeplab_fast.pydensecrf.install_as_pydensecrf()
        assert dcrf is densecrf is pydensecrf.densecrf and utils is pydensecrf.utils
        print(dcrf.DenseCRF2D.__module__, unary_from_labels.__module__)
    """)
    assert out == "deeplab_fast.pydensecrf.densecrf deeplab_fast.pydensecrf.utils"


@pytest.mark.parametrize("module", ["pydensecrf", "pydensecrf.densecrf", "pydensecrf.utils"])
def test_install_after_the_real_one(module):
    out = python(f"""
        import {module}
        import sys
        before = dict(sys.modules)
        import deeplab_fast.pydensecrf
        try:
            deeplab_fast.pydensecrf.install_as_pydensecrf()
        except RuntimeError as error:
            print(error)
        import pydensecrf
        assert pydensecrf is before["pydensecrf"]
    """)
    assert "too late" in out
    assert "pydensecrf has been imported from" in out


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
