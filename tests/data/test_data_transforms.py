"""Resizing of labels, a network's input, crops for training, and which sample comes when."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
import torch
from torch.utils.data import DataLoader

from deeplab_fast import data
from deeplab_fast.data.resizing import nearest_indices

RNG = np.random.default_rng(0)


# -------------------------------------------------------------------------------------------------- resizing


def pillow_indices(source: int, size: int) -> np.ndarray:
    row = Image.fromarray(np.arange(source, dtype=np.int32)[None])
    return np.asarray(row.resize((size, 1), Image.Resampling.NEAREST))[0]


def test_nearest_is_pillows():
    pairs = [(1, 1), (1, 9), (9, 1), (321, 41), (321, 21), (321, 31), (513, 65), (500, 63), (7, 7), (3000, 17)]
    pairs += [tuple(pair) for pair in RNG.integers(1, 700, (800, 2)).tolist()]
    rounded_otherwise = 0
    for source, size in pairs:
        expected = pillow_indices(source, size)
        np.testing.assert_array_equal(nearest_indices(source, size), expected, err_msg=f"{source} to {size}")
        exact = (2 * np.arange(size) + 1) * source // (2 * size)
        rounded_otherwise += not np.array_equal(exact, expected)
    assert rounded_otherwise > 50  # the order of the sum matters, and was put to the test


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.int32])
def test_resize_labels(dtype):
    for height, width, new_height, new_width in RNG.integers(1, 90, (60, 4)).tolist():
        labels = RNG.integers(0, 256 if dtype != torch.int32 else 100_000, (2, height, width))
        resized = data.resize_labels(torch.from_numpy(labels).to(dtype), (new_height, new_width))
        assert resized.dtype == dtype
        expected = [
            np.asarray(Image.fromarray(one.astype(np.int32)).resize((new_width, new_height), Image.Resampling.NEAREST))
            for one in labels
        ]
        np.testing.assert_array_equal(resized.numpy(), np.stack(expected))


@pytest.mark.cuda
def test_resize_labels_on_a_gpu():
    labels = torch.randint(0, 256, (2, 321, 321))
    torch.testing.assert_close(
        data.resize_labels(labels.cuda(), (41, 31)).cpu(), data.resize_labels(labels, (41, 31)), rtol=0, atol=0
    )


def test_resize_labels_takes_any_stride_and_no_images():
    labels = torch.randint(0, 9, (2, 8, 6))
    turned = data.resize_labels(labels.transpose(1, 2), (3, 5))
    assert torch.equal(turned, data.resize_labels(labels.transpose(1, 2).contiguous(), (3, 5)))
    assert data.resize_labels(labels[:0], (3, 5)).shape == (0, 3, 5)


@pytest.mark.parametrize(
    ("labels", "size", "error", "message"),
    [
        (np.zeros((1, 2, 2), int), (1, 1), TypeError, "labels: is a ndarray, should be a tensor"),
        (torch.zeros(1, 2, 2), (1, 1), TypeError, "labels: dtype is torch.float32, should be an integer"),
        (torch.zeros(2, 2, dtype=torch.int64), (1, 1), ValueError, r"labels: shape is \(2, 2\), should be \(N, H, W\)"),
        (torch.zeros(1, 0, 2, dtype=torch.int64), (1, 1), ValueError, "H and W at least 1"),
        (torch.zeros(1, 2, 2, dtype=torch.int64), (0, 1), ValueError, "size: is 0, should be at least 1"),
        (torch.zeros(1, 2, 2, dtype=torch.int64), (1.5, 1), TypeError, "size: is 1.5, should be an integer"),
        (torch.zeros(1, 2, 2, dtype=torch.int64), (1,), ValueError, r"size: is \(1,\), should be \(h, w\)"),
    ],
)
def test_resize_labels_errors(labels, size, error, message):
    with pytest.raises(error, match=message):
        data.resize_labels(labels, size)


# ----------------------------------------------------------------------------------------------- to_network


def test_to_network():
    image = RNG.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    x = data.to_network(image)
    assert x.dtype == torch.float32
    assert x.shape == (3, 4, 5)
    assert x.is_contiguous()
    for channel, (name, mean) in enumerate(zip((2, 1, 0), (104.008, 116.669, 122.675), strict=True)):
        np.testing.assert_array_equal(x[channel], image[..., name].astype(np.float32) - np.float32(mean))
    image.setflags(write=False)
    assert torch.equal(data.to_network(image), x)


def test_to_network_errors():
    with pytest.raises(TypeError, match="image: type is float64, should be a uint8 array"):
        data.to_network(np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match=r"image: shape is \(2, 2\), should be \(H, W, 3\)"):
        data.to_network(np.zeros((2, 2), np.uint8))


# -------------------------------------------------------------------------------------------- augmentation


def sample_of(height: int, width: int, name: str = "a") -> data.Sample:
    image = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return data.Sample(image, RNG.integers(0, 21, (height, width)), name)


def bilinear(image: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Along one axis, as OpenCV's INTER_LINEAR: between the two pixels nearest to the new one's centre."""
    length = image.shape[axis]
    position = np.clip((np.arange(size) + 0.5) * (length / size) - 0.5, 0, length - 1)
    low = position.astype(int)
    weight = (position - low).reshape([-1 if a == axis else 1 for a in range(image.ndim)])
    image = image.astype(np.float64)
    return image.take(low, axis) * (1 - weight) + image.take(np.minimum(low + 1, length - 1), axis) * weight


def recipe(sample: data.Sample, crop: int, scales, flip: bool, generator: np.random.Generator):
    """The published recipe step by step, on the whole picture: resize, pad, cut out, mirror."""
    height, width = sample.label.shape
    scale = scales[generator.integers(len(scales))]
    size = (max(1, int(width * scale)), max(1, int(height * scale)))
    image = bilinear(bilinear(sample.image, size[1], 0), size[0], 1).astype(np.float32)
    image = image[..., ::-1] - np.array(data.MEAN_BGR, np.float32)
    label = np.asarray(Image.fromarray(sample.label.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
    below, right = max(crop - size[1], 0), max(crop - size[0], 0)
    image = np.pad(image, ((0, below), (0, right), (0, 0)))
    label = np.pad(label, ((0, below), (0, right)), constant_values=255)
    top = generator.integers(image.shape[0] - crop + 1)
    left = generator.integers(image.shape[1] - crop + 1)
    image, label = image[top : top + crop, left : left + crop], label[top : top + crop, left : left + crop]
    if generator.integers(2) and flip:
        image, label = image[:, ::-1], label[:, ::-1]
    return image.transpose(2, 0, 1), label


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(("height", "width"), [(40, 60), (33, 33), (20, 90), (5, 7), (1, 1)])
def test_training_transform_is_the_recipe(height, width, flip):
    scales = (0.5, 0.75, 1, 1.25, 1.5)
    transform = data.TrainingTransform(crop=33, scales=scales, flip=flip)
    sample = sample_of(height, width)
    for seed in range(40):
        x, y = transform(sample, np.random.default_rng(seed))
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        expected_x, expected_y = recipe(sample, 33, scales, flip, np.random.default_rng(seed))
        np.testing.assert_allclose(x, expected_x, rtol=0, atol=0.501)  # rounded to whole grey levels
        np.testing.assert_array_equal(y, expected_y)


def test_training_transform_draws_everything():
    """All scales, both directions and all places come up, each about as often as it should."""
    label = np.arange(36).reshape(6, 6)
    sample = data.Sample(np.repeat(label[..., None], 3, 2).astype(np.uint8), label, "a")
    transform = data.TrainingTransform(crop=4, scales=(1,))
    corners = [transform(sample, np.random.default_rng(seed))[1][0] for seed in range(900)]
    mirrored = sum(int(corner[0] > corner[1]) for corner in corners)
    assert 380 < mirrored < 520
    places = [int(corner.min()) for corner in corners]
    assert set(places) == {0, 1, 2, 6, 7, 8, 12, 13, 14}
    assert min(places.count(place) for place in set(places)) > 60


def test_training_transform_keeps_image_and_labels_together():
    label = np.zeros((50, 70), np.int64)
    label[:, 35:] = 7
    image = np.where(label[..., None] == 7, 250, 0).astype(np.uint8).repeat(3, 2)
    transform = data.TrainingTransform(crop=40)
    for seed in range(50):
        x, y = transform(data.Sample(image, label, "a"), np.random.default_rng(seed))
        bright = x[0] > 10
        known = y != 255
        assert (bright == (y == 7))[known].float().mean() > 0.98  # but for the blurred column in between
        assert torch.equal(x[:, ~known], torch.zeros(3, int((~known).sum())))


def test_training_transform_errors():
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="crop: is 0, should be at least 1"):
        data.TrainingTransform(crop=0)
    for scales in ((), (0,), (float("nan"),)):
        with pytest.raises(ValueError, match="scales: is"):
            data.TrainingTransform(scales=scales)
    with pytest.raises(ValueError, match="mean_bgr: is"):
        data.TrainingTransform(mean_bgr=(1, 2))
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="a: labels: is None, should be there"):
        data.TrainingTransform()(data.Sample(image, None, "a"), generator)
    with pytest.raises(ValueError, match=r"a: labels: shape is \(4, 5\), should be \(4, 4\)"):
        data.TrainingTransform()(data.Sample(image, np.zeros((4, 5), np.int64), "a"), generator)


# ------------------------------------------------------------------------------------------------- sampling


def test_epochs_are_shuffled_and_complete():
    draws = list(islice(data.ShuffledSampler(10, seed=3), 50))
    assert [draw for _, draw in draws] == list(range(50))
    epochs = [[index for index, _ in draws[start : start + 10]] for start in range(0, 50, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert draws == list(islice(data.ShuffledSampler(10, seed=3), 50))
    assert draws != list(islice(data.ShuffledSampler(10, seed=4), 50))


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("start", [0, 1, 12, 35])
def test_ranks_share_the_stream(world, start):
    whole = list(islice(data.ShuffledSampler(7, seed=1, start=start), 12 * world))
    parts = [list(islice(data.ShuffledSampler(7, 1, rank, world, start=start), 12)) for rank in range(world)]
    assert all(draw % world == rank for rank, part in enumerate(parts) for _, draw in part)
    assert sorted((pair for part in parts for pair in part), key=lambda pair: pair[1]) == whole


def test_global_batches_are_those_of_one_process():
    world, batch = 3, 4
    whole = list(islice(data.ShuffledSampler(11, seed=5), 5 * batch * world))
    parts = [list(islice(data.ShuffledSampler(11, 5, rank, world), 5 * batch)) for rank in range(world)]
    for step in range(5):
        together = {pair for part in parts for pair in part[step * batch : (step + 1) * batch]}
        assert together == set(whole[step * batch * world : (step + 1) * batch * world])


def test_sampler_goes_on_where_it_was():
    sampler = data.ShuffledSampler(9, seed=2)
    whole = list(islice(sampler, 40))
    assert sampler.state_dict()["taken"] == 0  # drawing ahead does not count
    sampler.advance(8)
    sampler.advance(8)
    assert list(islice(sampler, 24)) == whole[16:]
    later = data.ShuffledSampler(9, seed=2, rank=1, world=2)
    later.load_state_dict(sampler.state_dict())
    assert list(islice(later, 12)) == whole[17::2]
    with pytest.raises(ValueError, match="state: seed is 2, should be 3"):
        data.ShuffledSampler(9, seed=3).load_state_dict(sampler.state_dict())
    with pytest.raises(ValueError, match="state: length is 9, should be 8"):
        data.ShuffledSampler(8, seed=2).load_state_dict(sampler.state_dict())


def test_sampler_errors():
    for arguments, message in (
        ({"length": 0, "seed": 0}, "length: is 0, should be at least 1"),
        ({"length": 1, "seed": -1}, "seed: is -1, should be at least 0"),
        ({"length": 1, "seed": 0, "rank": 1}, "rank: is 1, should be below 1"),
        ({"length": 1, "seed": 0, "start": -1}, "start: is -1, should be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            data.ShuffledSampler(**arguments)


# --------------------------------------------------------------------------------------------- training set


class InMemory(data.SegmentationDataset):
    """Samples of several sizes; those whose number is in `broken` cannot be read."""

    def __init__(self, length: int, broken=(), on_error: str = "raise"):
        super().__init__([str(number) for number in range(length)], ("background", "disc"), on_error=on_error)
        self.broken = set(broken)

    def _read(self, index: int) -> data.Sample:
        if index in self.broken:
            raise ValueError(f"file {index} is broken")
        random = np.random.default_rng(index)
        size = tuple(random.integers(10, 50, 2))
        image = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        return data.Sample(image, random.integers(0, 2, size), self.names[index])


def batches(dataset: data.SegmentationDataset, count: int, *, workers: int = 0, start: int = 0) -> list[data.Batch]:
    training_set = data.TrainingSet(dataset, data.TrainingTransform(crop=24), seed=7)
    sampler = data.ShuffledSampler(len(training_set), seed=7, start=start)
    loader = DataLoader(training_set, batch_size=4, sampler=sampler, collate_fn=data.collate, num_workers=workers)
    return list(islice(loader, count))


def assert_same(first: list[data.Batch], second: list[data.Batch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert tuple(one.problems) == tuple(other.problems)


def test_batches():
    batch = batches(InMemory(6), 1)[0]
    images, labels, problems = batch
    assert images.shape == (4, 3, 24, 24)
    assert images.dtype == torch.float32
    assert labels.shape == (4, 24, 24)
    assert labels.dtype == torch.int64
    assert problems == ()


@pytest.mark.parametrize("broken", [(), (1, 4)])
def test_batches_do_not_depend_on_workers_or_interruption(broken):
    dataset = InMemory(6, broken, on_error="skip")
    whole = batches(dataset, 6)
    assert_same(batches(dataset, 6, workers=2), whole)
    assert_same(batches(dataset, 4, start=8), whole[2:])
    assert len({float(batch.images.sum()) for batch in whole}) == 6


def test_draws_of_one_sample_differ():
    training_set = data.TrainingSet(InMemory(1), data.TrainingTransform(crop=24), seed=0)
    first, second, again = (training_set[0, draw].image for draw in (0, 1, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_broken_samples_are_replaced_and_reported():
    dataset = InMemory(6, broken=(1, 4), on_error="skip")
    training_set = data.TrainingSet(dataset, data.TrainingTransform(crop=24), seed=7)
    found = [problem for batch in batches(dataset, 6, workers=1) for problem in batch.problems]
    assert dataset.problems == []  # the workers' own copies know, the main process is told
    training_set.report(found)
    assert sorted(dataset.problems) == ["file 1 is broken", "file 4 is broken"]
    assert len(found) >= 8  # 24 draws are four epochs
    with pytest.raises(ValueError, match="file 1 is broken"):
        data.TrainingSet(InMemory(6, broken=(1,)), data.TrainingTransform(crop=24), seed=7)[1, 0]


def test_training_set_errors():
    training_set = data.TrainingSet(InMemory(3, broken=range(3), on_error="skip"), data.TrainingTransform(), seed=0)
    with pytest.raises(ValueError, match=r"dataset: 20 samples in a row cannot be used.*file 0 is broken"):
        training_set[0, 0]
    with pytest.raises(TypeError, match=r"index: is 0, should be a pair \(index, draw\)"):
        training_set[0]
    with pytest.raises(ValueError, match="seed: is -1"):
        data.TrainingSet(InMemory(3), data.TrainingTransform(), seed=-1)
