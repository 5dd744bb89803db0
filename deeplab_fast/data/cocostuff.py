"""COCO-Stuff (Caesar et al., CVPR 2018): the set of 10 thousand images, and that of 164 thousand."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deeplab_fast.data._checks import checked_folder
from deeplab_fast.data.datasets import read_list
from deeplab_fast.data.sample import Entry, FileDataset
from deeplab_fast.errors import ArgumentError
from deeplab_fast.pictures import IGNORED

if TYPE_CHECKING:
    from numpy.typing import NDArray

_THINGS = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, street sign,
stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, hat, backpack,
umbrella, shoe, eye glasses, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat,
baseball glove, skateboard, surfboard, tennis racket, bottle, plate, wine glass, cup, fork, knife, spoon, bowl, banana,
apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, mirror,
dining table, window, desk, toilet, door, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster,
sink, refrigerator, blender, book, clock, vase, scissors, teddy bear, hair drier, toothbrush, hair brush
"""
_STUFF = """
banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile,
cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble, floor-other,
floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, grass, gravel, ground-other, hill,
house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other,
plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea, shelf, sky-other,
skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table, tent, textile-other, towel, tree,
vegetable, wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops,
window-blind, window-other, wood
"""
# The dataset's identifiers 1 to 182, in order: 91 things, eleven of them never labelled, and 91 kinds of stuff.
COCOSTUFF_CLASSES = tuple(" ".join(name.split()) for part in (_THINGS, _STUFF) for name in part.split(","))
NEVER_LABELLED = (
    *("street sign", "hat", "shoe", "eye glasses", "plate", "mirror", "window", "desk", "door", "blender"),
    "hair brush",
)


class COCOStuff10k(FileDataset):
    """COCO-Stuff 10k, version 1.1: ``images/{name}.jpg``, ``annotations/{name}.mat``, ``imageLists/{split}.txt``.

    The label files hold, under the key S, 0 for pixels without label and 1 to 182 for the classes; in samples these are
    255 and 0 to 181.

    Args:
        root: the folder that has the three in it.
        split: train (9000 images), test (1000) or all.
        on_error: see `SegmentationDataset`.

    Raises:
        FileNotFoundError: if the root, a folder or the list is missing.
        ValueError: for another split, or if the list is empty.
        ImportError: without scipy, which reads .mat files.
    """

    SPLITS = ("train", "test", "all")
    never_labelled = NEVER_LABELLED

    def __init__(self, root: str | os.PathLike[str], split: str, *, on_error: str = "raise"):
        if split not in self.SPLITS:
            raise ArgumentError("split", split, f"one of {', '.join(self.SPLITS)}")
        if importlib.util.find_spec("scipy") is None:
            raise ImportError("COCO-Stuff 10k has its labels in .mat files, which scipy reads: pip install scipy")
        self.root = checked_folder("root", root)
        self.split = split
        images = checked_folder("root", self.root / "images")
        labels = checked_folder("root", self.root / "annotations")
        list_path = self.root / "imageLists" / f"{split}.txt"
        entries = [
            Entry(name, images / f"{name}.jpg", labels / f"{name}.mat", origin)
            for name, origin in read_list(list_path, f"list of the split {split!r}")
        ]
        super().__init__(entries, COCOSTUFF_CLASSES, source=list_path, on_error=on_error)

    def _label_size(self, path: Path) -> tuple[int, int]:
        from scipy.io import whosmat

        with _readable(path):
            shapes = {name: shape for name, shape, _ in whosmat(path)}
        if len(shapes.get("S", ())) != 2:
            self._read_labels(path)  # it says what is wrong
        height, width = shapes["S"]
        return width, height

    def _read_labels(self, path: Path) -> NDArray[np.int64]:
        from scipy.io import loadmat

        with _readable(path):
            content = loadmat(path, variable_names=["S"])
        stored = content.get("S")
        if stored is None or stored.ndim != 2 or stored.dtype.kind not in "iuf":
            found = "no such array" if stored is None else f"shape {stored.shape} and dtype {stored.dtype}"
            raise ValueError(f"labels of {path}: have {found} under the key S, should have numbers (H, W)")
        labels = stored.astype(np.int64) - 1
        # A stored 256 would become 255 too, and pass for a pixel without label.
        labels[labels == IGNORED] = IGNORED + 1
        labels[labels == -1] = IGNORED
        return labels


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns each of the ways in which reading a .mat file fails into one that names the file."""
    try:
        yield
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # the reader raises ValueError, TypeError, zlib.error, NotImplementedError and more
        raise ValueError(f"labels of {path}: are no readable .mat file: {error}") from error


class COCOStuff164k(FileDataset):
    """COCO-Stuff on the images of COCO 2017: ``images/{split}/{name}.jpg``, ``annotations/{split}/{name}.png``.

    Args:
        root: the folder that has both in it.
        split: train2017 (118,287 images) or val2017 (5,000); "train" and "val" for short.
        on_error: see `SegmentationDataset`.

    Raises:
        FileNotFoundError: if the root or a folder is missing.
        ValueError: for another split, or if there are no images.
    """

    SPLITS = ("train2017", "val2017")
    never_labelled = NEVER_LABELLED

    def __init__(self, root: str | os.PathLike[str], split: str, *, on_error: str = "raise"):
        full = split if split in self.SPLITS else f"{split}2017"
        if full not in self.SPLITS:
            raise ArgumentError("split", split, f"one of {', '.join(self.SPLITS)}")
        self.root = checked_folder("root", root)
        self.split = full
        images = checked_folder("root", self.root / "images" / full)
        labels = checked_folder("root", self.root / "annotations" / full)
        names = sorted(
            entry.name[: -len(".jpg")]
            for entry in os.scandir(images)
            if entry.name.endswith(".jpg") and not entry.name.startswith(".")
        )
        origin = f"in {images}"
        entries = [Entry(name, images / f"{name}.jpg", labels / f"{name}.png", origin) for name in names]
        super().__init__(entries, COCOSTUFF_CLASSES, source=images, on_error=on_error)

    def inputs(self) -> list[Path]:
        others = [self.root / part / split for part in ("images", "annotations") for split in self.SPLITS]
        return [*super().inputs(), *others]
