"""What a dataset for segmentation is: samples, and the class that all datasets here derive from."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset, get_worker_info

from deeplab_fast.data.problems import Problem, SizesDiffer, check_labels
from deeplab_fast.errors import ArgumentError, ArgumentTypeError
from deeplab_fast.pictures import IGNORED, picture_size, read_image, read_labels, voc_palette

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger("deeplab_fast.data")


@dataclass(frozen=True)
class Sample:
    """A photo and what is to be seen in it.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        label: int64 (H, W), class numbers and 255 where nothing is known; None where there are no labels.
        name: of the files, without folder and ending.
    """

    image: NDArray[np.uint8]
    label: NDArray[np.int64] | None
    name: str


@dataclass(frozen=True)
class Entry:
    """Where the files of a sample are.

    Attributes:
        name: of the sample.
        image: the photo.
        label: the label file, or None.
        origin: the line of the list, or the folder, that names the sample; for errors.
    """

    name: str
    image: Path
    label: Path | None
    origin: str


class SegmentationDataset(Dataset):
    """Samples by number, and their classes. A dataset of one's own defines `_read(index) -> Sample`.

    Args:
        names: of the samples.
        classes: names of the classes, in the order of their numbers; 1 to 255 of them.
        palette: colours of the classes, uint8 (n, 3) with n <= 256; what is missing is filled from VOC's palette.
        on_error: what happens to a sample with a missing, unreadable or wrong file. "raise": its error is raised.
            "skip": a `Problem` is returned in place of the sample, and reported.

    Attributes:
        names, classes, num_classes, palette: as above; palette is uint8 (256, 3).
        ignore_index: 255, the label of pixels of which nothing is known.
        never_labelled: classes that no label of the set holds, as is known.
        problems: messages of the samples that could not be read, one a sample. In a worker process of a DataLoader
            nobody would see them, so there the main process calls `report` with the problems it was given.

    Raises:
        TypeError, ValueError: if classes, palette or on_error are not as above.
    """

    ignore_index = IGNORED
    never_labelled: tuple[str, ...] = ()

    def __init__(
        self,
        names: Sequence[str],
        classes: Sequence[str],
        *,
        palette: Any = None,
        on_error: str = "raise",
    ):
        if on_error not in ("raise", "skip"):
            raise ArgumentError("on_error", on_error, "'raise' or 'skip'")
        self.names = list(names)
        self.classes = checked_classes(classes)
        self.palette = filled_palette(palette)
        self.on_error = on_error
        self.problems: list[str] = []
        self._reported: set[str] = set()

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample | Problem:
        """Sample number `index`, or, with on_error="skip", the problem with it.

        Raises:
            IndexError: if there is no such number.
            FileNotFoundError: if a file is missing; it says which, and what line of which list asks for it.
            ValueError: if a file cannot be read, sizes differ, or a label is outside the classes.
        """
        name = self.names[index]
        if self.on_error == "raise":
            return self._read(index)
        try:
            return self._read(index)
        except (OSError, ValueError) as error:
            problem = Problem.of(name, error)
        if get_worker_info() is None:
            self.report([problem])
        return problem

    def inputs(self) -> list[Path]:
        """The files and folders that samples are read from, where nothing may be written."""
        return []

    def _read(self, index: int) -> Sample:
        raise NotImplementedError

    def label_of(self, index: int) -> NDArray[np.int64] | None:
        """The labels of sample `index` alone, as in the sample; None where there are none.

        Raises:
            FileNotFoundError, ValueError: as for the sample, whatever `on_error` says.
        """
        return self._read(index).label

    def check_headers(self, index: int) -> None:
        """Raise what reading sample `index` would, as far as a look at its files' headers tells; little work.

        Raises:
            FileNotFoundError, ValueError: as for the sample, whatever `on_error` says.
        """

    def report(self, problems: Iterable[Problem]) -> None:
        """Log a warning for each problem, and keep it in `problems`; once a sample, however often it is met."""
        for problem in problems:
            if problem.name not in self._reported:
                self._reported.add(problem.name)
                self.problems.append(problem.message)
                logger.warning("left out %s: %s", problem.name, problem.message)


class FileDataset(SegmentationDataset):
    """A dataset of one image file and at most one label file a sample; see `SegmentationDataset`.

    Args:
        entries: the files.
        source: what the entries were taken from, for the error that there are none.

    Raises:
        ValueError: if there are no entries; otherwise as the base class.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        classes: Sequence[str],
        *,
        source: Path,
        palette: Any = None,
        on_error: str = "raise",
    ):
        if not entries:
            raise ValueError(f"{source}: names no samples, should name at least one")
        super().__init__([entry.name for entry in entries], classes, palette=palette, on_error=on_error)
        self.entries = list(entries)
        self._source = source

    def inputs(self) -> list[Path]:
        files = [path for entry in self.entries for path in (entry.image, entry.label) if path is not None]
        return [self._source, *sorted({path.parent for path in files})]

    def _read(self, index: int) -> Sample:
        entry = self.entries[index]
        _check_there("image", entry.image, entry)
        image = read_image(entry.image)
        label = self.label_of(index)
        if label is not None and label.shape != image.shape[:2]:
            height, width = image.shape[:2]
            raise SizesDiffer(
                f"labels of {entry.label}: are {label.shape[1]} x {label.shape[0]} pixels, should be {width} x "
                f"{height}, as the image {entry.image}"
            )
        return Sample(image, label, entry.name)

    def label_of(self, index: int) -> NDArray[np.int64] | None:
        entry = self.entries[index]
        if entry.label is None:
            return None
        _check_there("labels", entry.label, entry)
        label = self._read_labels(entry.label)
        check_labels(label, self.classes, entry.label)
        return label

    def check_headers(self, index: int) -> None:
        entry = self.entries[index]
        _check_there("image", entry.image, entry)
        size = picture_size(entry.image)
        if entry.label is None:
            return
        _check_there("labels", entry.label, entry)
        if self._label_size(entry.label) != size:
            self._read(index)  # it says so, unless the EXIF orientation turns the image

    def _read_labels(self, path: Path) -> NDArray[np.int64]:
        """Class numbers, int64 (H, W), with 255 where nothing is known."""
        return read_labels(path)

    def _label_size(self, path: Path) -> tuple[int, int]:
        """Width and height of a label file, by its header."""
        return picture_size(path, "label picture")


def _check_there(what: str, path: Path, entry: Entry) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{what} not found: {path} ({entry.origin})")


def checked_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Names of classes as a tuple; raises TypeError or ValueError if they are no 1 to 255 different names."""
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise ArgumentTypeError("classes", classes, "a sequence of names")
    names = tuple(classes)
    if not 1 <= len(names) <= IGNORED:
        raise ArgumentError("classes", len(names), f"1 to {IGNORED}", what="number of names")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ArgumentError("classes", names, f"different names, {', '.join(twice)} is there more than once")
    return names


def filled_palette(palette: Any) -> NDArray[np.uint8]:
    """256 colours, uint8 (256, 3): those given, then VOC's; raises ValueError if they are no colours."""
    filled = voc_palette()
    if palette is None:
        return filled
    colours = np.asarray(palette)
    if colours.ndim != 2 or colours.shape[1] != 3 or len(colours) > 256 or colours.dtype.kind not in "iu":
        raise ArgumentError(
            "palette", f"{colours.dtype} {colours.shape}", "integers (n, 3) with n <= 256", what="array"
        )
    if colours.size and (colours.min() < 0 or colours.max() > 255):
        raise ArgumentError("palette", f"{colours.min()} to {colours.max()}", "in 0..255", what="values")
    filled[: len(colours)] = colours
    return filled
