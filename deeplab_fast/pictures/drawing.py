"""Label maps in colour, over their photos, and side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deeplab_fast.errors import ArgumentError
from deeplab_fast.pictures.label_values import IGNORED

if TYPE_CHECKING:
    from numpy.typing import NDArray


def voc_palette() -> NDArray[np.uint8]:
    """The 256 colours of PASCAL VOC's label pictures, uint8 (256, 3): the index's bits over R, G, B."""
    index = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette


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
        raise ArgumentError("pictures", sorted(heights), "one height", what="list of heights")
    if captions is not None and len(captions) != len(pictures):
        raise ArgumentError("captions", len(captions), f"{len(pictures)}, as of the pictures", what="number")
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
