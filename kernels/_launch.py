"""What the launchers of both ops share: memory formats, strides and tiles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from deeplab_fast._conv_arguments import format_of

from .choices import Tile

LAST = torch.channels_last


def map_strides(maps: Tensor, of: str = "") -> dict[str, int]:
    """Elements from one image, channel and pixel to the next, of contiguous or channels_last (N, C, H, W).

    As arguments of a kernel, whose names begin with `of`. From the shape: torch gives axes of length 1 any stride.
    """
    _, channels, height, width = maps.shape
    area = height * width
    channel, pixel = (1, channels) if format_of(maps) == LAST else (area, 1)
    return {f"{of}image_stride": channels * area, f"{of}channel_stride": channel, f"{of}pixel_stride": pixel}


def fits_32_bits(maps: Tensor, reach: Sequence[int]) -> bool:
    """Whether numbers of pixels fit in 32 bits; reach: how far outside the map taps lie, vertically, horizontally."""
    batch, _, height, width = maps.shape
    return (batch * height + 2 * reach[0]) * width + 2 * reach[1] < 2**30


def is_wide(maps: Tensor, padding: Sequence[int]) -> bool:
    """Whether an offset into the maps, or to where a tile's first tap lies outside of them, needs 64 bits."""
    batch, channels, height, width = maps.shape
    return ((batch * height + abs(padding[0])) * width + abs(padding[1])) * channels >= 2**30


def tile_options(tile: Tile, columns: int, channels: int) -> dict[str, int | bool]:
    """The tile as a kernel's arguments, no larger than the problem."""
    block_c = min(tile.channels, max(16, triton.next_power_of_2(channels)))
    return {
        "BLOCK_PIXELS": tile.pixels,
        "BLOCK_COLUMNS": min(tile.columns, max(16, triton.next_power_of_2(columns))),
        "BLOCK_C": block_c,
        "EVEN_C": channels % block_c == 0,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
