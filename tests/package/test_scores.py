"""The one reader of scores: what it takes, what it recognises, and what it refuses to guess."""

from __future__ import annotations

import numpy as np
import pytest

from deeplab_fast import crf, scores
from deeplab_fast.scores import as_scores, probabilities_from_scores, score_kind

SIZE = (40, 56)
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (3, 5, 7)).astype(np.float32)
PROB = np.exp(LOGITS) / np.exp(LOGITS).sum(0)
SIGMOID = (1 / (1 + np.exp(-LOGITS[:1]))).astype(np.float32)


# ---------------------------------------------------------------------------------------- what the numbers are


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (LOGITS, "logits"),
        (np.log(PROB), "logits"),
        (np.maximum(LOGITS, 0), "logits"),
        (PROB, "probabilities"),
        (PROB.astype(np.float16), "probabilities"),
        (np.eye(3)[RNG.integers(0, 3, (5, 7))].transpose(2, 0, 1), "probabilities"),
        (SIGMOID, "sigmoid"),
    ],
)
def test_kinds_that_the_numbers_tell(values, kind):
    assert score_kind(values) == kind
    assert as_scores(values, SIZE).notes[0].startswith(f"the scores were taken as {kind}")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (PROB * 0.9, r"sum over the classes is 0\.9 to 0\.9, should be 1, for values in 0\.\.1: say --kind sigmoid"),
        (1 / (1 + np.exp(-LOGITS)), r"--kind sigmoid if each class .*--kind probabilities .* or --kind logits"),
        (np.round(PROB, 2) + 0.01, r"--kind probabilities if they were rounded"),
        (
            PROB * 100,
            r"sum over the classes is 100 at every pixel, should be 1, .*: divide by it, or say --kind",
        ),
        (-np.log(PROB), r"energies, -log\(p\), whose lowest is the likeliest class"),
        (
            RNG.integers(0, 256, (3, 5, 7)).astype(np.float32),
            r"whole numbers of \d+ to \d+, as a picture's, should be fractions, unless --kind",
        ),
        (
            LOGITS[:1],
            r"values are -\d.*, should be .* one channel: --kind logits takes them as class 1's logit",
        ),
        (np.full((1, 5, 7), 255.0), r"values are 255 to 255, should be probabilities, there being one channel"),
    ],
)
def test_what_could_be_several_things_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        as_scores(values, SIZE)
    with pytest.raises(ValueError, match=message):
        probabilities_from_scores(values)
    assert as_scores(values, SIZE, kind="logits").kind == "logits"


def test_one_channel_becomes_two_classes():
    expected = np.concatenate([1 - SIGMOID, SIGMOID])
    for values in (SIGMOID, SIGMOID[0], SIGMOID[None]):
        for kind in ("auto", "sigmoid"):
            np.testing.assert_allclose(as_scores(values, SIZE, kind=kind).probabilities(), expected)
    # The logit of class 1, that of class 0 being 0.
    found = as_scores(LOGITS[:1], SIZE, kind="logits")
    np.testing.assert_allclose(found.probabilities(), expected, atol=1e-6)
    assert found.values.shape == (2, 5, 7)
    with pytest.raises(ValueError, match="number of classes is 1, should be at least 2; --kind sigmoid"):
        as_scores(SIGMOID, SIZE, kind="probabilities")
    with pytest.raises(ValueError, match=r"scores: values are -.*, should be in 0\.\.1, being sigmoid's"):
        as_scores(LOGITS[:1], SIZE, kind="sigmoid")


def test_probabilities_that_do_not_sum_to_one_are_divided_by_their_sums():
    values = PROB * RNG.uniform(0.2, 1, (1, 5, 7))
    values[:, 2, 3] = 0
    for kind in ("sigmoid", "probabilities"):
        found = as_scores(values, SIZE, kind=kind)
        expected = PROB.copy()
        expected[:, 2, 3] = 1 / 3
        np.testing.assert_allclose(found.probabilities(), expected, atol=1e-6)
        assert "over the classes: divided by their sums" in found.notes[0]


def test_whole_numbers_in_a_map_are_labels_or_a_hard_sigmoid():
    values = RNG.integers(0, 2, SIZE).astype(np.float32)
    with pytest.raises(ValueError, match=r"numbers that are all whole: --kind labels takes them .*, --kind sigmoid"):
        as_scores(values, SIZE)
    np.testing.assert_array_equal(as_scores(values, SIZE, kind="sigmoid").probabilities()[1], values)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_whole_numbers_are_no_scores(dtype):
    with pytest.raises(TypeError, match=r"dtype is .*, should be floating: divide probabilities that were stored"):
        as_scores(np.zeros((3, 5, 7), dtype), SIZE)
    with pytest.raises(TypeError, match=r"dtype is complex64, should be floating$"):
        as_scores(np.zeros((3, 5, 7), np.complex64), SIZE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["auto", "logits", "probabilities", "sigmoid"])
def test_not_finite(value, kind, tmp_path):
    values = PROB.copy()
    values[1, 2, 3] = value
    np.save(tmp_path / "street.npy", values)
    with pytest.raises(ValueError, match=r"street\.npy: scores: values are NaN or Inf in 1 of 105 places"):
        scores.read_scores(tmp_path / "street.npy", SIZE, kind=kind)


# ------------------------------------------------------------------------------------------- which axis is which


def network_scores(classes, height, width, stride):
    return RNG.normal(size=(classes, -(-height // stride), -(-width // stride)))


@pytest.mark.parametrize("size", [(375, 500), (333, 500), (500, 500), (321, 321), (480, 640), (1024, 2048)])
@pytest.mark.parametrize("stride", [1, 4, 8, 16])
def test_classes_first_is_read_and_classes_last_refused(size, stride):
    for classes in (2, 3, 19):
        values = network_scores(classes, *size, stride)
        assert len(as_scores(values, size).values) == classes
        last = np.moveaxis(values, 0, -1)
        with pytest.raises(ValueError, match="the classes seem to be the last axis, which --layout hwk says"):
            as_scores(last, size)
        found = as_scores(last, size, layout="hwk")
        np.testing.assert_array_equal(found.values, values.astype(np.float32))


def test_both_readings_fit():
    values = RNG.normal(size=(64, 64, 64))
    with pytest.raises(
        ValueError, match=r"should be said to be K×H×W or H×W×K, both readings fit .*: --layout khw or --layout hwk"
    ):
        as_scores(values, (512, 512))
    for layout, expected in (("khw", values), ("hwk", values.transpose(2, 0, 1))):
        np.testing.assert_allclose(as_scores(values, (512, 512), layout=layout).values, expected, rtol=1e-6)


def test_probabilities_tell_the_axis():
    prob = np.exp(RNG.normal(size=(64, 64, 64)))
    assert as_scores(prob / prob.sum(0), (512, 512)).kind == "probabilities"
    with pytest.raises(ValueError, match="classes seem to be the last axis"):
        as_scores(prob / prob.sum(-1, keepdims=True), (512, 512))


def test_other_proportions_than_the_photos():
    """As of a photo that was squashed to a square: only the caller knows."""
    values = RNG.normal(size=(21, 65, 65))
    with pytest.raises(ValueError, match=r"in neither reading have they the photo's proportions .*: --layout khw"):
        as_scores(values, (375, 500))
    assert as_scores(values, (375, 500), layout="khw").values.shape == (21, 65, 65)
    assert as_scores(values, (375, 500), classes=21).values.shape == (21, 65, 65)
    with pytest.raises(ValueError, match="classes seem to be the last axis"):
        as_scores(values.transpose(1, 2, 0), (375, 500), classes=21)


def test_sizes_that_cannot_be():
    with pytest.raises(ValueError, match="height and width seem to be swapped"):
        as_scores(RNG.normal(size=(3, 7, 5)), SIZE)
    for layout in ("auto", "khw"):
        with pytest.raises(ValueError, match="they must not be larger"):
            as_scores(RNG.normal(size=(3, 80, 112)), SIZE, layout=layout)
    with pytest.raises(ValueError, match="layout: is 'kwh', should be auto, khw or hwk"):
        as_scores(LOGITS, SIZE, layout="kwh")
    with pytest.raises(ValueError, match=r"shape is \(2, 3, 5, 7\), should be \(K, H, W\), not empty"):
        as_scores(np.stack([LOGITS, LOGITS]), SIZE)


# ------------------------------------------------------------------------------------------------- files, sizes


def test_files_of_an_image(tmp_path):
    assert scores.find_scores(tmp_path, "a") is None
    np.savez(tmp_path / "a.npz", LOGITS)
    assert scores.find_scores(tmp_path, "a") == tmp_path / "a.npz"
    np.testing.assert_array_equal(scores.read_scores(tmp_path / "a.npz", SIZE).values, LOGITS)
    np.save(tmp_path / "b.npy", np.zeros((3, 5, 7), int))
    with pytest.raises(TypeError, match=r"b\.npy: scores: dtype is int64, should be floating"):
        scores.read_scores(tmp_path / "b.npy", SIZE)


def test_sizes_are_brought_to_the_images():
    resized = crf.resize_scores(LOGITS, SIZE)
    np.testing.assert_array_equal(
        as_scores(LOGITS, SIZE).probabilities(SIZE), probabilities_from_scores(resized, "logits")
    )
    np.testing.assert_array_equal(as_scores(PROB, SIZE).probabilities(SIZE), crf.resize_scores(PROB, SIZE))
