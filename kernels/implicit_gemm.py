"""Convolution as a matrix product whose left factor is never written: what the kernels of both ops share.

Rows are output pixels, columns output channels (classes), and the reduction runs over taps and channels. Maps are
channels_last: x is (N, H, W, C) in memory, so one tap of one pixel is a row of C neighbouring numbers. Row r of the
left factor at tap (i, j) is the pixel (y·stride - padding + i·rate, ...) of x, or zeros outside the map.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def live_taps(first, last, size, taps, stride, padding, rate):
    """[begin, end): the taps of one axis that lie inside the map for some of the outputs first..last.

    Taps lie on a line, so these are neighbours; the maxima keep what is divided from being negative, where
    languages disagree about rounding.
    """
    begin = tl.minimum(tl.cdiv(tl.maximum(padding - last * stride, 0), rate), taps)
    end = tl.minimum(tl.maximum(size - 1 + padding - first * stride + rate, 0) // rate, taps)
    return begin, tl.maximum(begin, end)


@triton.jit
def tile_extent(first, last, height, width):
    """Smallest and largest y and x of the output pixels first..last, numbered through all images."""
    first_image, last_image = first // (height * width), last // (height * width)
    first_y, last_y = (first // width) % height, (last // width) % height
    # A tile over two images has the end of one and the begin of the other, so any y; one over two rows has any x.
    many_images = last_image > first_image
    first_y, last_y = tl.where(many_images, 0, first_y), tl.where(many_images, height - 1, last_y)
    many_rows = last_y > first_y
    first_x = tl.where(many_rows, 0, first % width)
    last_x = tl.where(many_rows, width - 1, last % width)
    return first_y, last_y, first_x, last_x


@triton.jit
def add_convolution(
    total, x, weight, image, y, x_column, row_valid, first_y, last_y, first_x, last_x, column, columns,
    C, H, W, stride_y, stride_x, padding_y, padding_x, rate_y, rate_x, weight_column_stride, weight_tap_stride,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, SKIP_CENTRE: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """total + the convolution of x at the output pixels (image, y, x_column), for the output channels `column`.

    weight: C numbers in a row for each column and tap. With SKIP_CENTRE, it has none for the tap in the middle, which
    is left out. Taps outside the map for all rows of the tile cost nothing. WIDE: x has too many elements for 32 bits.
    """
    begin_y, end_y = live_taps(first_y, last_y, H, KERNEL_H, stride_y, padding_y, rate_y)
    begin_x, end_x = live_taps(first_x, last_x, W, KERNEL_W, stride_x, padding_x, rate_x)
    across = end_x - begin_x
    taps = (end_y - begin_y) * across
    centre = (KERNEL_H // 2 - begin_y) * across + KERNEL_W // 2 - begin_x
    if SKIP_CENTRE:
        taps -= 1

    top = y * stride_y - padding_y
    left = x_column * stride_x - padding_x
    pixel = (image * H + top) * W + left
    if WIDE:
        pixel = pixel.to(tl.int64)
    channel = tl.arange(0, BLOCK_C)
    x_rows = x + (pixel * C)[:, None] + channel[None, :]
    weight_columns = weight + (column * weight_column_stride)[None, :] + channel[:, None]

    # One loop over taps and channels, not two: loads for the next steps stay in flight across taps.
    channel_blocks = tl.cdiv(C, BLOCK_C)
    for step in range(taps * channel_blocks):
        live_tap = step // channel_blocks
        first_channel = (step - live_tap * channel_blocks) * BLOCK_C
        if SKIP_CENTRE:
            live_tap += (live_tap >= centre).to(tl.int32)
        tap_y = begin_y + live_tap // across
        tap_x = begin_x + live_tap % across
        tap = tap_y * KERNEL_W + tap_x
        if SKIP_CENTRE:
            tap -= (tap > KERNEL_H * KERNEL_W // 2).to(tl.int32)

        source_y = top + tap_y * rate_y
        source_x = left + tap_x * rate_x
        inside = row_valid & (source_y >= 0) & (source_y < H) & (source_x >= 0) & (source_x < W)
        shift = tap_y * rate_y * W + tap_x * rate_x
        if WIDE:
            shift = shift.to(tl.int64)
        x_mask, weight_mask = inside[:, None], (column < columns)[None, :]
        if not EVEN_C:
            valid = first_channel + channel < C
            x_mask, weight_mask = x_mask & valid[None, :], weight_mask & valid[:, None]
        x_tile = tl.load(x_rows + (shift * C + first_channel), mask=x_mask, other=0.0)
        weight_tile = tl.load(weight_columns + (tap * weight_tap_stride + first_channel), mask=weight_mask, other=0.0)
        total = tl.dot(x_tile, weight_tile, total, input_precision=PRECISION)
    return total


@triton.jit
def finish(total, offset, mask, column, columns, scale, bias, residual, RELU: tl.constexpr):
    """relu(scale · total + bias + residual), in float32; scale, bias and residual may be None."""
    if scale is not None:
        total *= tl.load(scale + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    if bias is not None:
        total += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    if residual is not None:
        total += tl.load(residual + offset, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        total = tl.where(total < 0, 0.0, total)  # a NaN stays one
    return total
