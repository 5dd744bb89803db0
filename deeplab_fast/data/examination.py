"""What a dataset holds, read once from end to end; and which classes its labels have, read as far as needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deeplab_fast.data.problems import Problem
from deeplab_fast.data.reading import read
from deeplab_fast.data.sample import SegmentationDataset
from deeplab_fast.pictures import IGNORED
from deeplab_fast.pictures.label_values import present_values

__all__ = ["ClassesSeen", "Examination", "classes_seen", "examine", "header_problems"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Examination:
    """What was found in the samples of a dataset; those with problems are counted in no other number.

    Attributes:
        classes: names of the classes, K.
        never_labelled: those that no label holds, as is known of the set.
        samples: in all.
        unlabelled: of them without labels.
        problems: one for each sample that cannot be used.
        outside: pixels of each value that is no class, in label files of the samples with that problem.
        pixels: int64 (K,), pixels of each class.
        images: int64 (K,), images that show each class.
        ignored: pixels of which nothing is known.
        histogram: int64 (3, 256), pixels by red, green and blue.
        smallest, largest: (width, height) of the images with the fewest and the most pixels; None if there are none.
    """

    classes: tuple[str, ...]
    never_labelled: tuple[str, ...]
    samples: int
    unlabelled: int
    problems: list[Problem]
    outside: dict[int, int]
    pixels: NDArray[np.int64]
    images: NDArray[np.int64]
    ignored: int
    histogram: NDArray[np.int64]
    smallest: tuple[int, int] | None
    largest: tuple[int, int] | None

    @property
    def usable(self) -> int:
        """Samples without problems."""
        return self.samples - len(self.problems)

    @property
    def missing(self) -> tuple[str, ...]:
        """Classes that no label holds, other than those of which that is known."""
        absent = (name for name, pixels in zip(self.classes, self.pixels, strict=True) if pixels == 0)
        return tuple(name for name in absent if name not in self.never_labelled)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Of the pixels' red, green and blue in 0..255, float64 (3,); NaN without images."""
        return self._moment(np.arange(256.0))

    @property
    def deviation(self) -> NDArray[np.float64]:
        """Standard deviation of the same, float64 (3,)."""
        distance = np.arange(256.0) - self.mean[:, None]
        return np.sqrt(self._moment(distance**2))

    def _moment(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        count = self.histogram[0].sum()
        return (self.histogram * values).sum(axis=1) / count if count else np.full(3, np.nan)


class _Measures(NamedTuple):
    """Of one sample: histogram int64 (3, 256), size (width, height), pixels int64 (256,) by label or None."""

    histogram: NDArray[np.int64]
    size: tuple[int, int]
    pixels: NDArray[np.int64] | None


class _Measured:
    """The samples of a dataset, each as what is counted of it; worker processes hand on no pictures."""

    def __init__(self, dataset: SegmentationDataset):
        self.dataset = dataset

    def __getitem__(self, index: int) -> _Measures | Problem:
        sample = self.dataset[index]
        if isinstance(sample, Problem):
            return sample
        histogram = np.array(Image.fromarray(sample.image).histogram(), np.int64).reshape(3, 256)
        height, width = sample.image.shape[:2]
        pixels = None if sample.label is None else np.bincount(sample.label.ravel(), minlength=IGNORED + 1)
        return _Measures(histogram, (width, height), pixels)


def examine(dataset: SegmentationDataset, *, workers: int = 0, progress: Progress | None = None) -> Examination:
    """Read every image and every label once.

    Args:
        dataset: with on_error="raise"; with "skip", values outside the classes are not counted.
        workers: processes that read.
        progress: called with the samples read and all samples.
    """
    K, total = dataset.num_classes, len(dataset)
    problems: list[Problem] = []
    outside: Counter[int] = Counter()
    pixels, images = np.zeros(IGNORED + 1, np.int64), np.zeros(IGNORED + 1, np.int64)
    histogram = np.zeros((3, 256), np.int64)
    sizes: set[tuple[int, int]] = set()
    unlabelled = 0
    for done, (index, item) in enumerate(read(_Measured(dataset), range(total), workers), 1):
        if isinstance(item, Exception):
            outside.update(getattr(item, "values", {}))
            item = Problem.of(dataset.names[index], item)
        if isinstance(item, Problem):
            problems.append(item)
        else:
            histogram += item.histogram
            sizes.add(item.size)
            if item.pixels is None:
                unlabelled += 1
            else:
                pixels += item.pixels
                images += item.pixels > 0
        if progress is not None:
            progress(done, total)
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return Examination(
        dataset.classes,
        dataset.never_labelled,
        total,
        unlabelled,
        problems,
        dict(sorted(outside.items())),
        pixels[:K],
        images[:K],
        int(pixels[IGNORED]),
        histogram,
        *((ordered[0], ordered[-1]) if ordered else (None, None)),
    )


# ------------------------------------------------------------------------------------------------- quick looks


class _Headers:
    """The samples of a dataset, each as whether its files are there and of one size."""

    def __init__(self, dataset: SegmentationDataset):
        self.dataset = dataset

    def __getitem__(self, index: int) -> None:
        self.dataset.check_headers(index)


def header_problems(
    dataset: SegmentationDataset, *, workers: int = 0, progress: Progress | None = None
) -> list[Exception]:
    """What is wrong with files that are missing, are no pictures by their headers, or differ in size; decodes nothing.

    Args:
        dataset, workers, progress: as of `examine`.
    """
    problems = []
    for done, (_, error) in enumerate(read(_Headers(dataset), range(len(dataset)), workers), 1):
        if error is not None:
            problems.append(error)
        if progress is not None:
            progress(done, len(dataset))
    return problems


class ClassesSeen(NamedTuple):
    """Classes in some labels of a dataset.

    Attributes:
        seen: numbers of the classes.
        ignored: whether there are pixels of which nothing is known.
        read: labels that were read.
        problems: labels that could not be.
    """

    seen: set[int]
    ignored: bool
    read: int
    problems: list[Exception]


class _Values:
    """The labels of a dataset, each as the values in it."""

    def __init__(self, dataset: SegmentationDataset):
        self.dataset = dataset

    def __getitem__(self, index: int) -> list[int]:
        label = self.dataset.label_of(index)
        return [] if label is None else present_values(label)


def classes_seen(
    dataset: SegmentationDataset,
    wanted: Iterable[int] | None,
    most: int,
    *,
    workers: int = 0,
    progress: Progress | None = None,
) -> ClassesSeen:
    """Read labels, in an order that is random but always the same, until all wanted classes were seen.

    Args:
        dataset: its labels are read, not its images.
        wanted: numbers of classes; None reads on to the end, or to `most`.
        most: labels to read at most.
        workers: processes that read.
        progress: called with the labels read and the most that may be.
    """
    order: Any = np.random.default_rng(0).permutation(len(dataset))[:most].tolist()
    missing, values, problems, done = set(wanted or ()), set(), [], 0
    for done, (_, item) in enumerate(read(_Values(dataset), order, workers), 1):
        if isinstance(item, Exception):
            problems.append(item)
        else:
            values.update(item)
            missing.difference_update(item)
        if progress is not None:
            progress(done, len(order))
        if wanted is not None and not missing:
            break
    return ClassesSeen(values - {IGNORED}, IGNORED in values, done, problems)
