"""Made-up data sets for the tests of whole runs: photos, scores and true labels, in folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab_fast import crf, pictures

CLASSES = 4
COLOURS = np.array([[20, 40, 90], [220, 180, 60], [40, 160, 70], [200, 60, 160]])


def scene(seed: int, height: int = 48, width: int = 64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A photo (H, W, 3), its labels (H, W), and logits (K, H/8, W/8) that are roughly right."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((height, width), np.uint8)
    for k in range(1, CLASSES):
        top, left = rng.integers(0, height - 16), rng.integers(0, width - 20)
        truth[top : top + rng.integers(8, 16), left : left + rng.integers(8, 20)] = k
    photo = COLOURS[truth] + rng.integers(-9, 10, (height, width, 3))
    one_hot = (truth == np.arange(CLASSES)[:, None, None]).astype(np.float32)
    coarse = one_hot.reshape(CLASSES, height // 8, 8, width // 8, 8).mean((2, 4))
    logits = 4 * coarse + rng.normal(0, 0.8, coarse.shape)
    return photo.clip(0, 255).astype(np.uint8), truth, logits.astype(np.float32)


def make_set(root: Path, count: int, height: int = 48, width: int = 64) -> Path:
    """Fill the folders images, scores and labels with `count` of each; a third of the images is in a folder `more`."""
    for folder in ("images", "scores", "labels"):
        (root / folder / "more").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        photo, truth, logits = scene(number, height, width)
        name = f"more/{number:04}" if number % 3 == 2 else f"{number:04}"
        Image.fromarray(photo).save(root / f"images/{name}.png", compress_level=1)
        np.save(root / f"scores/{name}.npy", logits)
        pictures.save_labels(root / f"labels/{name}.png", truth)
    return root


@pytest.fixture
def set_of_six(tmp_path: Path) -> Path:
    """A folder with six of each; test files give it a name of theirs."""
    return make_set(tmp_path, 6)


def names(count: int) -> list[str]:
    """Of the images that `make_set` makes."""
    return [f"more/{number:04}" if number % 3 == 2 else f"{number:04}" for number in range(count)]


def written(out: Path) -> dict[str, bytes]:
    """The content of every file in a folder, hidden ones as well, by its path in it."""
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def refine(folder: Path, out: str = "out", **options) -> crf.DatasetResult:
    """Refine what `make_set` made in `folder`, in this process, with the defaults, unless `options` say otherwise."""
    return crf.refine_dataset(folder / "images", folder / "scores", folder / out, **{"jobs": 0, **options})


def labels_of(path: Path) -> np.ndarray:
    """The labels (H, W) of a result, which is a palette picture."""
    with Image.open(path) as picture:
        assert picture.mode == "P"
        return np.array(picture)
