"""Datasets in the layout of PASCAL VOC."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deeplab_fast.data._checks import checked_folder
from deeplab_fast.data.sample import Entry, FileDataset
from deeplab_fast.errors import ArgumentError

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
