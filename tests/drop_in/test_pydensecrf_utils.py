"""`deeplab_fast.pydensecrf.utils` equals pydensecrf's, and says what is wrong with bad input."""

from __future__ import annotations

import inspect

import numpy as np
import pydensecrf.utils as peer
import pytest
from photos import photo

from deeplab_fast.pydensecrf import utils

RNG = np.random.default_rng(0)
IMAGE = photo("coffee", 20, 31)
VOLUME = RNG.normal(size=(3, 4, 5, 2))
LABELS = RNG.integers(0, 4, (6, 7))
PROBABILITIES = RNG.dirichlet(np.ones(5), (3, 4)).transpose(2, 0, 1)

CALLS = {
    "gaussian": lambda m: m.create_pairwise_gaussian((3, 7.5), (20, 31)),
    "gaussian 1-D": lambda m: m.create_pairwise_gaussian((3,), (9,)),
    "gaussian 3-D, float64 sigmas": lambda m: m.create_pairwise_gaussian(np.array([0.3, 7.0, 1.1]), [2, 3, 4]),
    "gaussian by name": lambda m: m.create_pairwise_gaussian(sdims=[1, 2], shape=(2, 2)),
    "bilateral": lambda m: m.create_pairwise_bilateral((50, 60), (13, 14, 15), IMAGE, chdim=2),
    "bilateral by name": lambda m: m.create_pairwise_bilateral(sdims=(50, 60), schan=13, img=IMAGE, chdim=2),
    "bilateral, some channels scaled": lambda m: m.create_pairwise_bilateral((50, 60), (13,), IMAGE, chdim=2),
    "bilateral 3-D": lambda m: m.create_pairwise_bilateral((5, 6, 7), (0.1, 0.2), VOLUME, chdim=3),
    "bilateral, channels first": lambda m: m.create_pairwise_bilateral((5, 6), (0.1, 0.2, 3), VOLUME[..., 0], chdim=0),
    "bilateral, channels by a negative axis": lambda m: m.create_pairwise_bilateral((5, 6), 3, VOLUME[0], chdim=-2),
    "bilateral, one channel": lambda m: m.create_pairwise_bilateral((5, 6), 0.1, VOLUME[0, ..., 0]),
    "bilateral, one channel listed": lambda m: m.create_pairwise_bilateral((5, 6), [0.1], VOLUME[0, ..., 0], -1),
    "labels": lambda m: m.unary_from_labels(LABELS, 3, 0.7),
    "labels with zero": lambda m: m.unary_from_labels(LABELS, 4, gt_prob=0.5, zero_unsure=False),
    "labels int16": lambda m: m.unary_from_labels(LABELS.astype(np.int16), 5, 0.9),
    "softmax": lambda m: m.unary_from_softmax(PROBABILITIES),
    "softmax float32": lambda m: m.unary_from_softmax(PROBABILITIES.astype(np.float32)),
    "softmax scaled": lambda m: m.unary_from_softmax(PROBABILITIES, scale=0.7, clip=None),
    "softmax scaled float32": lambda m: m.unary_from_softmax(PROBABILITIES.astype(np.float32), 0.7, 1e-2),
    "compute_unary": lambda m: m.compute_unary(LABELS, 3),
    "compute_unary with GT_PROB": lambda m: m.compute_unary(LABELS, 3, GT_PROB=0.8),
    "softmax_to_unary": lambda m: m.softmax_to_unary(PROBABILITIES),
    "softmax_to_unary with GT_PROB": lambda m: m.softmax_to_unary(PROBABILITIES, GT_PROB=0.4),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_equals_the_peer(call):
    result, expected = call(utils), call(peer)
    assert result.dtype == expected.dtype == np.float32
    assert result.flags.c_contiguous
    assert np.array_equal(result, expected)


@pytest.mark.parametrize(
    "name", [n for n, f in inspect.getmembers(peer, inspect.isfunction) if n[0] != "_" and n != "warning"]
)
def test_signature_of_the_peer(name):
    ours, theirs = (
        [(p.name, p.default) for p in inspect.signature(getattr(m, name)).parameters.values()] for m in (utils, peer)
    )
    assert ours == theirs


def test_the_deprecated_say_so():
    with pytest.warns(DeprecationWarning, match="unary_from_labels"):
        utils.compute_unary(LABELS, 3)
    with pytest.warns(DeprecationWarning, match="unary_from_softmax"):
        utils.softmax_to_unary(PROBABILITIES)


def test_labels_of_any_integer_type_and_one_label():
    expected = utils.unary_from_labels(LABELS, 3, 0.7)
    for dtype in (np.uint8, np.uint16, np.int8, np.int64):  # unsigned ones wrap around at 0 - 1 in the peer
        assert np.array_equal(utils.unary_from_labels(LABELS.astype(dtype), 3, 0.7), expected)
    assert np.allclose(utils.unary_from_labels(np.array([0, 1, 1]), 1, 0.7), [[0, -np.log(0.7), -np.log(0.7)]])


def test_unary_from_transposed_scores_is_contiguous():
    transposed = np.random.default_rng(0).dirichlet(np.ones(3), 20).astype(np.float32).T
    assert utils.unary_from_softmax(transposed).flags.c_contiguous


def test_zero_probability_without_clip_is_an_infinite_energy():
    assert np.array_equal(utils.unary_from_softmax(np.array([[1.0], [0.0]]), clip=None), [[0], [np.inf]])


BAD = {
    "gt_prob 0": (lambda: utils.unary_from_labels(LABELS, 3, 0), "gt_prob"),
    "gt_prob 1": (lambda: utils.unary_from_labels(LABELS, 3, 1.0), "gt_prob"),
    "gt_prob nan": (lambda: utils.unary_from_labels(LABELS, 3, np.nan), "gt_prob"),
    "label too large": (lambda: utils.unary_from_labels(LABELS, 2, 0.5), r"0\.\.2.*got 0\.\.3"),
    "label too large without zero": (lambda: utils.unary_from_labels(LABELS, 3, 0.5, False), r"0\.\.2"),
    "negative label": (lambda: utils.unary_from_labels(LABELS - 1, 3, 0.5), "-1"),
    "label 255": (lambda: utils.unary_from_labels(np.array([0, 255], np.uint8), 21, 0.5), "255"),
    "float labels": (lambda: utils.unary_from_labels(LABELS * 1.0, 3, 0.5), "integers"),
    "no labels": (lambda: utils.unary_from_labels(LABELS, 0, 0.5), "n_labels"),
    "scale 0": (lambda: utils.unary_from_softmax(PROBABILITIES, scale=0), "scale"),
    "scale 2": (lambda: utils.unary_from_softmax(PROBABILITIES, scale=2), "scale"),
    "negative clip": (lambda: utils.unary_from_softmax(PROBABILITIES, clip=-1), "clip"),
    "no classes": (lambda: utils.unary_from_softmax(np.float32(1)), "classes"),
    "complex scores": (lambda: utils.unary_from_softmax(PROBABILITIES * 1j), "real"),
    "one sigma for two axes": (lambda: utils.create_pairwise_gaussian((3,), (4, 5)), "sdims"),
    "sigma 0": (lambda: utils.create_pairwise_gaussian((3, 0), (4, 5)), "sdims"),
    "sigma nan": (lambda: utils.create_pairwise_gaussian((3, np.nan), (4, 5)), "sdims"),
    "negative channel sigma": (lambda: utils.create_pairwise_bilateral((3, 3), -1, IMAGE, 2), "schan"),
    "too many channel sigmas": (
        lambda: utils.create_pairwise_bilateral((3, 3), (1, 1, 1, 1), IMAGE, 2),
        "schan",
    ),
    "too many sigmas": (lambda: utils.create_pairwise_bilateral((3, 3, 3), 1, IMAGE, 2), "sdims"),
    "no such axis": (lambda: utils.create_pairwise_bilateral((3, 3), 1, IMAGE, 3), "chdim"),
    "no such negative axis": (lambda: utils.create_pairwise_bilateral((3, 3), 1, IMAGE, -4), "chdim"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
