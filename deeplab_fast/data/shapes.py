"""A small made-up dataset in PASCAL VOC's layout: discs, squares, triangles and rings, for trials and tests.

Objects of all classes get their colours and textures from one distribution, so only the outline tells the class. The
background has the same textures in duller colours, so that a hundred pictures are enough to learn from. Objects cover
each other in part and reach over the picture's border. One picture depends on the seed, its split and its number alone.
"""

from __future__ import annotations

import colorsys
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from deeplab_fast.data._checks import checked_count
from deeplab_fast.data.datasets import VOCLayout
from deeplab_fast.errors import ArgumentError
from deeplab_fast.files import atomic_write, partial_folder
from deeplab_fast.pictures import IGNORED, boundaries, save_image, save_labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

CLASSES = ("background", "disc", "square", "triangle", "ring")
MARKER = "shapes.json"  # tells that a folder is such a set, and how it was made
_CONTENT = {"JPEGImages", "SegmentationClass", "ImageSets", MARKER}

LEAST_CONTRAST = 90.0  # distance in RGB between an object's mean colour and that of what it lies on
LEAST_VISIBLE = 0.6  # share of each object that those before it leave in sight
MOST_TURNED = np.pi / 8  # of an object, either way
ATTEMPTS = 30  # at placing an object, after which the picture goes without it


class Shapes(VOCLayout):
    """A set that `write_shapes` wrote; see `VOCLayout`.

    Args:
        root: its folder.
        split: train, val or trainval.
        on_error: see `SegmentationDataset`.

    Raises:
        FileNotFoundError, ValueError: as `VOCLayout`.
    """

    def __init__(self, root: str | os.PathLike[str], split: str, *, on_error: str = "raise"):
        super().__init__(root, split, CLASSES, on_error=on_error)


# ---------------------------------------------------------------------------------------------------- writing


def write_shapes(
    root: str | os.PathLike[str],
    train: int = 120,
    val: int = 40,
    size: tuple[int, int] = (160, 120),
    seed: int = 0,
) -> Path:
    """Write a set of made-up pictures and their labels in VOC's layout; all of it or nothing.

    Labels have one pixel of 255 along every outline, as VOC's have a few. A set that is there already is replaced.

    Args:
        root: folder to make; its parent has to be there.
        train, val: numbers of pictures, each at least 1.
        size: (width, height) of each, at least 32.
        seed: 0 or more.

    Returns:
        The folder.

    Raises:
        TypeError, ValueError: if a number is no integer, or out of its range.
        FileNotFoundError: if the parent folder is missing.
        FileExistsError: if there is a file, or a folder with anything else than such a set in it.
    """
    counts = {"train": checked_count("train", train, 1), "val": checked_count("val", val, 1)}
    if len(size) != 2:
        raise ArgumentError("size", tuple(size), "(width, height)")
    width, height = (checked_count("size", side, 32) for side in size)
    checked_count("seed", seed, 0)
    target = Path(os.path.realpath(root))
    _check_replaceable(target)

    with partial_folder(target.parent) as beside:
        _write_content(beside, counts, width, height, seed)
        _put_in_place(beside, target)
    return Path(root)


def check_made_with(root: str | os.PathLike[str], **wanted: Any) -> None:
    """Compare what the set in a folder was made with to arguments of `write_shapes`.

    Raises:
        ValueError: if they differ.
    """
    path = Path(root) / MARKER
    try:
        made = json.loads(path.read_text())
        differing = [name for name, value in wanted.items() if made[name] != json.loads(json.dumps(value))]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is not what such a set has: {error}") from error
    if differing:
        had = ", ".join(f"{name} {made[name]}" for name in differing)
        now = ", ".join(f"{name} {wanted[name]}" for name in differing)
        raise ValueError(f"{root}: was made with {had}, should have {now}: delete it, or choose another folder")


def _write_content(folder: Path, counts: dict[str, int], width: int, height: int, seed: int) -> None:
    lists = folder / "ImageSets" / "Segmentation"
    for made in (folder / "JPEGImages", folder / "SegmentationClass", lists):
        made.mkdir(parents=True)
    names: dict[str, list[str]] = {"train": [], "val": []}
    for part, (split, count) in enumerate(counts.items()):
        for number in range(count):
            image, label = draw_picture(np.random.default_rng((seed, part, number)), width, height)
            name = f"{split}_{number:04d}"
            save_image(folder / "JPEGImages" / f"{name}.jpg", image)
            save_labels(folder / "SegmentationClass" / f"{name}.png", label)
            names[split].append(name)
    names["trainval"] = [*names["train"], *names["val"]]
    for split, listed in names.items():
        _write_text(lists / f"{split}.txt", "".join(f"{name}\n" for name in listed))
    made_with = {"classes": CLASSES, **counts, "size": [width, height], "seed": seed}
    _write_text(folder / MARKER, json.dumps(made_with, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    atomic_write(path, lambda file: file.write(text.encode()))


def _check_replaceable(target: Path) -> None:
    """Raise unless there is nothing at the target, an empty folder, or a set that this file wrote and nothing more."""
    if not target.parent.is_dir():
        raise FileNotFoundError(f"root: the parent folder {target.parent} is missing")
    if not target.exists():
        return
    if not target.is_dir():
        raise FileExistsError(f"root: {target} is a file, should be a new or empty folder")
    present = set(os.listdir(target))
    if present and (MARKER not in present or not present <= _CONTENT):
        others = ", ".join(sorted(present - _CONTENT)[:4]) or "no " + MARKER
        raise FileExistsError(
            f"root: {target} has something else than a set of shapes in it ({others}), should be a new or empty folder"
        )


def _put_in_place(made: Path, target: Path) -> None:
    """Rename the finished folder to its place; a set that is there is moved away first, and back if that fails."""
    if not target.exists() or not os.listdir(target):
        if target.exists():
            target.rmdir()  # some systems do not rename over an empty folder
        made.rename(target)
        return
    with partial_folder(target.parent) as beside:
        old = beside / "old"
        target.rename(old)
        try:
            made.rename(target)
        except BaseException:
            old.rename(target)
            raise


# ---------------------------------------------------------------------------------------------------- drawing


def draw_picture(
    generator: np.random.Generator, width: int, height: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """One picture, uint8 (H, W, 3) RGB, and its labels, int64 (H, W), with two to four objects."""
    picture = _texture(generator, width, height, generator.uniform(60, 200) + generator.normal(0, 10, 3))
    instances = np.zeros((height, width), np.int64)  # 0 is background; later objects lie on earlier ones
    areas: list[int] = []
    classes = [0]
    for _ in range(int(generator.integers(2, 5))):
        kind = int(generator.integers(1, len(CLASSES)))
        for _ in range(ATTEMPTS):
            distance = _placed(generator, kind, width, height)
            covered = np.where(distance <= 0, len(classes), instances)
            visible = np.bincount(covered.ravel(), minlength=len(classes) + 1)[1:]
            whole = [*areas, int((distance <= 0).sum())]
            if whole[-1] and all(seen >= LEAST_VISIBLE * area for seen, area in zip(visible, whole, strict=True)):
                break
        else:
            continue
        instances, areas = covered, whole
        classes.append(kind)
        coverage = np.clip(0.5 - distance, 0, 1)[..., None]
        picture += (_standing_out(generator, picture, distance) - picture) * coverage

    label = np.array(classes)[instances]
    label[boundaries(instances)] = IGNORED
    light = 1 + 0.12 * _ramp(generator, width, height)[..., None]
    noisy = picture * light + generator.normal(0, 4, picture.shape)
    return np.clip(noisy, 0, 255).round().astype(np.uint8), label


def _placed(generator: np.random.Generator, kind: int, width: int, height: int) -> Floats:
    """An object of a class, of random size, place and turn: signed distance to its outline in pixels, inside < 0."""
    short = min(width, height)
    radius = generator.uniform(0.19, 0.31) * short
    centre_x = generator.uniform(0.6 * radius, width - 0.6 * radius)
    centre_y = generator.uniform(0.6 * radius, height - 0.6 * radius)
    turn = generator.uniform(-MOST_TURNED, MOST_TURNED)
    down, right = np.mgrid[:height, :width] - np.array([centre_y, centre_x])[:, None, None]
    along, across = right * np.cos(turn) + down * np.sin(turn), down * np.cos(turn) - right * np.sin(turn)
    return _OUTLINES[kind](along, across, radius)


def _disc(along: Floats, across: Floats, radius: float) -> Floats:
    return np.hypot(along, across) - 0.95 * radius


def _square(along: Floats, across: Floats, radius: float) -> Floats:
    return np.maximum(abs(along), abs(across)) - 0.85 * radius


def _triangle(along: Floats, across: Floats, radius: float) -> Floats:
    """Equilateral, by its three sides; its corners lie a bit outside of the radius, as its area is small."""
    angles = (np.pi / 2, np.pi * 7 / 6, np.pi * 11 / 6)  # of the sides' normals: one side lies at the bottom
    sides = [along * np.cos(angle) + across * np.sin(angle) for angle in angles]
    return np.max(sides, axis=0) - 0.62 * radius


def _ring(along: Floats, across: Floats, radius: float) -> Floats:
    """What is seen through it is what it lies on."""
    return abs(np.hypot(along, across) - 0.8 * radius) - 0.25 * radius


_OUTLINES: dict[int, Callable[[Any, Any, float], Any]] = dict(enumerate((_disc, _square, _triangle, _ring), 1))


# --------------------------------------------------------------------------------------------------- textures


def _standing_out(generator: np.random.Generator, picture: Floats, distance: Floats) -> Floats:
    """A texture whose mean colour differs from that of the pixels around an object's outline."""
    height, width = distance.shape
    near = (distance > 0) & (distance < 6)
    around = picture[near].mean(axis=0) if near.any() else picture.mean(axis=(0, 1))
    best, best_contrast = None, -1.0
    for _ in range(ATTEMPTS):
        vivid = colorsys.hsv_to_rgb(generator.random(), generator.uniform(0.65, 1), generator.uniform(0.6, 1))
        texture = _texture(generator, width, height, 255 * np.array(vivid))
        contrast = float(np.linalg.norm(texture[distance <= 0].mean(axis=0) - around))
        if contrast > best_contrast:
            best, best_contrast = texture, contrast
        if best_contrast >= LEAST_CONTRAST:
            break
    assert best is not None
    return best


def _texture(generator: np.random.Generator, width: int, height: int, colour: Floats) -> Floats:
    """A colour (3,) and a related one mixed by a random pattern over the whole picture, float64 (H, W, 3) in 0..255."""
    first = np.clip(colour, 0, 255)
    brightness = generator.choice((-1, 1)) * generator.uniform(12, 40)
    second = np.clip(first + brightness + generator.normal(0, 8, 3), 0, 255)
    pattern = _PATTERNS[int(generator.integers(len(_PATTERNS)))](generator, width, height)
    return first + (second - first) * pattern[..., None]


def _ramp(generator: np.random.Generator, width: int, height: int) -> Floats:
    """From -1 to 1 in a random direction, (H, W)."""
    turn = generator.uniform(0, 2 * np.pi)
    down, right = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return (right * np.cos(turn) + down * np.sin(turn)) / np.sqrt(2)


def _waves(generator: np.random.Generator, width: int, height: int) -> Floats:
    """A sine in a random direction with a period of 6 to 16 pixels, (H, W) in -1..1."""
    turn, phase = generator.uniform(0, 2 * np.pi, 2)
    period = generator.uniform(6, 16)
    down, right = np.mgrid[:height, :width]
    return np.sin((right * np.cos(turn) + down * np.sin(turn)) * (2 * np.pi / period) + phase)


def _stripes(generator: np.random.Generator, width: int, height: int) -> Floats:
    return np.clip(0.5 + 1.5 * _waves(generator, width, height), 0, 1)


def _checks(generator: np.random.Generator, width: int, height: int) -> Floats:
    return np.clip(0.5 + 3 * _waves(generator, width, height) * _waves(generator, width, height), 0, 1)


def _gradient(generator: np.random.Generator, width: int, height: int) -> Floats:
    return 0.5 + 0.5 * _ramp(generator, width, height)


def _clouds(generator: np.random.Generator, width: int, height: int) -> Floats:
    """Noise that is smooth over 4 to 12 pixels."""
    grain = generator.uniform(4, 12)
    coarse = generator.random((int(height / grain) + 2, int(width / grain) + 2), np.float32)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(smooth, np.float64), 0, 1)


def _grains(generator: np.random.Generator, width: int, height: int) -> Floats:
    """Noise from pixel to pixel."""
    return np.clip(generator.normal(0.5, 0.22, (height, width)), 0, 1)


_PATTERNS = (_stripes, _checks, _gradient, _clouds, _grains)
