"""Draws the figures of docs/how-the-crf-works.md, from a photo that scikit-image ships: `python docs/figures.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from deeplab_fast import crf, pictures  # noqa: E402
from demo import annotate  # noqa: E402

IMAGES = Path(__file__).parent / "images"
ROWS, COLUMNS = slice(40, 340), slice(110, 460)  # of the photo: the man's head, the camera, buildings behind
PIXEL = (150, 300)  # row and column, on the camera


def kernels(photo: annotate.Annotation) -> np.ndarray:
    """What each pixel counts for one of them: the two kernels of preset psa, whose reach is wide enough to be seen."""
    params = crf.parameters("psa")
    rows, columns = np.indices(photo.image.shape[:2])
    far = (rows - PIXEL[0]) ** 2 + (columns - PIXEL[1]) ** 2
    other = ((photo.image.astype(float) - photo.image[PIXEL]) ** 2).sum(axis=2)
    spatial = np.exp(-far / (2 * params.pos_xy_std**2))
    bilateral = np.exp(-far / (2 * params.bi_xy_std**2) - other / (2 * np.square(params.bi_rgb_std)))
    maps = [_tinted(photo.image, weight) for weight in (spatial, bilateral)]
    return pictures.panel(
        [part[ROWS, COLUMNS] for part in (photo.image, *maps)], ["photo", "spatial", "bilateral"], font_size=22
    )


def _tinted(image: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The photo, greyed, and red where the weight is near 1."""
    grey = 0.4 * image.astype(float) + 120
    red = np.array([200.0, 20.0, 20.0])
    return (grey + weight[..., None] * (red - grey)).clip(0, 255).astype(np.uint8)


def iterations(photo: annotate.Annotation) -> np.ndarray:
    """The input, and the labels after a few iterations."""
    built = crf.build(photo.image, photo.probabilities(), "deeplab")
    labels = [photo.rough(), *(built.infer(count).argmax(axis=0) for count in (1, 3, 10))]
    return _row(photo, labels, ["input", "1 iteration", "3 iterations", "10 iterations"])


def presets(photo: annotate.Annotation) -> np.ndarray:
    """The labels with parameters of four methods."""
    names = ["deeplab", "afa", "irn", "psa"]
    return _row(photo, [crf.refine(photo.image, photo.probabilities(), name).argmax(axis=0) for name in names], names)


def _row(photo: annotate.Annotation, labels: list[np.ndarray], captions: list[str]) -> np.ndarray:
    shown = [pictures.overlay(photo.image, one, palette=photo.palette, strength=0.55) for one in labels]
    return pictures.panel([part[ROWS, COLUMNS] for part in shown], captions, font_size=26)


def main(folder: Path = IMAGES) -> None:
    photo = annotate.load(annotate.FOLDER / "camera.json")
    for draw in (kernels, iterations, presets):
        pictures.save_image(folder / f"crf-{draw.__name__}.jpg", draw(photo))


if __name__ == "__main__":
    main()
