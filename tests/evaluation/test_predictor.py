"""The predictor: what network and CRF are given, what comes back, and what happens when memory is short."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from fake_segmentation import Colours, Forgetful, scene
from torch import nn

from deeplab_fast.evaluation import Predictor
from deeplab_fast.evaluation.predictor import is_out_of_memory
from deeplab_fast.evaluation.tiling import spans
from deeplab_fast.nn import DenseCRF

MEAN_BGR = (104.008, 116.669, 122.675)


def images(*seeds: int, size: tuple[int, int] = (24, 32)) -> list[np.ndarray]:
    return [scene(size, seed)[0] for seed in seeds]


class Recorder(nn.Module):
    """A CRF that keeps what it was given and answers with the classes turned around."""

    def forward(self, image: torch.Tensor, prob: torch.Tensor) -> torch.Tensor:
        self.image, self.prob = image, prob
        return prob.flip(1)


# --- One pass ------------------------------------------------------------------------------------------------------


def expected_scores(batch: list[np.ndarray]) -> torch.Tensor:
    """Scores (N, K, H, W), by torch's own operations."""
    bgr = np.stack(batch)[..., ::-1].astype(np.float32) - np.array(MEAN_BGR, np.float32)
    with torch.no_grad():
        scores = Colours().eval()(torch.from_numpy(bgr.transpose(0, 3, 1, 2).copy()))
    return nn.functional.interpolate(scores, batch[0].shape[:2], mode="bilinear", align_corners=False)


def test_labels_and_probabilities_without_crf():
    batch = images(0, 1, 2)
    model = Colours().train()
    predictor = Predictor(model, 4)
    scores = expected_scores(batch)
    labels = predictor.labels(batch)
    np.testing.assert_array_equal(np.stack(labels), scores.argmax(1).numpy())
    assert all(one.dtype == np.uint8 and one.shape == (24, 32) for one in labels)
    prob = predictor.probabilities(batch)
    torch.testing.assert_close(prob, scores.softmax(1))
    assert prob.dtype == torch.float32
    assert not model.training
    assert model.seen == [(3, 3, 24, 32)] * 2


class Shifting(Colours):
    """A network that is not the same from left to right."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.is_contiguous(memory_format=torch.channels_last)
        return super().forward(x).roll(1, dims=-1)


@pytest.mark.parametrize("tile", [None, 32])
def test_flip_is_the_mean_with_the_mirrored_photo(tile):
    batch, size = images(0, 1, size=(24, 64)), (24, 64)
    plain, flipped = Predictor(Shifting(), 4, tile=tile), Predictor(Shifting(), 4, tile=tile, flip=True)
    if tile is None:
        whole = plain.predict(batch, logits=True)
        mirrored = plain.predict([np.ascontiguousarray(one[:, ::-1]) for one in batch], logits=True)
        mean = np.stack([(one.logits + two.logits[..., ::-1]) / 2 for one, two in zip(whole, mirrored, strict=True)])
        np.testing.assert_allclose([one.logits for one in flipped.predict(batch, logits=True)], mean, rtol=1e-6)
        scores = nn.functional.interpolate(torch.from_numpy(mean), size, mode="bilinear", align_corners=False)
        np.testing.assert_array_equal(np.stack(flipped.labels(batch)), scores.argmax(1).numpy())
    back = [one[:, ::-1] for one in flipped.labels([np.ascontiguousarray(one[:, ::-1]) for one in batch])]
    np.testing.assert_array_equal(np.stack(back), np.stack(flipped.labels(batch)))
    assert not np.array_equal(np.stack(flipped.labels(batch)), np.stack(plain.labels(batch)))


def test_the_network_gets_channels_last():
    class Strides(Colours):
        def forward(self, x):
            assert x.is_contiguous(memory_format=torch.channels_last)
            return super().forward(x)

    Predictor(Strides(), 4).labels(images(0, 1))


def test_more_than_256_classes_come_as_int64():
    class Many(nn.Module):
        def forward(self, x):
            return torch.arange(300.0)[None, :, None, None].expand(len(x), -1, *x.shape[2:])

    (labels,) = Predictor(Many(), 300).labels(images(0))
    assert labels.dtype == np.int64
    assert (labels == 299).all()


def test_autocast_runs_the_network_in_bfloat16_and_returns_float32():
    class Dtype(Colours):
        def forward(self, x):
            scores = super().forward(x)
            self.dtype = scores.dtype
            return scores

    model = Dtype()
    prob = Predictor(model, 4, autocast=torch.bfloat16).probabilities(images(0))
    assert model.dtype == torch.bfloat16
    assert prob.dtype == torch.float32
    torch.testing.assert_close(prob, Predictor(Colours(), 4).probabilities(images(0)), atol=0.03, rtol=0)


def test_the_crf_gets_the_photo_and_probabilities_at_its_size():
    batch, crf = images(3, 4), Recorder()
    predictor = Predictor(Colours(), 4, crf=crf)
    (first, second) = predictor.predict(batch, before_crf=True, logits=True)
    np.testing.assert_array_equal(crf.image.numpy(), np.stack(batch).transpose(0, 3, 1, 2))
    assert crf.image.dtype == torch.uint8
    scores = expected_scores(batch)
    torch.testing.assert_close(crf.prob.clone(), scores.softmax(1))
    for n, one in enumerate((first, second)):
        np.testing.assert_array_equal(one.before_crf, scores[n].argmax(0))
        np.testing.assert_array_equal(one.labels, scores[n].flip(0).argmax(0))
        assert one.logits.shape == (4, 6, 8)
        assert one.logits.dtype == np.float32
    without = predictor.predict(batch, crf=False)
    np.testing.assert_array_equal(without[1].labels, second.before_crf)
    assert without[1].before_crf is without[1].logits is None
    torch.testing.assert_close(predictor.probabilities(batch), scores.softmax(1).flip(1))


def test_a_dense_crf_is_that_of_the_layer_called_by_hand():
    batch, crf = images(5, 6), DenseCRF(iterations=3, bi_xy_std=10, bi_rgb_std=40)
    prob = Predictor(Colours(), 4).probabilities(batch)
    Q = crf(torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2), prob)
    predictor = Predictor(Colours(), 4, crf=crf)
    torch.testing.assert_close(predictor.probabilities(batch), Q)
    np.testing.assert_array_equal(np.stack(predictor.labels(batch)), Q.argmax(1).numpy())
    assert (Q.argmax(1) != prob.argmax(1)).any()


def test_uint8_wrap_casts_the_networks_input_as_numpy_does():
    batch, crf = images(7), Recorder()
    Predictor(Colours(), 4, crf=crf, uint8_wrap=True).labels(batch)
    # Truncation towards zero, then the lowest byte: 50 - 104.008 = -54.008 -> -54 -> 202.
    less = batch[0][..., ::-1].astype(np.float32) - np.array(MEAN_BGR, np.float32)
    expected = np.trunc(less).astype(np.int32).astype(np.uint8)
    np.testing.assert_array_equal(crf.image[0].permute(1, 2, 0).numpy(), expected)
    assert (less < 0).any()


# --- Memory --------------------------------------------------------------------------------------------------------

PIXELS = 24 * 32
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("std::bad_alloc"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_batch_that_does_not_fit_is_halved(error: Exception):
    batch = images(*range(5))
    model = Forgetful(2 * PIXELS, error)
    predictor = Predictor(model, 4)
    np.testing.assert_array_equal(predictor.labels(batch), Predictor(Colours(), 4).labels(batch))
    assert [shape[0] for shape in model.seen] == [5, 3, 2, 1, 2]
    model.seen.clear()
    predictor.labels(batch)  # it has learnt: nothing fails again
    assert [shape[0] for shape in model.seen] == [2, 1, 2]


def test_other_errors_pass():
    for error in (RuntimeError("shapes do not match"), ValueError("out of memory")):
        assert not is_out_of_memory(error)
        with pytest.raises(type(error), match=str(error)):
            Predictor(Forgetful(0, error), 4).labels(images(0, 1))


def test_an_image_that_does_not_fit_is_cut_into_tiles():
    (image,) = images(0, size=(540, 700))
    model = Forgetful(513 * 513, stride=1)
    predictor = Predictor(model, 4)
    with pytest.warns(UserWarning, match=r"an image of 700×540 did not fit in memory: it is cut into tiles of 513"):
        (prediction,) = predictor.predict([image], logits=True)
    np.testing.assert_array_equal(prediction.labels, Predictor(Colours(stride=1), 4).labels([image])[0])
    assert prediction.logits is None
    assert model.seen == [(1, 3, 540, 700)] + [(1, 3, 513, 513)] * 4


def test_tiles_when_asked_for():
    batch, plain = images(0, 1, size=(70, 101)), Predictor(Colours(stride=1), 4)
    model = Colours(stride=1)
    predictor = Predictor(model, 4, tile=40, crf=Recorder())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictions = predictor.predict(batch, before_crf=True)
        prob = predictor.probabilities(batch)
    np.testing.assert_array_equal([one.before_crf for one in predictions], plain.labels(batch))
    np.testing.assert_array_equal(np.stack([one.labels for one in predictions]), prob.argmax(1).numpy())
    torch.testing.assert_close(prob, plain.probabilities(batch).flip(1))
    assert set(model.seen) == {(1, 3, 40, 40)}
    model.seen.clear()
    predictor.labels(images(0, 1, size=(40, 30)))  # small ones stay whole, and together
    assert model.seen == [(2, 3, 40, 30)]


def test_without_memory_for_tiles_the_error_says_what_to_do():
    with pytest.raises(
        MemoryError, match=r"not enough memory on cpu for one image of 32×24 and 4 classes: give a small"
    ):
        Predictor(Forgetful(0), 4).labels(images(0))
    with pytest.raises(MemoryError, match=r"of 32×40 and 4 classes, even in tiles of 32: .*Tried to allocate 9 GiB"):
        Predictor(Forgetful(0), 4, tile=32).labels(images(0, size=(40, 32)))
    with pytest.warns(UserWarning, match="tiles of 513"), pytest.raises(MemoryError, match="even in tiles of 513"):
        Predictor(Forgetful(0), 4).labels(images(0, size=(8, 520)))


@pytest.mark.parametrize("side", [32, 33, 64, 513])
def test_spans_cover_an_axis_once_with_a_quarter_of_overlap(side: int):
    for length in [1, side - 1, side, side + 1, *range(side, 5 * side, 7)]:
        tiles = spans(length, side)
        assert [tile[2] for tile in tiles] == [0, *(tile[3] for tile in tiles[:-1])]
        assert tiles[-1][3] == tiles[-1][1] == length
        centres = [(start + stop) / 2 for start, stop, _, _ in tiles]
        for start, stop, first, last in tiles:
            assert stop - start == min(side, length)
            assert start <= first < last <= stop
            for pixel in (first + 0.5, last - 0.5):
                assert abs(pixel - (start + stop) / 2) <= min(abs(pixel - centre) for centre in centres) + 1
        for before, after in itertools.pairwise(tiles):
            assert before[1] - after[0] >= side / 4


# --- What it refuses -----------------------------------------------------------------------------------------------


class Constant(nn.Module):
    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def forward(self, x):
        return self.scores


@pytest.mark.parametrize(
    ("scores", "error", "message"),
    [
        ([torch.zeros(1, 4, 2, 2)], TypeError, "model: output is a list, should be a tensor of scores"),
        (
            torch.zeros(1, 5, 2, 2),
            ValueError,
            r"output's shape is \(1, 5, 2, 2\), should be \(N, K, h, w\) with N 1 and K 4",
        ),
        (torch.zeros(1, 4), ValueError, r"output's shape is \(1, 4\)"),
        (torch.full((1, 4, 2, 2), torch.nan), ValueError, "returned scores that are NaN or infinite"),
    ],
)
def test_refuses_what_the_network_returns(scores, error, message):
    with pytest.raises(error, match=message):
        Predictor(Constant(scores), 4).labels(images(0))


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ([np.zeros((4, 4, 3))], TypeError, "images: one is a float64 array, should be a uint8 array"),
        (["a.png"], TypeError, "images: one is a str, should be a uint8 array"),
        ([np.zeros((3, 4, 4), np.uint8)], ValueError, r"images: shape of one is \(3, 4, 4\), should be \(H, W, 3\)"),
        ([np.zeros((0, 4, 3), np.uint8)], ValueError, r"images: shape of one is \(0, 4, 3\)"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)], ValueError, "that of the first"),
    ],
)
def test_refuses_images(batch, error, message):
    with pytest.raises(error, match=message):
        Predictor(Colours(), 4).labels(batch)


def test_no_images():
    assert Predictor(Colours(), 4).labels([]) == []
    with pytest.raises(ValueError, match=r"images: is \[\]"):
        Predictor(Colours(), 4).probabilities([])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "net"}, TypeError, r"model: is a str, should be a torch\.nn\.Module"),
        ({"crf": max}, TypeError, r"crf: is a builtin_function_or_method, should be a torch\.nn\.Module"),
        ({"num_classes": 0}, ValueError, "num_classes: is 0, should be at least 1"),
        ({"autocast": torch.float32}, ValueError, r"autocast: is torch\.float32, should be None"),
        ({"tile": 31}, ValueError, "tile: is 31, should be at least 32"),
    ],
)
def test_refuses_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Predictor(**{"model": Colours(), "num_classes": 4, **arguments})
