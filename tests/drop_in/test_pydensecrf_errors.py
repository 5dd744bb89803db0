"""Bad input to the drop-in is refused in words; pydensecrf crashes or answers wrongly on much of it."""

from __future__ import annotations

import time

import numpy as np
import pytest
from photos import photo, unary

import deeplab_fast.pydensecrf.densecrf as dcrf
from deeplab_fast import _limits
from deeplab_fast.errors import ArgumentError
from deeplab_fast.pydensecrf import _backend

WIDTH, HEIGHT, LABELS = 6, 5, 3
POINTS = WIDTH * HEIGHT
IMAGE = photo("coffee", HEIGHT, WIDTH)
ENERGY = unary(IMAGE, LABELS)
FEATURES = np.zeros((2, POINTS), np.float32)
NAN = float("nan")


def changed(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array.flat[7] = value
    return array


def all_forbidden() -> np.ndarray:
    energy = ENERGY.copy()
    energy[:, 4] = np.inf
    return energy


CONSTRUCTORS = {
    "no points": (lambda: dcrf.DenseCRF(0, 3), "nvar"),
    "negative points": (lambda: dcrf.DenseCRF(-5, 3), "nvar"),
    "no labels": (lambda: dcrf.DenseCRF(5, 0), "nlabels"),
    "negative labels": (lambda: dcrf.DenseCRF2D(5, 5, -1), "nlabels"),
    "no width": (lambda: dcrf.DenseCRF2D(0, 5, 2), "w "),
    "negative height": (lambda: dcrf.DenseCRF2D(5, -5, 2), "h "),
    "two negative sides": (lambda: dcrf.DenseCRF2D(-5, -5, 2), "w "),
    "half a point": (lambda: dcrf.DenseCRF(0.5, 2), "nvar"),
    "points NaN": (lambda: dcrf.DenseCRF(NAN, 2), "nvar.*nan"),
    "points Inf": (lambda: dcrf.DenseCRF(np.inf, 2), "nvar.*inf"),
    "points text": (lambda: dcrf.DenseCRF("5", 2), "nvar"),
    "points numpy text": (lambda: dcrf.DenseCRF(np.str_("5"), 2), "nvar"),
    "labels beyond an int": (lambda: dcrf.DenseCRF(1, 2**40), "nlabels.*2147483647|too large"),
    "labels None": (lambda: dcrf.DenseCRF(5, None), "nlabels"),
    "abstract unary": (lambda: dcrf.Unary(), "ConstUnary"),
}

CALLS = {
    # setUnaryEnergy
    "energy of other points": (lambda c: c.setUnaryEnergy(ENERGY[:, 1:]), r"\(3, 30\).*\(3, 29\)"),
    "energy of other labels": (lambda c: c.setUnaryEnergy(ENERGY[1:]), r"\(3, 30\).*\(2, 30\)"),
    "energy transposed": (lambda c: c.setUnaryEnergy(ENERGY.T), "reshape"),
    "energy 3-D": (lambda c: c.setUnaryEnergy(ENERGY.reshape(LABELS, HEIGHT, WIDTH)), "2 dimensions"),
    "energy 1-D": (lambda c: c.setUnaryEnergy(ENERGY[0]), "2 dimensions"),
    "energy None": (lambda c: c.setUnaryEnergy(None), "u must not be None"),
    "energy complex": (lambda c: c.setUnaryEnergy(ENERGY * 1j), "real"),
    "energy text": (lambda c: c.setUnaryEnergy("energy"), "real"),
    "energy object": (lambda c: c.setUnaryEnergy(object()), "real"),
    "energy ragged": (lambda c: c.setUnaryEnergy([[1, 2], [3]]), "array"),
    "energy NaN": (lambda c: c.setUnaryEnergy(changed(ENERGY, NAN)), "NaN"),
    "energy -Inf": (lambda c: c.setUnaryEnergy(changed(ENERGY, -np.inf)), "Inf"),
    "energy +Inf for all labels": (lambda c: c.setUnaryEnergy(all_forbidden()), "at least one label"),
    "logistic, other features": (
        lambda c: c.setUnaryEnergy(np.ones((3, 4)), np.ones((5, POINTS))),
        r"\(3, 4\).*\(5, 30\)",
    ),
    "logistic, other labels": (
        lambda c: c.setUnaryEnergy(np.ones((2, 4)), np.ones((4, POINTS))),
        r"\(3, 30\)",
    ),
    "logistic, other points": (lambda c: c.setUnaryEnergy(np.ones((3, 4)), np.ones((4, 9))), r"\(3, 9\)"),
    "logistic NaN": (lambda c: c.setUnaryEnergy(np.ones((3, 4)), np.full((4, POINTS), NAN)), "NaN"),
    # setUnary
    "unary None": (lambda c: c.setUnary(None), "ConstUnary"),
    "unary array": (lambda c: c.setUnary(ENERGY), "ConstUnary"),
    "unary of other points": (lambda c: c.setUnary(dcrf.ConstUnary(ENERGY[:, 1:])), r"\(3, 30\)"),
    # addPairwiseEnergy
    "features of other points": (lambda c: c.addPairwiseEnergy(FEATURES[:, 1:], 1), r"\(D, 30\).*\(2, 29\)"),
    "features transposed": (lambda c: c.addPairwiseEnergy(FEATURES.T, 1), r"\(D, 30\)"),
    "features of dimension 0": (lambda c: c.addPairwiseEnergy(FEATURES[:0], 1), "at least 1"),
    "features 1-D": (lambda c: c.addPairwiseEnergy(FEATURES[0], 1), "2 dimensions"),
    "features None": (lambda c: c.addPairwiseEnergy(None, 1), "features"),
    "features NaN": (lambda c: c.addPairwiseEnergy(changed(FEATURES, NAN), 1), "NaN|finite"),
    "features Inf": (lambda c: c.addPairwiseEnergy(changed(FEATURES, np.inf), 1), "Inf|finite"),
    "features beyond float32": (
        lambda c: c.addPairwiseEnergy(FEATURES.astype(np.float64) + 1e300, 1),
        "Inf|finite",
    ),
    "features beyond 16-bit keys": (lambda c: c.addPairwiseEnergy(changed(FEATURES, 1e5), 1), "feature|key"),
    "features beyond 32-bit keys": (
        lambda c: c.addPairwiseEnergy(changed(FEATURES, -1e20), 1),
        "feature|key",
    ),
    # compat, kernel, normalization
    "compat None": (lambda c: c.addPairwiseGaussian(3, None), "compat"),
    "compat text": (lambda c: c.addPairwiseGaussian(3, "4"), "compat"),
    "compat complex": (lambda c: c.addPairwiseGaussian(3, 4j), "compat"),
    "compat NaN": (lambda c: c.addPairwiseGaussian(3, NAN), "compat"),
    "compat Inf": (lambda c: c.addPairwiseGaussian(3, np.full(LABELS, np.inf)), "compat"),
    "compat 0-D array": (lambda c: c.addPairwiseGaussian(3, np.array(3.0)), "compat"),
    "compat 3-D": (lambda c: c.addPairwiseGaussian(3, np.ones((3, 3, 3))), "compat"),
    "compat of other labels": (lambda c: c.addPairwiseGaussian(3, np.ones(4)), r"compat.*\(4,\)"),
    "compat not square": (lambda c: c.addPairwiseGaussian(3, np.ones((3, 4))), r"compat.*\(3, 4\)"),
    "kernel unknown": (lambda c: c.addPairwiseGaussian(3, 3, kernel=5), "kernel.*DIAG_KERNEL"),
    "normalization unknown": (
        lambda c: c.addPairwiseGaussian(3, 3, normalization=4),
        "normalization.*NORMALIZE_AFTER",
    ),
    "normalization None": (lambda c: c.addPairwiseGaussian(3, 3, normalization=None), "normalization"),
    # sigmas
    "sxy 0": (lambda c: c.addPairwiseGaussian(0, 3), "sxy"),
    "sxy negative": (lambda c: c.addPairwiseGaussian((3, -3), 3), "sxy"),
    "sxy NaN": (lambda c: c.addPairwiseGaussian(NAN, 3), "sxy"),
    "sxy Inf": (lambda c: c.addPairwiseBilateral(np.inf, 3, IMAGE, 3), "sxy"),
    "sxy below float32": (lambda c: c.addPairwiseGaussian(1e-60, 3), "sxy"),
    "sxy tiny": (lambda c: c.addPairwiseGaussian(1e-6, 3), "feature|key"),
    "sxy of one": (lambda c: c.addPairwiseGaussian((3,), 3), "sxy"),
    "sxy None": (lambda c: c.addPairwiseGaussian(None, 3), "sxy"),
    "sxy text": (lambda c: c.addPairwiseGaussian("3", 3), "sxy"),
    "srgb 0": (lambda c: c.addPairwiseBilateral(3, 0, IMAGE, 3), "srgb"),
    "srgb of two": (lambda c: c.addPairwiseBilateral(3, (3, 3), IMAGE, 3), "srgb"),
    "srgb NaN": (lambda c: c.addPairwiseBilateral(3, (3, NAN, 3), IMAGE, 3), "srgb"),
    # image
    "image transposed": (
        lambda c: c.addPairwiseBilateral(3, 3, IMAGE.transpose(1, 0, 2), 3),
        r"\(5, 6, 3\).*\(6, 5, 3\)",
    ),
    "image grey": (lambda c: c.addPairwiseBilateral(3, 3, IMAGE[..., 0], 3), r"\(5, 6, 3\)"),
    "image RGBA": (lambda c: c.addPairwiseBilateral(3, 3, IMAGE[..., [0, 1, 2, 2]], 3), r"\(5, 6, 3\)"),
    "image float": (lambda c: c.addPairwiseBilateral(3, 3, IMAGE / 255, 3), "uint8"),
    "image int": (lambda c: c.addPairwiseBilateral(3, 3, IMAGE.astype(int), 3), "uint8"),
    "image None": (lambda c: c.addPairwiseBilateral(3, 3, None, 3), "rgbim"),
    # inference
    "negative iterations": (lambda c: c.inference(-1), "niter"),
    "iterations NaN": (lambda c: c.inference(NAN), "niter.*nan"),
    "iterations beyond an int": (lambda c: c.inference(2**31), "niter"),
    "iterations text": (lambda c: c.inference("2"), "niter.*str"),
    "iterations None": (lambda c: c.inference(None), "NoneType"),
    "step on None": (lambda c: c.stepInference(None, None, None), "Q"),
    "step on a list": (lambda c: c.stepInference(ENERGY.tolist()), "Q"),
    "step on integers": (lambda c: c.stepInference(np.ones((LABELS, POINTS), int)), "Q"),
    "step on other points": (lambda c: c.stepInference(ENERGY[:, 1:].copy()), r"\(3, 30\).*\(3, 29\)"),
    "step on a read-only array": (
        lambda c: c.stepInference(np.broadcast_to(ENERGY[:, :1], (LABELS, POINTS))),
        "writ",
    ),
    "KL of other points": (lambda c: c.klDivergence(ENERGY[:, 1:]), r"\(3, 30\)"),
    "KL of None": (lambda c: c.klDivergence(None), "Q"),
    "collapse negative": (lambda c: c.setLabelCollapse(-0.1), "eps"),
    "collapse NaN": (lambda c: c.setLabelCollapse(NAN), "eps"),
    "collapse None": (lambda c: c.setLabelCollapse(None), "eps"),
}


@pytest.mark.parametrize(("call", "message"), CONSTRUCTORS.values(), ids=CONSTRUCTORS)
def test_constructors(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.fixture
def crf():
    crf = dcrf.DenseCRF2D(WIDTH, HEIGHT, LABELS)
    crf.setUnaryEnergy(ENERGY)
    crf.addPairwiseBilateral(3, 10, IMAGE, 2)
    return crf


@pytest.mark.parametrize(("call", "message"), CALLS.values(), ids=CALLS)
def test_calls(crf, call, message):
    before = crf.inference(2)
    with pytest.raises((ValueError, TypeError), match=message):
        call(crf)
    assert np.array_equal(crf.inference(2), before), "the refused call left something behind"


def test_errors_have_parts(crf):
    with pytest.raises(ArgumentError, match=r"niter must be in 0\.\.\d+, got -1") as caught:
        crf.inference(-1)
    assert (caught.value.name, caught.value.value) == ("niter", -1)


def test_a_unary_serves_once(crf):
    energy = dcrf.ConstUnary(ENERGY)
    crf.setUnary(energy)
    other = dcrf.DenseCRF2D(WIDTH, HEIGHT, LABELS)
    for target in (crf, other):
        with pytest.raises(ValueError, match="used"):
            target.setUnary(energy)


def test_a_refused_unary_can_be_set_elsewhere(crf):
    energy = dcrf.ConstUnary(ENERGY)
    with pytest.raises(ValueError, match="shape"):
        dcrf.DenseCRF(POINTS + 1, LABELS).setUnary(energy)
    crf.setUnary(energy)


@pytest.mark.parametrize("labels", [2, 21])
def test_too_large_for_any_machine(labels):
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"too large.*(memory|points)"):
        dcrf.DenseCRF2D(30_000_000, 30_000, labels)
    assert time.monotonic() - start < 5  # nothing of that size was touched


def test_too_large_for_this_machine(monkeypatch):
    monkeypatch.setattr(_limits, "memory", lambda: 16e9)
    with pytest.raises(ValueError, match=r"900,000,000 points.* GB of memory, and 16 GB"):
        dcrf.DenseCRF2D(30_000, 30_000, 2)
    monkeypatch.setattr(_limits, "memory", lambda: 3000)
    crf = dcrf.DenseCRF2D(WIDTH, HEIGHT, LABELS)
    crf.addPairwiseBilateral(3, 10, IMAGE, 2)
    with pytest.raises(ValueError, match="memory"):
        crf.addPairwiseBilateral(3, 10, IMAGE, 2)


def test_five_megapixels_are_no_problem_for_the_check():
    _backend.check_size(2448 * 2048, 21, [2, 5])
