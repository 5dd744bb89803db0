"""Photos (those inside the scikit-image package) and plausible class scores for tests and benchmarks."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOS = ("coffee", "astronaut", "rocket", "chelsea")
_EXTENSIONS = {"coffee": "png", "astronaut": "png", "rocket": "jpg", "chelsea": "png"}


@functools.cache
def photo(name: str = "coffee", height: int = 375, width: int = 500) -> np.ndarray:
    """A photo as read-only uint8 (height, width, 3): the middle of it, at its own scale or enlarged to fit.

    Enlarged photos get some sensor noise, since interpolation alone would leave far fewer distinct colours
    than a camera does, and so a smaller lattice.
    """
    import skimage

    path = Path(skimage.__file__).parent / "data" / f"{name}.{_EXTENSIONS[name]}"
    image = Image.open(path).convert("RGB")
    scale = max(height / image.height, width / image.width, 1.0)
    if scale > 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)))
    if scale > 1.5:
        noise = np.random.default_rng(0).normal(0, 3, pixels.shape)
        pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    pixels = np.ascontiguousarray(pixels)
    pixels.flags.writeable = False
    return pixels


def scores(image: np.ndarray, labels: int, present: int | None = None, seed: int = 0) -> np.ndarray:
    """Class probabilities (labels, H, W) float32 as of a network with output stride 8, for image (H, W, 3).

    Each of the `present` labels (default: all) has a colour of the image and some places of its own; the
    logits are computed on a grid eight times coarser and enlarged bilinearly. The other labels get next to
    nothing everywhere.
    """
    height, width = image.shape[:2]
    present = labels if present is None else present
    rng = np.random.default_rng(seed)
    coarse_size = (max(width // 8, 1), max(height // 8, 1))
    coarse = np.asarray(Image.fromarray(image).resize(coarse_size, Image.Resampling.BOX), np.float32)
    colours = image.reshape(-1, 3)[rng.integers(0, height * width, present)].astype(np.float32)
    logits = np.empty((present, height, width), np.float32)
    for logit, colour in zip(logits, colours, strict=True):
        places = rng.normal(0, 3, (max(coarse_size[1] // 8, 1), max(coarse_size[0] // 8, 1))).astype(np.float32)
        coarse_logit = _enlarge(places, coarse_size) - np.square((coarse - colour) / 25).sum(axis=2)
        logit[...] = _enlarge(coarse_logit, (width, height))
    logits -= logits.max(axis=0)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=0)
    if present == labels:
        return logits
    probabilities = np.full((labels, height, width), 1e-9, np.float32)
    probabilities[np.sort(rng.permutation(labels)[:present])] = logits
    return probabilities


def unary(image: np.ndarray, labels: int, present: int | None = None, seed: int = 0) -> np.ndarray:
    """Unary energies (labels, H·W) float32 of `scores`, clipped at 1e-5 as pydensecrf's users do."""
    probabilities = scores(image, labels, present, seed).reshape(labels, -1)
    np.clip(probabilities, 1e-5, 1.0, out=probabilities)
    np.log(probabilities, out=probabilities)
    return np.negative(probabilities, out=probabilities)


def _enlarge(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BILINEAR))
