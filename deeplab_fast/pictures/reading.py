"""Photos and label pictures from files; each of Pillow's ways to fail becomes an error that names the file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What names of photos end in.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# Formats whose pixels are not those that were stored; MPO is a camera's JPEG with more pictures in it.
_LOSSY = ("JPEG", "MPO")


def _format(path: str | os.PathLike[str]) -> str | None:
    with Image.open(path) as picture:
        return picture.format


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str], what: str) -> Iterator[Image.Image]:
    """A picture whose header is read; each of Pillow's ways to fail becomes one that names the file."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{what} not found: {path}")
    if path.is_dir():
        raise ValueError(f"{what} {path}: is a folder, should be a picture file")
    try:
        with Image.open(path) as picture:
            yield picture
    except (PermissionError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(f"{what} {path} has too many pixels: {error}") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{what} {path} is no readable picture") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise ValueError(f"{what} {path} is no readable picture: {error}") from error


def _loaded(path: str | os.PathLike[str], what: str) -> Image.Image:
    """A decoded picture, the right way up."""
    with _opened(path, what) as picture:
        picture.load()
        return ImageOps.exif_transpose(picture)


def picture_size(path: str | os.PathLike[str], what: str = "image") -> tuple[int, int]:
    """Width and height of a picture as its file's header has them: not turned by the EXIF orientation.

    Args:
        path: the file.
        what: it is, for errors.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if its header is not that of a picture, or has too many pixels.
    """
    with _opened(path, what) as picture:
        return picture.size


def read_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read a photo as RGB, uint8 (H, W, 3), the right way up.

    The EXIF orientation is applied, grey is repeated, 16-bit grey is scaled to 8 bits, palettes are looked up
    and transparency is laid on white.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no picture that can be read, or has too many pixels.
    """
    picture = _loaded(path, "image")
    if picture.mode.startswith("I") or picture.mode == "F":
        grey = np.asarray(picture).astype(np.float64) / (1 if picture.mode == "F" else 257)
        return np.repeat(np.clip(grey, 0, 255).round().astype(np.uint8)[..., None], 3, axis=2)
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.array(picture.convert("RGB"))


def read_labels(path: str | os.PathLike[str], *, lossy: bool = False) -> NDArray[np.int64]:
    """Read a label picture (palette or grey, 8 or 16 bits) as class numbers, int64 (H, W).

    Args:
        path: the file.
        lossy: also read a JPEG, for a caller that checks every value.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no readable picture, one in colour, whose pixels are no class numbers, or a JPEG, whose
            pixels are not the ones that were stored.
    """
    picture = _loaded(path, "label picture")
    if picture.mode not in ("P", "L", "1") and not picture.mode.startswith("I"):
        raise ValueError(f"label picture {path}: mode is {picture.mode}, should be palette or grey")
    if not lossy and _format(path) in _LOSSY:
        raise ValueError(
            f"label picture {path} is a JPEG, which changes values near edges: give labels as PNG, or name every value "
            "(--values)"
        )
    return np.array(picture).astype(np.int64)


def read_label_colors(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read a label picture whose colours stand for classes, RGB, uint8 (H, W, 3).

    Palettes are looked up, grey is repeated, transparency is dropped.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no readable picture, of more than 8 bits, or a JPEG, whose colours are not the ones that
            were stored.
    """
    picture = _loaded(path, "label picture")
    if picture.mode.startswith("I") or picture.mode == "F":
        raise ValueError(f"label picture {path}: mode is {picture.mode}, should be in colour, of 8 bits")
    if _format(path) in _LOSSY:
        raise ValueError(f"label picture {path} is a JPEG, which changes colours near edges: give labels as PNG")
    return np.array(picture.convert("RGB"))


def read_palette(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """The colours of a palette picture, uint8 (256, 3); those that it lacks are black.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no readable picture, or has no palette.
    """
    picture = _loaded(path, "palette")
    if picture.mode != "P":
        raise ValueError(f"palette {path}: mode is {picture.mode}, should be palette")
    colours = np.array(picture.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colours)] = colours
    return palette


def read_grey(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """Read a grey picture, of 8 or 16 bits, as numbers from 0 (black) to 1 (white), float32 (H, W).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no readable picture, or not grey.
    """
    picture = _loaded(path, "picture")
    if picture.mode not in ("L", "1") and not picture.mode.startswith("I;16"):
        raise ValueError(f"picture {path}: mode is {picture.mode}, should be grey, of 8 or 16 bits")
    largest = {"1": 1, "L": 255}.get(picture.mode, 65535)
    return np.array(picture).astype(np.float32) / np.float32(largest)
