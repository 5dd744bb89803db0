"""What the Triton kernels of the convolutions do, on paper; see `bench.gpu_kernels` for what is counted.

Tiles go from the L2 straight into shared memory, so every program reads its own. Results are channels_last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from bench.gpu_kernels import FLOAT, Launch, row_bytes
from deeplab_fast.kernels.choices import H100_PROCESSORS, Tile, tile_for

RATES = (6, 12, 18, 24)
HALF = 2  # bytes of a bfloat16
CUBLAS = Tile(128, 128, 64, warps=8, stages=4)  # assumed of its matrix products
SHIFT_PIXELS = 32  # as in kernels/aspp_sum.py


@dataclass(frozen=True)
class ConvolutionCase:
    op: str
    size: str  # of the bench's case
    launches: Callable[[], Sequence[Launch]]


def power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()


def shared_memory(tile: Tile, columns: int, channels: int) -> int:
    """Bytes of the tiles in flight; `tile_options` in kernels/_launch.py cuts them to the problem."""
    block = min(tile.channels, max(16, power_of_2(channels)))
    return tile.stages * (tile.pixels + _columns(tile, columns)) * block * HALF


def _columns(tile: Tile, columns: int) -> int:
    return min(tile.columns, max(16, power_of_2(columns)))


def live(side: int, shifts: Sequence[tuple[int, int]]) -> float:
    """Taps inside a side x side map, of a pixel, on average."""
    return sum(max(side - abs(dy), 0) * max(side - abs(dx), 0) for dy, dx in shifts) / side**2


def around(rate: int, middle: bool = True) -> list[tuple[int, int]]:
    """Shifts of a 3x3 window."""
    steps = (-rate, 0, rate)
    return [(dy, dx) for dy in steps for dx in steps if middle or (dy, dx) != (0, 0)]


def matrix_product(
    kernel: str, pixels: int, columns: int, channels: int, taps: float, inside: float, tile: Tile
) -> Launch:
    """An implicit product over `taps` taps, of which `inside` lie in the map of a pixel on average; without results."""
    block = _columns(tile, columns)
    programs = math.ceil(pixels / tile.pixels) * math.ceil(columns / block)
    steps = math.ceil(channels / tile.channels) * taps
    return Launch(
        kernel, programs * tile.warps * 32,
        read=programs * channels * HALF * (tile.pixels * inside + block * taps),
        once=HALF * channels * (pixels + columns * taps), flops=2.0 * programs * tile.pixels * block * channels * taps,
        # Loads of `stages` steps are in flight.
        chain=2 + math.ceil(steps / tile.stages), matrix=True, programs=programs,
        shared=shared_memory(tile, columns, channels), block=tile.warps * 32,
    )  # fmt: skip


def with_results(launch: Launch, written: float, read: float = 0.0) -> Launch:
    return replace(launch, read=launch.read + read, written=launch.written + written, once=launch.once + read + written)


def atrous_conv2d(channels: int, columns: int, side: int, rate: int, residual: bool) -> list[Launch]:
    """A 3x3 convolution, 16 bits, channels_last, with batch norm, ReLU and maybe a residual; one image."""
    pixels, out = side * side, HALF * columns * side * side
    tile = tile_for("16bit", pixels, columns, H100_PROCESSORS)
    product = matrix_product(
        "atrous_conv2d_kernel", pixels, columns, channels, 9, live(side, around(rate)), tile
    )  # fmt: skip
    return [with_results(product, out, out if residual else 0)]


def aspp_sum_gemm(channels: int, classes: int, side: int) -> list[Launch]:
    """One product for all taps, then a kernel that shifts and sums."""
    pixels = side * side
    shifts = [shift for rate in RATES for shift in around(rate, middle=False)]
    taps = 1 + len(shifts)
    rows = math.ceil(taps * classes / 8) * 8
    product = matrix_product("cuBLAS product", pixels, rows, channels, 1, 1, CUBLAS)
    inside = pixels * (1 + live(side, shifts))
    block = min(64, max(16, power_of_2(classes)))
    programs = math.ceil(pixels / SHIFT_PIXELS) * math.ceil(classes / 64)
    out = HALF * classes * pixels
    return [
        with_results(product, FLOAT * rows * pixels),
        Launch(
            "shift_sum_kernel", programs * 128,
            read=inside * sum(row_bytes(FLOAT * min(block, classes - first), FLOAT * rows)
                              for first in range(0, classes, block)),
            written=out, once=FLOAT * inside * classes + out, flops=inside * classes,
            chain=2 + math.ceil(len(shifts) / 8), programs=programs, block=128,
        ),
    ]  # fmt: skip


def aspp_sum_on_chip(channels: int, classes: int, side: int) -> list[Launch]:
    """The sum in registers: every tap's product in the kernel."""
    pixels = side * side
    shifts = [(0, 0), *(shift for rate in RATES for shift in around(rate, middle=False))]
    tile = tile_for("16bit", pixels, classes, H100_PROCESSORS)
    product = matrix_product("on_chip_kernel", pixels, classes, channels, len(shifts), live(side, shifts), tile)
    return [with_results(product, HALF * classes * pixels)]


CASES = [
    ConvolutionCase(
        "aspp_sum", "forward, 65x65, 2048->21, bfloat16", lambda: aspp_sum_gemm(2048, 21, 65)
    ),
    ConvolutionCase("aspp_sum", "on chip, 65x65, 2048->21, bfloat16", lambda: aspp_sum_on_chip(2048, 21, 65)),
    ConvolutionCase("aspp_sum", "forward, 65x65, 2048->182, bfloat16", lambda: aspp_sum_gemm(2048, 182, 65)),
    *(
        ConvolutionCase(
            "atrous_conv2d", f"forward, 3x3 {channels}->{channels}, 65x65, rate {rate}, bfloat16",
            partial(atrous_conv2d, channels, channels, 65, rate, residual=False),
        )
        for channels, rate in ((256, 2), (512, 4))
    ),
]  # fmt: skip
