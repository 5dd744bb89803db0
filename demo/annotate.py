"""Rough annotations of photos: read from JSON, drawn as labels, softened into scores as a network gives them.

An annotation file names a photo that scikit-image ships, its classes with a colour each, shapes in pixels of
the photo (polygons, and strokes with a width; later ones cover earlier ones), the kind of input to make of
them, and the CRF's parameters. Two kinds:

- ``"labels"``: the shapes as a label map; what no shape covers, and shapes of the class "unsure", may be
  anything (255). A person's scribbles, or a mask with a broad unsure rim.
- ``"scores"``: the shapes moved by ``shift``, on a grid of 1/8 the size, blurred and never quite certain:
  what comes out of a segmentation network before upsampling. What no shape covers is class 0.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from deeplab_fast import crf, pictures

FOLDER = Path(__file__).parent / "annotations"
STRIDE = 8


@dataclass(frozen=True)
class Annotation:
    """One annotated photo; ``image`` uint8 (H, W, 3), ``labels`` int64 (H, W) as drawn."""

    name: str
    title: str
    image: np.ndarray
    labels: np.ndarray
    kind: str
    classes: list[str]
    palette: np.ndarray
    preset: str
    params: crf.CRFParameters
    gt_prob: float
    blur: float
    shift: tuple[int, int]
    lines: bool
    crop: tuple[int, int, int, int]

    def scores(self) -> np.ndarray:
        """A network's logits for this photo, float32 (K, H/8, W/8)."""
        height, width = self.labels.shape
        small = (-(-width // STRIDE), -(-height // STRIDE))
        right, down = self.shift
        rows = np.clip(np.arange(height) - down, 0, height - 1)
        columns = np.clip(np.arange(width) - right, 0, width - 1)
        moved = self.labels[rows[:, None], columns]
        maps = []
        for k in range(len(self.classes)):
            mask = Image.fromarray(np.where(moved == k, 255, 0).astype(np.uint8))
            mask = mask.resize(small, Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(self.blur))
            maps.append(np.asarray(mask, np.float32) / 255)
        prob = np.stack(maps)
        prob /= prob.sum(axis=0)
        return np.log(self.gt_prob * prob + (1 - self.gt_prob) / len(self.classes))

    def probabilities(self) -> np.ndarray:
        """What goes into the CRF: float32 (K, H, W)."""
        if self.kind == "labels":
            return crf.probabilities_from_labels(self.labels, len(self.classes), self.gt_prob)
        return crf.probabilities_from_scores(crf.resize_scores(self.scores(), self.labels.shape), "logits")

    def rough(self) -> np.ndarray:
        """The input as a label map: the drawing itself, or each pixel's best score."""
        return self.labels if self.kind == "labels" else self.probabilities().argmax(axis=0)


def photo_folder() -> Path:
    """Where the installed scikit-image keeps the photos it ships (nothing is downloaded)."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("the demo's photos come with scikit-image: pip install scikit-image")
    return Path(found.origin).parent / "data"


def load(path: Path) -> Annotation:
    """Read one annotation file and the photo it names."""
    data = json.loads(path.read_text(encoding="utf-8"))
    image = pictures.read_image(photo_folder() / data["photo"])
    names = list(data["classes"])
    palette = np.zeros((256, 3), np.uint8)
    for k, colour in enumerate(data["classes"].values()):
        palette[k] = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    palette[pictures.IGNORED] = 225
    return Annotation(
        name=path.stem,
        title=data["title"],
        image=image,
        labels=draw(data["shapes"], names, image.shape[:2], pictures.IGNORED if data["input"] == "labels" else 0),
        kind=data["input"],
        classes=names,
        palette=palette,
        preset=data["crf"]["preset"],
        params=crf.parameters(**data["crf"]),
        gt_prob=data["gt_prob"],
        blur=data.get("blur", 1.0),
        shift=tuple(data.get("shift", (0, 0))),
        lines=data.get("lines", True),
        crop=tuple(data.get("crop", (0, 0, image.shape[1], image.shape[0]))),
    )


def load_all() -> list[Annotation]:
    """All annotated photos, in the order of their file names."""
    return [load(path) for path in sorted(FOLDER.glob("*.json"))]


def draw(shapes: list[dict], names: list[str], size: tuple[int, int], empty: int) -> np.ndarray:
    """Rasterise polygons and strokes into a label map, int64 (H, W); ``empty`` where there is no shape."""
    canvas = Image.new("L", size[::-1], empty)
    pen = ImageDraw.Draw(canvas)
    for shape in shapes:
        label = pictures.IGNORED if shape["class"] == "unsure" else names.index(shape["class"])
        if "polygon" in shape:
            pen.polygon([tuple(point) for point in shape["polygon"]], fill=label)
            continue
        points, width = [tuple(point) for point in shape["stroke"]], shape["width"]
        pen.line(points, fill=label, width=width, joint="curve")
        for x, y in (points[0], points[-1]):
            pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=label)
    return np.asarray(canvas).astype(np.int64)
