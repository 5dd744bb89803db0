"""Pictures in and out: photos, label maps in the VOC palette, overlays, panels. Files appear whole or not.

Everything is numpy and Pillow. Photos are uint8 (H, W, 3) RGB, label maps integer (H, W).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from deeplab_fast.files import atomic_write

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "IGNORED",
    "boundaries",
    "colour_labels",
    "labels_writer",
    "overlay",
    "panel",
    "picture_format",
    "picture_size",
    "picture_writer",
    "read_grey",
    "read_image",
    "read_labels",
    "save_image",
    "save_labels",
    "voc_palette",
]

# The label value that PASCAL VOC, and most after it, use for "not labelled".
IGNORED = 255


def voc_palette() -> NDArray[np.uint8]:
    """The 256 colours of PASCAL VOC's label pictures, uint8 (256, 3): the index's bits over R, G, B."""
    index = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette


# ---------------------------------------------------------------------------------------------------- reading


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
        raise ValueError(f"{what} must be a picture file, {path} is a folder")
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
        raise ValueError(f"label picture must be palette or grey, {path} is {picture.mode}")
    if not lossy and _format(path) in _LOSSY:
        raise ValueError(
            f"label picture {path} is a JPEG, which changes values near edges: give labels as PNG, or name every value "
            "(--values)"
        )
    return np.array(picture).astype(np.int64)


def read_grey(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """Read a grey picture, of 8 or 16 bits, as numbers from 0 (black) to 1 (white), float32 (H, W).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no readable picture, or not grey.
    """
    picture = _loaded(path, "picture")
    if picture.mode not in ("L", "1") and not picture.mode.startswith("I;16"):
        raise ValueError(f"picture must be grey, of 8 or 16 bits, {path} is {picture.mode}")
    largest = {"1": 1, "L": 255}.get(picture.mode, 65535)
    return np.array(picture).astype(np.float32) / largest


# ---------------------------------------------------------------------------------------------------- drawing


def colour_labels(labels: NDArray[Any], palette: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Labels (H, W) of 0..255 in their palette colours, uint8 (H, W, 3)."""
    return (voc_palette() if palette is None else palette)[labels]


def boundaries(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """True (H, W) where a pixel's label differs from its right or lower neighbour's."""
    edge = np.zeros(labels.shape, bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge


def overlay(
    image: NDArray[np.uint8],
    labels: NDArray[Any],
    *,
    palette: NDArray[np.uint8] | None = None,
    strength: float = 0.5,
    lines: bool = True,
    clear: Sequence[int] = (IGNORED,),
) -> NDArray[np.uint8]:
    """The photo tinted in the colours of its labels.

    Args:
        image: uint8 (H, W, 3).
        labels: (H, W), values 0..255.
        palette: uint8 (256, 3), default VOC's.
        strength: how much of the label's colour, 0..1.
        lines: draw thin white lines between labels; they hide things that are only a few pixels wide.
        clear: labels that are not tinted.
    """
    colours = colour_labels(labels, palette).astype(np.float32)
    alpha = np.where(np.isin(labels, list(clear)), 0, strength).astype(np.float32)[..., None]
    mixed = image * (1 - alpha) + colours * alpha
    if lines:
        mixed[boundaries(labels)] = 255
    return mixed.round().astype(np.uint8)


def panel(
    pictures: Sequence[NDArray[np.uint8]],
    captions: Sequence[str] | None = None,
    *,
    gap: int = 6,
    font_size: int | None = None,
) -> NDArray[np.uint8]:
    """Pictures of one height side by side on white, each with its caption above.

    Args:
        pictures: uint8 (H, W_i, 3) each, the same H.
        captions: one text a picture, or none at all.
        gap: white pixels between pictures.
        font_size: of the captions, pixels; default in proportion to H.

    Raises:
        ValueError: if the heights differ, or the captions are not as many as the pictures.
    """
    heights = {picture.shape[0] for picture in pictures}
    if len(heights) != 1:
        raise ValueError(f"pictures must have one height, had {sorted(heights)}")
    if captions is not None and len(captions) != len(pictures):
        raise ValueError(f"captions must be {len(pictures)}, as the pictures, were {len(captions)}")
    height = heights.pop()
    font_size = font_size or max(12, height // 22)
    top = 0 if captions is None else round(font_size * 1.6)
    width = sum(picture.shape[1] for picture in pictures) + gap * (len(pictures) - 1)
    canvas = Image.new("RGB", (width, top + height), "white")
    draw = ImageDraw.Draw(canvas)
    left = 0
    for number, picture in enumerate(pictures):
        canvas.paste(Image.fromarray(picture), (left, top))
        if captions is not None:
            _caption(draw, captions[number], left, picture.shape[1], top, font_size)
        left += picture.shape[1] + gap
    return np.array(canvas)


def _caption(draw: ImageDraw.ImageDraw, text: str, left: int, width: int, height: int, size: int) -> None:
    """Write one line, centred over its picture, smaller where it would not fit."""
    font = ImageFont.load_default(size)
    while size > 7 and draw.textlength(text, font) > width:
        size -= 1
        font = ImageFont.load_default(size)
    draw.text((left + width / 2, height / 2), text, fill="black", font=font, anchor="mm")


# ---------------------------------------------------------------------------------------------------- writing


def picture_writer(
    picture: NDArray[np.uint8], path: Path, palette: NDArray[np.uint8] | None = None
) -> Callable[[BinaryIO], None]:
    """A writer, for :func:`deeplab_fast.files.atomic_write_all`, of an RGB picture or, with a palette, of a label map.

    Raises:
        ValueError: if the path's ending names no picture format that can be written.
    """
    kind = picture_format(path)
    if palette is None:
        made = Image.fromarray(picture)
    else:
        made = Image.fromarray(np.ascontiguousarray(picture, np.uint8))
        made.putpalette(palette.tobytes())
    options: dict[str, Any] = {"quality": 92} if kind == "JPEG" else {"optimize": True} if kind == "PNG" else {}
    return lambda file: made.save(file, format=kind, **options)


def picture_format(path: str | os.PathLike[str]) -> str:
    """Pillow's name of the format that a path's ending stands for: PNG, JPEG, …"""
    ending = Path(path).suffix.lower()
    kind = Image.registered_extensions().get(ending)
    if kind is None or kind not in Image.SAVE:
        raise ValueError(f"output must end in .png, .jpg or another picture's ending, was {Path(path).name!r}")
    return kind


def save_image(path: str | os.PathLike[str], picture: NDArray[np.uint8]) -> None:
    """Write an RGB picture, uint8 (H, W, 3), in the format of the path's ending, whole or not at all."""
    atomic_write(path, picture_writer(picture, Path(path)))


def save_labels(path: str | os.PathLike[str], labels: NDArray[Any], palette: NDArray[np.uint8] | None = None) -> None:
    """Write labels (H, W) of 0..255 as a palette PNG, VOC's palette by default, whole or not at all.

    Raises:
        ValueError: if the path does not end in .png, or a label does not fit into 8 bits.
    """
    atomic_write(path, labels_writer(labels, Path(path), palette))


def labels_writer(
    labels: NDArray[Any], path: Path, palette: NDArray[np.uint8] | None = None
) -> Callable[[BinaryIO], None]:
    """A writer, for :func:`deeplab_fast.files.atomic_write_all`, of a palette PNG; otherwise as :func:`save_labels`."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"output must end in .png, as a palette picture, was {path.name!r}")
    if labels.size and (labels.min() < 0 or labels.max() > 255):
        raise ValueError(f"labels must lie in 0..255, were {labels.min()} to {labels.max()}")
    return picture_writer(labels, path, voc_palette() if palette is None else palette)
