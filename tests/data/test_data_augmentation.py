"""Augmentation beside the recipe's: rotation of photo and labels together, colours, blur."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from small_trainings import differences, logged, small_config, write_set

from deeplab_fast import data, training
from deeplab_fast.config import parse_config
from deeplab_fast.training import checkpoints

MEAN_RGB = np.array(data.MEAN_BGR[::-1], np.float32)


class Angle:
    """Stands in for a generator: scale, place and mirroring 0, and a chosen angle."""

    def __init__(self, degrees: float):
        self.degrees = degrees

    def integers(self, *_):
        return 0

    def uniform(self, low, high):
        assert low <= self.degrees <= high
        return self.degrees


def sample(height: int = 21, width: int = 21, seed: int = 0) -> data.Sample:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 5, (height, width))
    return data.Sample(rng.integers(0, 256, (height, width, 3), np.uint8), label, "a")


def photo(x: torch.Tensor) -> np.ndarray:
    """The network's input as a photo again, (H, W, 3)."""
    return x.flip(0).permute(1, 2, 0).numpy() + MEAN_RGB


@pytest.mark.parametrize("turns", [1, -1, 2])
def test_right_angles_are_exact(turns):
    one = sample()
    transform = data.TrainingTransform(21, [1], rotation=180)
    x, y = transform(one, Angle(90.0 * turns))
    np.testing.assert_allclose(photo(x), np.rot90(one.image, turns), atol=1.01)  # Pillow truncates
    np.testing.assert_array_equal(y.numpy(), np.rot90(one.label, turns))


def test_photo_and_labels_turn_together_about_the_crop():
    """Photos whose colour says what the label is; only near edges is it mixed."""
    blocks = np.kron(np.random.default_rng(1).integers(0, 4, (8, 10)), np.ones((16, 16), np.int64))
    image = (60 * blocks[..., None]).repeat(3, axis=2).astype(np.uint8)
    transform = data.TrainingTransform(65, [0.75, 1], rotation=40)
    outside = 0
    for seed in range(20):
        x, y = transform(data.Sample(image, blocks, "a"), np.random.default_rng(seed))
        outside += int((y == 255).sum())
        assert torch.equal((x == 0).all(0), y == 255)  # what lies outside counts neither here nor there
        inside = (y != 255).numpy()
        difference = np.abs(photo(x)[inside] / 60 - y.numpy()[inside][:, None])
        assert (difference < 0.02).mean() > 0.8
    assert outside > 0


def test_off_it_draws_nothing_more():
    one, plain = sample(40, 50), data.TrainingTransform(33)
    changed = data.TrainingTransform(33, photometric=[data.ColorJitter(0.5, 0.5, 0.5, 0.2), data.Blur(1.0)])
    for seed in range(5):
        generator = np.random.default_rng(seed)
        x, y = plain(one, generator)
        reference = np.random.default_rng(seed)
        scale = plain.scales[reference.integers(5)]
        for size in (40, 50):
            reference.integers(max(int(size * scale) - 33, 0) + 1)
        reference.integers(2)
        assert generator.bit_generator.state == reference.bit_generator.state
        other, labels = changed(one, np.random.default_rng(seed))
        assert torch.equal(y, labels)  # the same crop
        assert not torch.equal(x, other)
        again, _ = changed(one, np.random.default_rng(seed))
        assert torch.equal(other, again)
        assert torch.equal((x == 0).all(0), (other == 0).all(0))  # what was padded stays


class Draws:
    """A generator whose uniform numbers are chosen, as shares of the range."""

    def __init__(self, *shares: float):
        self.shares = shares

    def uniform(self, low, high, count):
        return low + (high - low) * np.array(self.shares)[:count]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_brightness_contrast_and_saturation_by_hand(share):
    image = sample().image.astype(np.float64)
    factor = 0.7 if share == 0 else 1.3
    grey = (image @ [0.299, 0.587, 0.114])[..., None]
    mean = round(grey.round().mean())
    for index, base in enumerate((0, mean, grey)):
        strengths = [0.0, 0.0, 0.0]
        strengths[index] = 0.3
        found = data.ColorJitter(*strengths)(image.astype(np.uint8), Draws(share, share, share, share))
        np.testing.assert_allclose(found, (base + factor * (image - base)).clip(0, 255), atol=1.6)


def test_hue_turns_the_wheel():
    red = np.full((2, 2, 3), (200, 0, 0), np.uint8)
    green, blue = (data.ColorJitter(hue=1 / 3)(red, Draws(0.5, 0.5, 0.5, share))[0, 0] for share in (1.0, 0.0))
    np.testing.assert_allclose(green, [0, 200, 0], atol=6)
    np.testing.assert_allclose(blue, [0, 0, 200], atol=6)


def test_blur_now_and_then():
    image = sample(33, 33).image
    blur = data.Blur(0.3, (1, 1))
    results = [blur(image, np.random.default_rng(seed)) for seed in range(200)]
    blurred = [one for one in results if not np.array_equal(one, image)]
    assert 40 <= len(blurred) <= 80
    assert all(np.array_equal(one, blurred[0]) for one in blurred)
    assert (
        np.abs(np.diff(blurred[0].astype(int), axis=0)).mean() < 0.4 * np.abs(np.diff(image.astype(int), axis=0)).mean()
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: data.ColorJitter(brightness=-1), "brightness: is -1, should be 0 or more"),
        (lambda: data.ColorJitter(hue=0.6), "hue: is 0.6, should be at most 0.5"),
        (lambda: data.Blur(2), "probability: is 2, should be in"),
        (lambda: data.Blur(1, (2, 1)), r"sigma: is \(2, 1\), should be two numbers"),
        (lambda: data.TrainingTransform(rotation=200), "rotation: is 200, should be in"),
    ],
)
def test_wrong_arguments(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"rotation": -1}, "training.rotation: is -1"),
        ({"color_jitter": {"hue": 0.6}}, "training.color_jitter.hue: is 0.6"),
        ({"color_jitter": {"gamma": 0.6}}, "training.color_jitter.gamma: is unknown"),
        ({"blur": {"probability": 2}}, "training.blur.probability: is 2"),
        ({"blur": {"sigma": [2, 1]}}, "training.blur.sigma: is [2.0, 1.0], should have the smaller first"),
    ],
)
def test_wrong_entries(entries, said):
    with pytest.raises(ValueError, match="test: ") as caught:
        parse_config({"data": {"kind": "voc12", "root": "x"}, "training": entries}, "test")
    assert said in str(caught.value)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in a worker process: with several, torch's bilinear interpolation rounds a value here and there otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_training_has_it_with_any_number_of_workers(tmp_path):
    root = write_set(tmp_path)
    recipe = {"iterations": 2, "rotation": 20, "color_jitter": {"hue": 0.1, "brightness": 0.3}, "blur": {}}
    plain, *others = (tmp_path / name for name in ("plain", "here", "worker"))
    training.train(small_config(root, plain, iterations=2), quiet=True)
    for output, workers in zip(others, (0, 1), strict=True):
        training.train(small_config(root, output, workers=workers, **recipe), quiet=True)
    assert logged(others[0]) == logged(others[1])
    assert logged(others[0])[0] != logged(plain)[0]
    models = [checkpoints.load(output / "last.pth")["model"] for output in others]
    assert differences(*models) == []


def test_pillow_rotates_to_the_same_side():
    one = sample(31, 31)
    expected = np.array(Image.fromarray(one.label.astype(np.uint8)).rotate(30, Image.Resampling.NEAREST, fillcolor=255))
    _, y = data.TrainingTransform(31, [1], rotation=30)(one, Angle(30.0))
    assert (y.numpy() == expected).mean() > 0.98
