"""Datasets in the layout of PASCAL VOC, and in folders of one's own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_fast.data._checks import checked_count, checked_folder
from deeplab_fast.data.problems import class_numbers, outside
from deeplab_fast.data.sample import Entry, FileDataset, checked_classes
from deeplab_fast.errors import ArgumentError
from deeplab_fast.pictures import IGNORED, IMAGE_ENDINGS, read_labels
from deeplab_fast.pictures.label_values import LabelValues

if TYPE_CHECKING:
    from numpy.typing import NDArray

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def read_list(path: Path, what: str) -> list[tuple[str, str]]:
    """The lines of a list file that are not empty, each with its place for errors: ("2007_000032", "line 1 of …").

    Raises:
        FileNotFoundError: if there is no such file; `what` says in the message what the list is.
        ValueError: if it is no UTF-8 text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{what} not found: {path}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} {path}: is no UTF-8 text: {error}") from error
    return [(line.strip(), f"line {number} of {path}") for number, line in enumerate(lines, 1) if line.strip()]


class VOCLayout(FileDataset):
    """Images and labels laid out as in PASCAL VOC 2012, of any classes.

    ``JPEGImages/{name}.jpg``, ``SegmentationClass/{name}.png``, ``ImageSets/Segmentation/{split}.txt`` with one name a
    line; ``ImageSets/SegmentationAug/{split}.txt`` for splits that end in "_aug", with the paths of image and labels on
    a line, from the root, the slash in front optional.

    Args:
        root: the folder that has JPEGImages in it, or the parent of such a folder called VOC2012.
        split: the list's name.
        classes: names of the classes, in the order of their numbers.
        labelled: whether there are labels; if not, each sample's label is None.
        palette, on_error: see `SegmentationDataset`.

    Raises:
        FileNotFoundError: if the root, a folder or the list is missing.
        ValueError: if the list is empty, or a line of it is not as above.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        classes: Sequence[str],
        *,
        labelled: bool = True,
        palette: Any = None,
        on_error: str = "raise",
    ):
        self.root = _voc_root(checked_folder("root", root))
        self.split = split
        augmented = split.endswith("_aug")
        list_path = self.root / "ImageSets" / ("SegmentationAug" if augmented else "Segmentation") / f"{split}.txt"
        lines = read_list(list_path, f"list of the split {split!r}")
        if augmented:
            entries = [_pair(self.root, line, origin) for line, origin in lines]
        else:
            images, labels = self.root / "JPEGImages", self.root / "SegmentationClass"
            if labelled:
                checked_folder("root", labels)
            entries = [
                Entry(line, images / f"{line}.jpg", labels / f"{line}.png" if labelled else None, origin)
                for line, origin in lines
            ]
        super().__init__(entries, classes, source=list_path, palette=palette, on_error=on_error)


class VOC12(VOCLayout):
    """PASCAL VOC 2012 (Everingham et al., IJCV 2015) for segmentation: 20 classes and background.

    Args:
        root: the folder VOC2012, or its parent VOCdevkit.
        split: train (1464 images), val (1449), trainval (2913) or test (1456, without labels); train_aug (10582) and
            trainval_aug, with the labels of Hariharan et al., ICCV 2011, in SegmentationClassAug.
        on_error: see `SegmentationDataset`.

    Raises:
        FileNotFoundError, ValueError: as `VOCLayout`; ValueError also for another split.
    """

    SPLITS = ("train", "val", "trainval", "test", "train_aug", "trainval_aug")

    def __init__(self, root: str | os.PathLike[str], split: str, *, on_error: str = "raise"):
        if split not in self.SPLITS:
            raise ArgumentError("split", split, f"one of {', '.join(self.SPLITS)}")
        super().__init__(root, split, VOC_CLASSES, labelled=split != "test", on_error=on_error)


def _voc_root(root: Path) -> Path:
    candidates = (root, root / "VOC2012")
    for candidate in candidates:
        if (candidate / "JPEGImages").is_dir():
            return candidate
    looked_for = " and ".join(str(candidate / "JPEGImages") for candidate in candidates)
    raise FileNotFoundError(f"root: {root} has not the layout of VOC2012; looked for {looked_for}")


def _pair(root: Path, line: str, origin: str) -> Entry:
    """The entry of a line "/JPEGImages/x.jpg /SegmentationClassAug/x.png"."""
    fields = line.split()
    if len(fields) != 2:
        raise ValueError(f"{origin}: is {line!r}, should be the paths of an image and of its labels")
    image, label = (root / field.lstrip("/") for field in fields)
    return Entry(image.stem, image, label, origin)


class Folder(FileDataset):
    """One's own data: a folder of images, and a folder of label PNGs with the same names.

    Args:
        images: folder of .jpg, .jpeg, .png, .bmp, .webp, .tif or .tiff files.
        labels: folder of `{name}.png`, palette or grey, 8 or 16 bits, whose values are class numbers, or what
            `label_values` says; None where there are none, for prediction.
        classes: names of the classes, in the order of their numbers.
        list: a text file with one image name a line, with or without its ending; default all images, sorted.
        palette, on_error: see `SegmentationDataset`.
        ignore_index: the value, in the label files, of pixels of which nothing is known. In samples it is 255, as it
            may be in the files too. None: every pixel is known, and 255 is a value like others.
        label_values: the class, or None for pixels of which nothing is known, of each value in the label files:
            {0: 0, 255: 1} for masks of 0 and 255. A value that it names is not `ignore_index` or 255 any more.

    Raises:
        FileNotFoundError: if a folder or the list is missing.
        ValueError: if no image is found, the list is empty, a name stands for two image files, or a value is to be a
            class that there is not.
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        labels: str | os.PathLike[str] | None,
        classes: Sequence[str],
        *,
        list: str | os.PathLike[str] | None = None,
        palette: Any = None,
        ignore_index: int | None = IGNORED,
        label_values: Mapping[int, int | None] | None = None,
        on_error: str = "raise",
    ):
        self.images = checked_folder("images", images)
        self.labels = None if labels is None else checked_folder("labels", labels)
        self._values = _meanings(len(checked_classes(classes)), ignore_index, label_values)
        if label_values is not None:
            self._expected = f"a value that label_values names: {self._values}"
        elif ignore_index is None:
            self._expected = class_numbers(classes)
        else:
            ignored = " or ".join(map(str, dict.fromkeys((ignore_index, IGNORED))))
            self._expected = f"{class_numbers(classes)} or {ignored} (not labelled)"
        found = _images_by_name(self.images)
        if list is None:
            lines, source = [(name, f"in {self.images}") for name in sorted(found)], self.images
        else:
            source = Path(list)
            lines = read_list(source, "list")
        entries = [self._entry(line, origin, found) for line, origin in lines]
        super().__init__(entries, classes, source=source, palette=palette, on_error=on_error)

    def inputs(self) -> list[Path]:
        return [*super().inputs(), self.images, *([self.labels] if self.labels is not None else [])]

    def _entry(self, line: str, origin: str, found: dict[str, list[Path]]) -> Entry:
        if line.lower().endswith(IMAGE_ENDINGS):
            image = self.images / line
            name = image.stem
        else:
            name = line
            candidates = found.get(name) or [self.images / f"{name}.*"]  # what is missing is told when it is asked for
            if len(candidates) > 1:
                raise ValueError(f"images: {name} stands for {' and '.join(map(str, candidates))}, should be one file")
            image = candidates[0]
        return Entry(name, image, None if self.labels is None else self.labels / f"{name}.png", origin)

    def _read_labels(self, path: Path) -> NDArray[np.int64]:
        stored = read_labels(path)
        unnamed = self._values.unnamed(stored)
        if unnamed:
            raise outside(stored[np.isin(stored, unnamed)], path, self._expected)
        return self._values.apply(stored)


def _meanings(classes: int, ignore_index: int | None, label_values: Mapping[int, int | None] | None) -> LabelValues:
    """What each value of a label file stands for, of so many classes; see `Folder`."""
    ignored = {} if ignore_index is None else {checked_count("ignore_index", ignore_index, 0): None, IGNORED: None}
    if label_values is None:
        return LabelValues({**{k: k for k in range(classes)}, **ignored})
    for value, meaning in label_values.items():
        checked_count("label_values", value, 0)
        if meaning is not None and checked_count(f"label_values: {value}", meaning, 0) >= classes:
            raise ArgumentError(
                "label_values", meaning, f"a class from 0 to {classes - 1}, or ignored", what=f"meaning of {value}"
            )
    return LabelValues(dict(sorted({**ignored, **label_values}.items())))


def _images_by_name(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith("."):
            found.setdefault(path.stem, []).append(path)
    return found
