"""Pictures and label maps to files, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

from deeplab_fast.errors import ArgumentError
from deeplab_fast.files import atomic_write
from deeplab_fast.pictures.drawing import voc_palette

if TYPE_CHECKING:
    from numpy.typing import NDArray


def picture_writer(
    picture: NDArray[np.uint8], path: Path, palette: NDArray[np.uint8] | None = None
) -> Callable[[BinaryIO], None]:
    """A writer, for `deeplab_fast.files.atomic_write_all`, of an RGB picture or, with a palette, of a label map.

    Raises:
        ValueError: if the path's ending names no picture format that can be written.
    """
    kind = picture_format(path)
    if palette is None:
        made = Image.fromarray(picture)
    else:
        made = Image.fromarray(np.ascontiguousarray(picture, np.uint8))
        made.putpalette(palette.tobytes())
    options: dict[str, Any] = {"quality": 92} if kind == "JPEG" else {}
    return lambda file: made.save(file, format=kind, **options)


def picture_format(path: str | os.PathLike[str]) -> str:
    """Pillow's name of the format that a path's ending stands for: PNG, JPEG, …"""
    ending = Path(path).suffix.lower()
    kind = Image.registered_extensions().get(ending)
    if kind is None or kind not in Image.SAVE:
        raise ArgumentError("path", Path(path).name, "a name that ends in .png, .jpg or as another picture's")
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
    """A writer, for `deeplab_fast.files.atomic_write_all`, of a palette PNG; otherwise as `save_labels`."""
    if path.suffix.lower() != ".png":
        raise ArgumentError("path", path.name, "a name that ends in .png, as a palette picture's")
    if labels.size and (labels.min() < 0 or labels.max() > 255):
        raise ArgumentError("labels", f"{labels.min()} to {labels.max()}", "in 0..255", what="values")
    return picture_writer(labels, path, voc_palette() if palette is None else palette)
