"""Which path and which tile a call takes: two tables, and the functions that read them.

The tables are meant to be edited. An entry says where it was measured, or that it is a guess. All paths and tiles of an
op are timed by `python -m bench --gpu --tiles`, which is what an entry should follow from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

GUESS = "unmeasured"


@dataclass(frozen=True)
class Choice:
    """A path, and the chip and date where it was the fastest."""

    path: str
    measured: str


# (what is computed, arithmetic, class of shape) -> path. "triton" is the kernel here; "cudnn" stock convolution, and
# one kernel for all that comes after it; "gemm" one large cuBLAS product, and a kernel that shifts; "on_chip" a Triton
# kernel that keeps the sum in registers. Arithmetic: see `arithmetic_of`; "any" stands for all without a line.
PATHS: dict[tuple[str, str, str], Choice] = {
    # Channels that are no multiple of 16, as an image's 3, are loaded one by one.
    ("atrous_conv2d", "any", "unaligned"): Choice("cudnn", GUESS),
    ("atrous_conv2d", "16bit", "plain"): Choice("triton", GUESS),
    ("atrous_conv2d", "tf32", "plain"): Choice("triton", GUESS),
    # Exact float32 runs on no matrix unit; Triton's blocking of it is behind cuDNN's.
    ("atrous_conv2d", "ieee", "plain"): Choice("cudnn", GUESS),
    # The gradient to x with stride 1; with any other, it is cuDNN's.
    ("atrous_conv2d_backward_x", "any", "unaligned"): Choice("cudnn", GUESS),
    ("atrous_conv2d_backward_x", "any", "plain"): Choice("cudnn", GUESS),
    ("atrous_conv2d_backward_x", "16bit", "dilated"): Choice("triton", GUESS),
    ("atrous_conv2d_backward_x", "tf32", "dilated"): Choice("triton", GUESS),
    ("atrous_conv2d_backward_x", "ieee", "dilated"): Choice("cudnn", GUESS),
    ("atrous_conv2d_backward_weight", "any", "any"): Choice("cudnn", GUESS),
    ("aspp_sum", "any", "plain"): Choice("gemm", GUESS),
    # The product for all taps, a float32 number a tap, class and pixel, would take too much memory.
    ("aspp_sum", "any", "large_product"): Choice("on_chip", GUESS),
}

ALIGNMENT = 16  # channels; what Triton takes as a sign that 16 bytes can be loaded at a time
LARGE_PRODUCT = 2**30  # bytes


def path_for(what: str, arithmetic: str, shape: str) -> str:
    """The path for `what`, from the first of the table's lines that fit."""
    keys = [(what, a, s) for s in (shape, "any") for a in (arithmetic, "any")]
    return next(PATHS[key].path for key in keys if key in PATHS)


def arithmetic_of(x: Tensor) -> str:
    """ "16bit", "tf32" or "ieee": what products of x are computed in, as for stock convolutions."""
    if x.dtype.itemsize == 2:
        return "16bit"
    cudnn: Any = torch.backends.cudnn  # torch's types lack its settings
    return "tf32" if cudnn.conv.fp32_precision == "tf32" else "ieee"


def precision_of(arithmetic: str) -> str:
    """The input_precision of Triton's products; 16 bits have but one."""
    return "tf32" if arithmetic == "tf32" else "ieee"


@dataclass(frozen=True)
class Tile:
    """What one program computes: `pixels` x `columns` results, `channels` of the reduction a step."""

    pixels: int
    columns: int
    channels: int
    warps: int
    stages: int


# From large to small; Hopper's matrix units want 64 pixels for every 4 warps. All guesses until measured. 128 x 256
# in 16 bits does not fit: the sums alone take half of the registers, and the residual's offsets spill.
TILES: dict[str, tuple[Tile, ...]] = {
    "16bit": (
        Tile(128, 128, 64, warps=8, stages=4),
        Tile(128, 64, 64, warps=4, stages=4),
        Tile(64, 64, 64, warps=4, stages=4),
        Tile(64, 32, 64, warps=4, stages=4),
    ),
    "tf32": (
        Tile(128, 128, 32, warps=8, stages=4),
        Tile(128, 64, 32, warps=4, stages=4),
        Tile(64, 64, 32, warps=4, stages=4),
        Tile(64, 32, 32, warps=4, stages=4),
    ),
    "ieee": (
        Tile(64, 64, 16, warps=8, stages=3),
        Tile(32, 32, 16, warps=4, stages=3),
    ),
}


def tile_for(arithmetic: str, pixels: int, columns: int, processors: int) -> Tile:
    """The largest tile with which every multiprocessor has work, and which is not mostly empty columns."""
    tiles = TILES[arithmetic]
    for tile in tiles[:-1]:
        programs = -(-pixels // tile.pixels) * -(-columns // tile.columns)
        if programs >= processors and tile.columns < 2 * columns:
            return tile
    return tiles[-1]


def processors_of(x: Tensor) -> int:
    """Multiprocessors of the device of x."""
    return _processors(x.device.index) if x.is_cuda else H100_PROCESSORS


H100_PROCESSORS = 132


@lru_cache
def _processors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
