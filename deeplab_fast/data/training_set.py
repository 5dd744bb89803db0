"""A dataset's samples as a training meets them: augmented, repeatable, the broken ones replaced."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from deeplab_fast.data._checks import checked_count
from deeplab_fast.data.problems import Problem
from deeplab_fast.data.sample import Sample, SegmentationDataset
from deeplab_fast.data.sampling import AUGMENTING, REPLACING, generator_for
from deeplab_fast.data.transforms import TrainingTransform
from deeplab_fast.errors import ArgumentTypeError

# So many samples are tried in place of one that cannot be read. Where all fail, most of the dataset is broken.
ATTEMPTS = 20


class Crop(NamedTuple):
    """One item of a `TrainingSet`: image float32 (3, H, W), labels int64 (H, W), samples left out for it."""

    image: Tensor
    label: Tensor
    problems: tuple[Problem, ...] = ()


class Batch(NamedTuple):
    """Items of a `TrainingSet` together.

    Attributes:
        images: float32 (N, 3, H, W).
        labels: int64 (N, H, W).
        problems: with samples that were left out for this batch; hand them to `TrainingSet.report`.
    """

    images: Tensor
    labels: Tensor
    problems: Sequence[Problem]


class TrainingSet(Dataset):
    """Augmented samples of a dataset, by (index, draw) pairs such as `ShuffledSampler` gives.

    What comes out depends on dataset, seed, index and draw alone, so that a training is the same with any number of
    workers, and after it was resumed. With the dataset's on_error="skip", a sample that cannot be read is replaced by
    another, which again depends on seed and draw alone.

        sampler = ShuffledSampler(len(training_set), seed)
        loader = DataLoader(training_set, batch_size=5, sampler=sampler, collate_fn=collate, num_workers=4)
        for images, labels, problems in loader:  # endless
            training_set.report(problems)
            ...
            sampler.advance(len(images))

    Args:
        dataset: with labels.
        transform: (sample, numpy generator) -> (image, labels), tensors of one size.
        seed: 0 or more.

    Raises:
        TypeError, ValueError: if seed is no integer, or negative.
    """

    def __init__(self, dataset: SegmentationDataset, transform: TrainingTransform | Any, seed: int):
        self.dataset = dataset
        self.transform = transform
        self.seed = checked_count("seed", seed, 0)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index_and_draw: tuple[int, int]) -> Crop:
        """The crop of sample `index` in draw number `draw`.

        Raises:
            TypeError: if the index is no pair.
            ValueError: if many samples in a row cannot be read, or one has no labels; else as the dataset.
        """
        if not isinstance(index_and_draw, tuple) or len(index_and_draw) != 2:
            raise ArgumentTypeError("index", index_and_draw, "a pair (index, draw), such as ShuffledSampler gives")
        index, draw = index_and_draw
        sample, problems = self._readable(index, draw)
        image, label = self.transform(sample, generator_for(self.seed, AUGMENTING, draw))
        return Crop(image, label, tuple(problems))

    def _readable(self, index: int, draw: int) -> tuple[Sample, list[Problem]]:
        """The sample, or the first readable one of a few others; and the problems met on the way."""
        problems: list[Problem] = []
        others = generator_for(self.seed, REPLACING, draw)
        for _ in range(ATTEMPTS):
            item = self.dataset[index]
            if not isinstance(item, Problem):
                return item, problems
            problems.append(item)
            index = int(others.integers(len(self.dataset)))
        raise ValueError(
            f"dataset: {ATTEMPTS} samples in a row cannot be used, most of it should be readable; the first: "
            f"{problems[0].message}"
        )

    def report(self, problems: Iterable[Problem]) -> None:
        """Log problems that workers met, once a sample; see `SegmentationDataset.report`."""
        self.dataset.report(problems)


def collate(items: Sequence[Crop]) -> Batch:
    """Items of a `TrainingSet` as a batch; for `collate_fn` of a DataLoader."""
    images = torch.stack([item.image for item in items])
    labels = torch.stack([item.label for item in items])
    return Batch(images, labels, tuple(problem for item in items for problem in item.problems))


def collate_samples(items: Sequence[Sample | Problem]) -> list[Sample | Problem]:
    """Samples, and problems, as they are: for `collate_fn`, where the images have different sizes (evaluation)."""
    return list(items)
