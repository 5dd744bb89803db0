"""An image cut into overlapping tiles, and their results put together."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["SMALLEST", "spans", "stitched"]

SMALLEST = 32  # of a tile's side, pixels


def spans(length: int, side: int) -> list[tuple[int, int, int, int]]:
    """Tiles along one axis: (start, stop, first, last) each, the tile and the part of it that is nearest its centre.

    Tiles are of equal length and overlap by a quarter of it at least; the parts are without gap or overlap.
    """
    if length <= side:
        return [(0, length, 0, length)]
    step = side * 3 // 4
    count = -(-(length - side) // step) + 1
    starts = [n * (length - side) // (count - 1) for n in range(count)]
    borders = [(before + after + side) // 2 for before, after in itertools.pairwise(starts)]
    return [
        (start, start + side, first, last)
        for start, first, last in zip(starts, [0, *borders], [*borders, length], strict=True)
    ]


def stitched(
    image: NDArray[np.uint8], side: int, work: Callable[[NDArray[np.uint8]], dict[str, NDArray]]
) -> dict[str, NDArray]:
    """What `work` makes of an image (H, W, 3), made tile by tile: arrays (..., H, W) by name.

    A pixel's result is that of the tile whose centre is nearest. Blending would need all classes' scores of the whole
    image; this needs those of one tile.
    """
    height, width = image.shape[:2]
    whole: dict[str, NDArray] = {}
    for top, bottom, first_row, last_row in spans(height, side):
        for left, right, first_column, last_column in spans(width, side):
            tile = work(np.ascontiguousarray(image[top:bottom, left:right]))
            for name, array in tile.items():
                if name not in whole:
                    whole[name] = np.empty((*array.shape[:-2], height, width), array.dtype)
                part = array[..., first_row - top : last_row - top, first_column - left : last_column - left]
                whole[name][..., first_row:last_row, first_column:last_column] = part
    return whole
