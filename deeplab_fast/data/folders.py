"""Datasets in folders of one's own: which photo goes with which label file, and what the label files' values mean."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_fast.data._checks import checked_count, checked_folder
from deeplab_fast.data.datasets import read_list
from deeplab_fast.data.problems import LabelsOutside, class_numbers, outside
from deeplab_fast.data.sample import Entry, FileDataset, checked_classes
from deeplab_fast.errors import ArgumentError
from deeplab_fast.pictures import IGNORED, IMAGE_ENDINGS, read_label_colors, read_labels
from deeplab_fast.pictures.label_values import LabelValues

if TYPE_CHECKING:
    from numpy.typing import NDArray

Color = tuple[int, int, int]
SHOWN = 5  # colours that an error lists


class Folder(FileDataset):
    """One's own data: a folder of images, and a folder of label pictures with the same names.

    Args:
        images: folder of .jpg, .jpeg, .png, .bmp, .webp, .tif or .tiff files, or those of `image_ending`.
        labels: folder of `{name}.png`, palette or grey, 8 or 16 bits, whose values are class numbers, or what
            `label_values` or `label_colors` says; None where there are none, for prediction.
        classes: names of the classes, in the order of their numbers.
        list: a text file with one image name a line, with or without its ending; default all images, sorted.
        palette, on_error: see `SegmentationDataset`.
        ignore_index: the value, in the label files, of pixels of which nothing is known. In samples it is 255, as it
            may be in the files too. None: every pixel is known, and 255 is a value like others.
        label_values: the class, or None for pixels of which nothing is known, of each value in the label files:
            {0: 0, 255: 1} for masks of 0 and 255. A value that it names is not `ignore_index` or 255 any more.
        label_colors: likewise of each colour, (red, green, blue), in label files that are in colour, or palette
            pictures whose colours count and not their numbers; in place of `label_values` and `ignore_index`.
        image_ending: what the names of image files end in, all that is not the sample's name: ".ppm", or
            "_leftImg8bit.png"; None: any ending above.
        label_ending: of label files, likewise: "_mask.png" for `{name}_mask.png`.
        pairs: whether each line of `list` has two paths, of an image in `images` and of its label file in `labels`, or
            absolute ones, separated by a tab, a comma or a space. Names are then the images' paths without ending.

    Raises:
        FileNotFoundError: if a folder or the list is missing.
        ValueError: if no image is found, the list is empty, a name stands for two image files, a line is no pair, or a
            value or a colour is to be a class that there is not.
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
        label_colors: Mapping[Color, int | None] | None = None,
        image_ending: str | None = None,
        label_ending: str = ".png",
        pairs: bool = False,
        on_error: str = "raise",
    ):
        self.images = checked_folder("images", images)
        self.labels = None if labels is None else checked_folder("labels", labels)
        self.image_ending, self.label_ending = image_ending, label_ending
        K = len(checked_classes(classes))
        self._in_color = label_colors is not None
        if label_colors is not None:
            if label_values is not None:
                raise ArgumentError("label_colors", label_colors, "left out where there are label_values")
            self._values = _meanings_of_colors(K, label_colors)
        else:
            self._values = _meanings(K, ignore_index, label_values)
        if label_values is not None:
            self._expected = f"a value that label_values names: {self._values}"
        elif ignore_index is None:
            self._expected = class_numbers(classes)
        else:
            ignored = " or ".join(map(str, dict.fromkeys((ignore_index, IGNORED))))
            self._expected = f"{class_numbers(classes)} or {ignored} (not labelled)"
        if pairs and list is None:
            raise ArgumentError("pairs", True, "False without a list of them")
        found = {} if pairs else _images_by_name(self.images, image_ending)
        if list is None:
            lines, source = [(name, f"in {self.images}") for name in sorted(found)], self.images
        else:
            source = Path(list)
            lines = read_list(source, "list")
        entries = [self._pair(*line) if pairs else self._entry(*line, found) for line in lines]
        super().__init__(entries, classes, source=source, palette=palette, on_error=on_error)

    def inputs(self) -> list[Path]:
        return [*super().inputs(), self.images, *([self.labels] if self.labels is not None else [])]

    def _entry(self, line: str, origin: str, found: dict[str, list[Path]]) -> Entry:
        if self.image_ending is not None and line.endswith(self.image_ending):
            image, name = self.images / line, line.removesuffix(self.image_ending)
        elif self.image_ending is None and line.lower().endswith(IMAGE_ENDINGS):
            image = self.images / line
            name = image.stem
        else:
            name = line
            # What is missing is told when it is asked for.
            candidates = found.get(name) or [self.images / f"{name}{self.image_ending or '.*'}"]
            if len(candidates) > 1:
                raise ValueError(f"images: {name} stands for {' and '.join(map(str, candidates))}, should be one file")
            image = candidates[0]
        return Entry(name, image, None if self.labels is None else self.labels / f"{name}{self.label_ending}", origin)

    def _pair(self, line: str, origin: str) -> Entry:
        """The entry of a line "day/a.jpg day/a_mask.png"."""
        splits = ([field.strip() for field in line.split(separator)] for separator in ("\t", ",", None))
        fields = next((fields for fields in splits if len(fields) == 2 and all(fields)), None)
        if fields is None:
            wanted = "the paths of an image and of its labels, separated by a tab, a comma or a space"
            raise ValueError(f"{origin}: is {line!r}, should be {wanted}")
        image, label = map(Path, fields)
        name = image.with_suffix("").as_posix()
        if self.image_ending is not None:
            name = image.as_posix().removesuffix(self.image_ending)
        if image.is_absolute() or ".." in image.parts:  # results are saved by the name, in another folder
            name = Path(name).name
        return Entry(name, self.images / image, None if self.labels is None else self.labels / label, origin)

    def _read_labels(self, path: Path) -> NDArray[np.int64]:
        stored = _codes(read_label_colors(path)) if self._in_color else read_labels(path)
        unnamed = self._values.unnamed(stored)
        if unnamed and self._in_color:
            pixels = int(np.isin(stored, unnamed).sum())
            listed = "; ".join(map(_color, unnamed[:SHOWN])) + ("; …" if len(unnamed) > SHOWN else "")
            wanted = "named in label_colors"
            raise LabelsOutside(f"labels of {path}: have the colours {listed} ({pixels} pixels), should be {wanted}")
        if unnamed:
            raise outside(stored[np.isin(stored, unnamed)], path, self._expected)
        return self._values.apply(stored)


def _codes(colors: NDArray[np.uint8]) -> NDArray[np.int64]:
    """One number a colour: uint8 (H, W, 3) -> (H, W)."""
    return colors.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])


def _color(code: int) -> str:
    return f"{code >> 16}, {code >> 8 & 255}, {code & 255}"


def _checked_meaning(name: str, value: object, meaning: int | None, classes: int) -> None:
    if meaning is not None and checked_count(f"{name}: {value}", meaning, 0) >= classes:
        raise ArgumentError(name, meaning, f"a class from 0 to {classes - 1}, or ignored", what=f"meaning of {value}")


def _meanings_of_colors(classes: int, label_colors: Mapping[Color, int | None]) -> LabelValues:
    """What each code of a colour stands for."""
    for color, meaning in label_colors.items():
        if len(color) != 3 or not all(0 <= checked_count("label_colors", part, 0) <= 255 for part in color):
            raise ArgumentError("label_colors", color, "red, green and blue in 0..255", what="colour")
        _checked_meaning("label_colors", color, meaning, classes)
    colors = np.array([*label_colors], np.uint8).reshape(-1, 3)
    return LabelValues(dict(sorted(zip(_codes(colors).tolist(), label_colors.values(), strict=True))))


def _meanings(classes: int, ignore_index: int | None, label_values: Mapping[int, int | None] | None) -> LabelValues:
    """What each value of a label file stands for, of so many classes; see `Folder`."""
    ignored = {} if ignore_index is None else {checked_count("ignore_index", ignore_index, 0): None, IGNORED: None}
    if label_values is None:
        return LabelValues({**{k: k for k in range(classes)}, **ignored})
    for value, meaning in label_values.items():
        checked_count("label_values", value, 0)
        _checked_meaning("label_values", value, meaning, classes)
    return LabelValues(dict(sorted({**ignored, **label_values}.items())))


def _images_by_name(folder: Path, ending: str | None) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if ending is None and path.suffix.lower() in IMAGE_ENDINGS:
            found.setdefault(path.stem, []).append(path)
        elif ending is not None and path.name.endswith(ending) and path.name != ending:
            found.setdefault(path.name.removesuffix(ending), []).append(path)
    return found
