"""`aspp_sum` and its gradients on a GPU: one matrix product for all taps of all branches, and a kernel that shifts.

The sum over branches and taps t of weight_t · x[pixel + shift_t] is that of shifted maps of one product, weights · x;
and both gradients are products with the shifted copies of grad, which has few channels. Taps in the middle have no
shift, so those of all branches are one, with the sum of their weights.

The launchers take what the op has checked, of float32 or 16 bits; float64 is for the reference. They never wait for
the GPU, and can be captured in a CUDA graph after a first call has compiled the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce

import torch
import triton
import triton.language as tl
from torch import Tensor

from deeplab_fast._conv_arguments import format_of, pixel_rows

from ._launch import fits_32_bits, is_wide, map_strides, tile_options
from .choices import LARGE_PRODUCT, Tile, arithmetic_of, path_for, precision_of, processors_of, tile_for
from .implicit_gemm import add_convolution, finish, tile_extent

# Taps are numbered as `pack` orders them: 0 the shared one in the middle, then branch by branch, row by row. RATES,
# KERNEL_H and KERNEL_W have an entry a branch, and are known at compile time: a network has one set of them.

SHIFT_PIXELS = 32  # few: one image's 65x65 pixels should be enough programs for every multiprocessor


@triton.jit
def branch_shift(tap, rate, kernel_h, kernel_w):
    """(dy, dx): where the pixel lies that a branch's tap number `tap`, not counting the middle one, looks at."""
    place = tl.where(tap >= kernel_h * kernel_w // 2, tap + 1, tap)
    return (place // kernel_w - kernel_h // 2) * rate, (place % kernel_w - kernel_w // 2) * rate


@triton.jit
def shift_sum_kernel(
    product, bias, out, H, W, classes, product_stride, out_image_stride, out_channel_stride, out_pixel_stride,
    RATES: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CLASSES: tl.constexpr,
):  # fmt: skip
    """out = the sum over taps of product[pixel + shift], as far as inside, + bias: one tile of one image.

    product has a row a pixel, with the numbers of all classes for tap 0, for tap 1, ...
    """
    blocks = tl.cdiv(H * W, BLOCK_PIXELS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    y, x, valid = pixel // W, pixel % W, pixel < H * W
    pixel = pixel.to(tl.int64)
    column = (tl.program_id(1) * BLOCK_CLASSES + tl.arange(0, BLOCK_CLASSES)).to(tl.int64)
    rows = product + ((image * H * W + pixel) * product_stride)[:, None] + column[None, :]

    total = tl.load(rows, mask=valid[:, None] & (column < classes)[None, :], other=0.0).to(tl.float32)
    rows += classes
    for b in tl.static_range(len(RATES)):
        taps = KERNEL_H[b] * KERNEL_W[b] - 1
        for tap in tl.range(0, taps, loop_unroll_factor=8):  # several loads in flight
            dy, dx = branch_shift(tap, RATES[b], KERNEL_H[b], KERNEL_W[b])
            inside = valid & (y + dy >= 0) & (y + dy < H) & (x + dx >= 0) & (x + dx < W)
            shift = (dy * W + dx).to(tl.int64) * product_stride + tap * classes
            mask = inside[:, None] & (column < classes)[None, :]
            total += tl.load(rows + shift, mask=mask, other=0.0).to(tl.float32)
        rows += taps * classes

    offset = image * out_image_stride + (pixel * out_pixel_stride)[:, None] + (column * out_channel_stride)[None, :]
    mask = valid[:, None] & (column < classes)[None, :]
    total = finish(total, offset, mask, column, classes, scale=None, bias=bias, residual=None, RELU=False)
    tl.store(out + offset, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def shifted_copies_kernel(
    grad, copies, H, W, classes, copies_stride, image_stride, channel_stride, pixel_stride,
    RATES: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CLASSES: tl.constexpr,
):  # fmt: skip
    """copies[pixel] = grad[pixel - shift] of each tap, zeros where that lies outside: one tile of one image.

    copies has a row a pixel, in the order of `shift_sum_kernel`'s product, and up to 7 zeros at its end.
    """
    blocks = tl.cdiv(H * W, BLOCK_PIXELS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    y, x, valid = pixel // W, pixel % W, pixel < H * W
    pixel = pixel.to(tl.int64)
    column = (tl.program_id(1) * BLOCK_CLASSES + tl.arange(0, BLOCK_CLASSES)).to(tl.int64)
    source = grad + image * image_stride + (pixel * pixel_stride)[:, None] + (column * channel_stride)[None, :]
    target = copies + ((image * H * W + pixel) * copies_stride)[:, None] + column[None, :]

    mask = valid[:, None] & (column < classes)[None, :]
    tl.store(target, tl.load(source, mask=mask, other=0.0), mask=mask)
    done = classes
    for b in tl.static_range(len(RATES)):
        taps = KERNEL_H[b] * KERNEL_W[b] - 1
        for tap in tl.range(0, taps, loop_unroll_factor=4):
            dy, dx = branch_shift(tap, RATES[b], KERNEL_H[b], KERNEL_W[b])
            inside = valid & (y - dy >= 0) & (y - dy < H) & (x - dx >= 0) & (x - dx < W)
            copied = tl.load(
                source - (dy * W + dx).to(tl.int64) * pixel_stride,
                mask=inside[:, None] & (column < classes)[None, :], other=0.0,
            )  # fmt: skip
            tl.store(target + (done + tap * classes), copied, mask=mask)
        done += taps * classes
    zeros = tl.zeros((BLOCK_PIXELS, BLOCK_CLASSES), dtype=copies.dtype.element_ty)
    tl.store(target + done, zeros, mask=valid[:, None] & (column < copies_stride - done)[None, :])


@triton.jit
def on_chip_kernel(
    x, packed, bias, out, pixels, classes, C, H, W, out_image_stride, out_channel_stride, out_pixel_stride,
    RATES: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr,
):  # fmt: skip
    """One tile of the sum, in registers throughout: the shared tap, then the others of each branch."""
    column_blocks = tl.cdiv(classes, BLOCK_COLUMNS)
    first = tl.program_id(0) // column_blocks * BLOCK_PIXELS
    column = tl.program_id(0) % column_blocks * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    pixel = first + tl.arange(0, BLOCK_PIXELS)
    image, position = pixel // (H * W), pixel % (H * W)
    first_y, last_y, first_x, last_x = tile_extent(first, tl.minimum(first + BLOCK_PIXELS, pixels) - 1, H, W)

    total = tl.zeros((BLOCK_PIXELS, BLOCK_COLUMNS), dtype=tl.float32)
    total = add_convolution(
        total, x=x, weight=packed, image=image, y=position // W, x_column=position % W, row_valid=pixel < pixels,
        first_y=first_y, last_y=last_y, first_x=first_x, last_x=last_x, column=column, columns=classes,
        C=C, H=H, W=W, stride_y=1, stride_x=1, padding_y=0, padding_x=0, rate_y=1, rate_x=1,
        weight_column_stride=C, weight_tap_stride=classes * C, KERNEL_H=1, KERNEL_W=1, SKIP_CENTRE=False,
        WIDE=WIDE, BLOCK_C=BLOCK_C, EVEN_C=EVEN_C, PRECISION=PRECISION,
    )  # fmt: skip
    rows = packed + classes * C
    for b in tl.static_range(len(RATES)):
        if KERNEL_H[b] * KERNEL_W[b] > 1:
            total = add_convolution(
                total, x=x, weight=rows, image=image, y=position // W, x_column=position % W, row_valid=pixel < pixels,
                first_y=first_y, last_y=last_y, first_x=first_x, last_x=last_x, column=column, columns=classes,
                C=C, H=H, W=W, stride_y=1, stride_x=1, rate_y=RATES[b], rate_x=RATES[b],
                padding_y=KERNEL_H[b] // 2 * RATES[b], padding_x=KERNEL_W[b] // 2 * RATES[b],
                weight_column_stride=C, weight_tap_stride=classes * C,
                KERNEL_H=KERNEL_H[b], KERNEL_W=KERNEL_W[b], SKIP_CENTRE=True,
                WIDE=WIDE, BLOCK_C=BLOCK_C, EVEN_C=EVEN_C, PRECISION=PRECISION,
            )  # fmt: skip
            rows += (KERNEL_H[b] * KERNEL_W[b] - 1) * classes * C

    if WIDE:
        image, position = image.to(tl.int64), position.to(tl.int64)
    offset = (image * out_image_stride + position * out_pixel_stride)[:, None] + (column * out_channel_stride)[None, :]
    mask = (pixel < pixels)[:, None] & (column < classes)[None, :]
    total = finish(total, offset, mask, column, classes, scale=None, bias=bias, residual=None, RELU=False)
    tl.store(out + offset, total.to(out.dtype.element_ty), mask=mask)


# --- Launchers -----------------------------------------------------------------------------------------------------


def pack(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """All taps' (K, C), one under the other, in `dtype`: first the sum of the branches' middle taps.

    Rows of zeros at the end make their number a multiple of 8, as matrix units like it.
    """
    classes, channels = weights[0].shape[:2]
    taps = [weight.permute(2, 3, 0, 1).reshape(-1, classes, channels) for weight in weights]
    middle = reduce(torch.add, (branch[len(branch) // 2].float() for branch in taps))
    others = [part for branch in taps for part in (branch[: len(branch) // 2], branch[len(branch) // 2 + 1 :])]
    rows = torch.cat([part.reshape(-1, channels).to(dtype) for part in (middle, *others)])
    return torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % 8))


def forward(
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    rates: Sequence[int],
    *,
    packed: Tensor | None = None,
    path: str | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """Sum over branches b of conv2d(x, weights[b], dilation=rates[b]), + bias, in the dtype and format of x.

    Arguments as in the op. packed: `pack(weights, x.dtype)`, if it is there already. path ("gemm" or "on_chip") and
    tile, of the latter: instead of those of the tables.
    """
    packed = pack(weights, x.dtype) if packed is None else packed
    batch, _, height, width = x.shape
    classes, pixels = weights[0].shape[0], batch * height * width
    out = torch.empty(batch, classes, height, width, dtype=x.dtype, device=x.device, memory_format=format_of(x))
    if pixels == 0:
        return out
    bias = None if bias is None else bias.contiguous()
    shape = "large_product" if 4 * pixels * len(packed) > LARGE_PRODUCT else "plain"
    with torch.cuda.device_of(x):
        if (path or path_for("aspp_sum", arithmetic_of(x), shape)) == "on_chip" and _fits(x, weights, rates):
            _launch_on_chip(x, packed, bias, out, weights, rates, tile)
            return out
        product = _product(pixel_rows(x).contiguous(), packed.t())
        shift_sum_kernel[(batch * triton.cdiv(height * width, SHIFT_PIXELS), triton.cdiv(classes, 64))](
            product=product, bias=bias, out=out, H=height, W=width, classes=classes, product_stride=len(packed),
            **map_strides(out, "out_"), **_branches(x, weights, rates),
            BLOCK_PIXELS=SHIFT_PIXELS, BLOCK_CLASSES=_class_block(classes), num_warps=4,
        )  # fmt: skip
    return out


def backward_x(
    grad: Tensor, weights: Sequence[Tensor], rates: Sequence[int], *, packed: Tensor | None = None
) -> Tensor:
    """The gradient to x, from that to the result: (N, K, H, W) -> (N, C, H, W), dtype and format of grad."""
    packed = pack(weights, grad.dtype) if packed is None else packed
    batch, _, height, width = grad.shape
    rows = grad.new_empty(batch, height, width, packed.shape[1])
    with torch.cuda.device_of(grad):
        for images in _images_at_a_time(grad, packed):
            copies = _shifted_copies(grad[images], weights, rates, len(packed))
            torch.mm(copies, packed, out=rows[images].view(len(copies), -1))
    return rows.permute(0, 3, 1, 2).contiguous(memory_format=format_of(grad))


def backward_weights(grad: Tensor, x: Tensor, weights: Sequence[Tensor], rates: Sequence[int]) -> list[Tensor]:
    """The gradient to each weight, in its dtype; of the weights only shape and dtype are looked at."""
    classes, channels = weights[0].shape[:2]
    taps = _tap_count(weights)
    rows = taps * classes + -taps * classes % 8
    total = torch.zeros(rows, channels, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        for images in _images_at_a_time(grad, total):
            copies = _shifted_copies(grad[images], weights, rates, rows)
            total += _product(copies.t(), pixel_rows(x[images]).contiguous())
    of_taps = total[: taps * classes].view(taps, classes, channels)
    gradients, begin = [], 1
    for weight in weights:
        half = weight.shape[2] * weight.shape[3] // 2
        middle, end = begin + half, begin + 2 * half
        gradient = torch.cat([of_taps[begin:middle], of_taps[:1], of_taps[middle:end]]).to(weight.dtype)
        gradients.append(gradient.permute(1, 2, 0).reshape(weight.shape).contiguous())
        begin = end
    return gradients


def _launch_on_chip(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    out: Tensor,
    weights: Sequence[Tensor],
    rates: Sequence[int],
    tile: Tile | None,
) -> None:
    batch, channels, height, width = x.shape
    classes, pixels = out.shape[1], batch * height * width
    arithmetic = arithmetic_of(x)
    tile = tile or tile_for(arithmetic, pixels, classes, processors_of(x))
    options = tile_options(tile, classes, channels)
    programs = triton.cdiv(pixels, options["BLOCK_PIXELS"]) * triton.cdiv(classes, options["BLOCK_COLUMNS"])
    wide = is_wide(x, _reach(x, weights, rates)) or is_wide(out, (0, 0))
    on_chip_kernel[(programs,)](
        x=x.contiguous(memory_format=torch.channels_last), packed=packed, bias=bias, out=out,
        pixels=pixels, classes=classes, C=channels, H=height, W=width,
        **map_strides(out, "out_"), **_branches(x, weights, rates), WIDE=wide,
        PRECISION=precision_of(arithmetic), **options,
    )  # fmt: skip


def _shifted_copies(grad: Tensor, weights: Sequence[Tensor], rates: Sequence[int], columns: int) -> Tensor:
    """(pixels, columns): for each tap the gradients of the results that it enters, zeros for none."""
    grad = grad.contiguous(memory_format=format_of(grad))
    batch, classes, height, width = grad.shape
    copies = grad.new_empty(batch * height * width, columns)
    shifted_copies_kernel[(batch * triton.cdiv(height * width, SHIFT_PIXELS), triton.cdiv(classes, 64))](
        grad=grad, copies=copies, H=height, W=width, classes=classes, copies_stride=columns,
        **map_strides(grad), **_branches(grad, weights, rates),
        BLOCK_PIXELS=SHIFT_PIXELS, BLOCK_CLASSES=_class_block(classes), num_warps=4,
    )  # fmt: skip
    return copies


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a · b in float32, from factors of any dtype."""
    if a.is_cuda and a.dtype.itemsize == 2:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.float(), b.float())


def _images_at_a_time(grad: Tensor, packed: Tensor) -> Iterator[slice]:
    """Parts of the batch whose shifted copies take LARGE_PRODUCT bytes at most, or one image each."""
    each = max(grad.shape[2] * grad.shape[3] * len(packed) * grad.dtype.itemsize, 1)
    step = max(LARGE_PRODUCT // each, 1)
    return (slice(begin, begin + step) for begin in range(0, grad.shape[0], step))


def _branches(maps: Tensor, weights: Sequence[Tensor], rates: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Rates and kernel sizes as the kernels take them; no rate is larger than it takes to be outside the map."""
    return {
        "RATES": tuple(min(rate, max(maps.shape[2:])) for rate in rates),
        "KERNEL_H": tuple(weight.shape[2] for weight in weights),
        "KERNEL_W": tuple(weight.shape[3] for weight in weights),
    }


def _reach(maps: Tensor, weights: Sequence[Tensor], rates: Sequence[int]) -> tuple[int, int]:
    """How far from a pixel, vertically and horizontally, taps lie."""
    clamped = _branches(maps, weights, rates)["RATES"]
    vertical, horizontal = (max(r * w.shape[2 + a] for r, w in zip(clamped, weights, strict=True)) for a in range(2))
    return vertical, horizontal


def _fits(x: Tensor, weights: Sequence[Tensor], rates: Sequence[int]) -> bool:
    weight_elements = sum(weight.numel() for weight in weights)
    return fits_32_bits(x, _reach(x, weights, rates)) and weight_elements < 2**30


def _tap_count(weights: Sequence[Tensor]) -> int:
    return 1 + sum(weight.shape[2] * weight.shape[3] - 1 for weight in weights)


def _class_block(classes: int) -> int:
    return min(64, max(16, triton.next_power_of_2(classes)))
