"""`atrous_conv2d` and its gradients on a GPU: implicit matrix products, and all that follows in registers.

The launchers take what the op has checked, of float32 or 16 bits; float64 is for the reference. They never wait for
the GPU, and can be captured in a CUDA graph after a first call has compiled the kernel.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deeplab_fast._conv_arguments import Epilogue, Geometry, format_of, output_size

from ._launch import LAST, fits_32_bits, is_wide, map_strides, tile_options
from .choices import ALIGNMENT, Tile, arithmetic_of, path_for, precision_of, processors_of, tile_for
from .implicit_gemm import add_convolution, finish, tile_extent


@triton.jit
def atrous_conv2d_kernel(
    x, weight, bias, scale, residual, out, pixels, columns, C, H, W, out_H, out_W,
    stride_y, stride_x, padding_y, padding_x, rate_y, rate_x,
    out_image_stride, out_channel_stride, out_pixel_stride,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, RELU: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr,
):  # fmt: skip
    """One tile of relu(scale · conv2d(x, weight) + bias + residual); weight is (columns, KERNEL_H, KERNEL_W, C)."""
    # Programs that share pixels run next to each other: their part of x stays in the cache.
    column_blocks = tl.cdiv(columns, BLOCK_COLUMNS)
    first = tl.program_id(0) // column_blocks * BLOCK_PIXELS
    column = tl.program_id(0) % column_blocks * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    pixel = first + tl.arange(0, BLOCK_PIXELS)
    image, position = pixel // (out_H * out_W), pixel % (out_H * out_W)
    first_y, last_y, first_x, last_x = tile_extent(first, tl.minimum(first + BLOCK_PIXELS, pixels) - 1, out_H, out_W)

    total = tl.zeros((BLOCK_PIXELS, BLOCK_COLUMNS), dtype=tl.float32)
    total = add_convolution(
        total, x=x, weight=weight,
        image=image, y=position // out_W, x_column=position % out_W, row_valid=pixel < pixels,
        first_y=first_y, last_y=last_y, first_x=first_x, last_x=last_x, column=column, columns=columns,
        C=C, H=H, W=W, stride_y=stride_y, stride_x=stride_x, padding_y=padding_y, padding_x=padding_x,
        rate_y=rate_y, rate_x=rate_x, weight_column_stride=KERNEL_H * KERNEL_W * C, weight_tap_stride=C,
        KERNEL_H=KERNEL_H, KERNEL_W=KERNEL_W, SKIP_CENTRE=False,
        WIDE=WIDE, BLOCK_C=BLOCK_C, EVEN_C=EVEN_C, PRECISION=PRECISION,
    )  # fmt: skip

    if WIDE:
        image, position = image.to(tl.int64), position.to(tl.int64)
    offset = (image * out_image_stride + position * out_pixel_stride)[:, None] + (column * out_channel_stride)[None, :]
    mask = (pixel < pixels)[:, None] & (column < columns)[None, :]
    total = finish(total, offset, mask, column, columns, scale=scale, bias=bias, residual=residual, RELU=RELU)
    tl.store(out + offset, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def epilogue_kernel(
    out, bias, scale, residual, area, columns, out_image_stride, out_channel_stride, out_pixel_stride,
    RELU: tl.constexpr, BLOCK_PIXELS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """out = relu(scale · out + bias + residual), one tile of one image."""
    pixel_blocks = tl.cdiv(area, BLOCK_PIXELS)
    image = (tl.program_id(0) // pixel_blocks).to(tl.int64)
    pixel = (tl.program_id(0) % pixel_blocks * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)).to(tl.int64)
    column = (tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)).to(tl.int64)
    offset = image * out_image_stride + (pixel * out_pixel_stride)[:, None] + (column * out_channel_stride)[None, :]
    mask = (pixel < area)[:, None] & (column < columns)[None, :]
    total = tl.load(out + offset, mask=mask, other=0.0).to(tl.float32)
    total = finish(total, offset, mask, column, columns, scale=scale, bias=bias, residual=residual, RELU=RELU)
    tl.store(out + offset, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def relu_backward_kernel(
    grad, out, masked, sums, area, columns, image_stride, channel_stride, pixel_stride,
    STEPS: tl.constexpr, BLOCK_PIXELS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """masked = grad where out is positive, else 0, for STEPS tiles of one image; and their sum, a line of `sums`."""
    chunks = tl.cdiv(area, STEPS * BLOCK_PIXELS)
    image = (tl.program_id(0) // chunks).to(tl.int64)
    column = (tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)).to(tl.int64)
    total = tl.zeros((BLOCK_PIXELS, BLOCK_COLUMNS), dtype=tl.float32)
    for step in range(STEPS):
        pixel = ((tl.program_id(0) % chunks * STEPS + step) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)).to(tl.int64)
        offset = image * image_stride + (pixel * pixel_stride)[:, None] + (column * channel_stride)[None, :]
        mask = (pixel < area)[:, None] & (column < columns)[None, :]
        positive = tl.load(out + offset, mask=mask, other=0.0).to(tl.float32) > 0
        passed = tl.where(positive, tl.load(grad + offset, mask=mask, other=0.0).to(tl.float32), 0.0)
        tl.store(masked + offset, passed.to(masked.dtype.element_ty), mask=mask)
        total += passed
    tl.store(sums + tl.program_id(0) * columns + column, tl.sum(total, axis=0), mask=column < columns)


@triton.jit
def weight_gradient_kernel(
    grad, x, sums, pixels, pixels_each, columns, C, H, W, out_H, out_W,
    stride_y, stride_x, padding_y, padding_x, rate_y, rate_x,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One tile, of one tap, of the gradient to the weight, from `pixels_each` output pixels.

    sums is (parts, columns, KERNEL_H, KERNEL_W, C), a part of the pixels each: added up later, in a fixed order.
    """
    channel_blocks = tl.cdiv(C, BLOCK_C)
    tap = tl.program_id(1) // channel_blocks
    shift_y = tap // KERNEL_W * rate_y - padding_y
    shift_x = tap % KERNEL_W * rate_x - padding_x
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    channel = tl.program_id(1) % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    begin = tl.program_id(2) * pixels_each
    end = tl.minimum(begin + pixels_each, pixels)

    total = tl.zeros((BLOCK_COLUMNS, BLOCK_C), dtype=tl.float32)
    for first in range(begin, end, BLOCK_PIXELS):
        pixel = first + tl.arange(0, BLOCK_PIXELS)
        position = pixel % (out_H * out_W)
        source_y = position // out_W * stride_y + shift_y
        source_x = position % out_W * stride_x + shift_x
        inside = (pixel < end) & (source_y >= 0) & (source_y < H) & (source_x >= 0) & (source_x < W)
        source = (pixel // (out_H * out_W) * H + source_y) * W + source_x
        if WIDE:
            pixel, source = pixel.to(tl.int64), source.to(tl.int64)
        grad_tile = tl.load(
            grad + (pixel * columns)[:, None] + column[None, :],
            mask=inside[:, None] & (column < columns)[None, :], other=0.0,
        )  # fmt: skip
        x_tile = tl.load(
            x + (source * C)[:, None] + channel[None, :], mask=inside[:, None] & (channel < C)[None, :], other=0.0
        )
        total = tl.dot(tl.trans(grad_tile), x_tile, total, input_precision=PRECISION)

    row = (tl.program_id(2) * columns + column) * (KERNEL_H * KERNEL_W) + tap
    offset = (row.to(tl.int64) * C)[:, None] + channel[None, :]
    tl.store(sums + offset, total, mask=(column < columns)[:, None] & (channel < C)[None, :])


# --- Launchers -----------------------------------------------------------------------------------------------------


def pack(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(K, C, kh, kw) in `dtype` and channels_last, which is the memory that the kernel reads; maybe `weight` itself."""
    return weight.to(dtype).contiguous(memory_format=LAST)


def is_packed(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether `weight` is what `pack` makes of it."""
    return weight.dtype == dtype and weight.is_contiguous(memory_format=LAST)


def forward(
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    epilogue: Epilogue,
    *,
    packed: Tensor | None = None,
    path: str | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """relu(scale · conv2d(x, weight) + bias + residual), in the dtype and format of x.

    packed: `pack(weight, x.dtype)`, if it is there already. path ("triton" or "cudnn") and
    tile: instead of those of the tables.
    """
    packed = pack(weight, x.dtype) if packed is None else packed
    size = (x.shape[0], weight.shape[0], *output_size(x, weight, geometry))
    shape = "unaligned" if x.shape[1] % ALIGNMENT else "plain"
    path = path or path_for("atrous_conv2d", arithmetic_of(x), shape)
    with torch.cuda.device_of(x):
        if path == "triton" and _fits(x, weight, geometry):
            out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=format_of(x))
            return _launch(x, packed, geometry, epilogue, out, tile)
        out = torch.conv2d(x, packed, None, *geometry).contiguous(memory_format=format_of(x))
        return _finish(out, epilogue)


def backward_relu(grad: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """grad where out is positive, else 0, in the format of out; and its sum over N, H and W, in float32.

    Sums are of a fixed order: the same from run to run.
    """
    grad = grad.contiguous(memory_format=format_of(out))
    out = out.contiguous(memory_format=format_of(out))
    masked = torch.empty_like(out)
    batch, columns, height, width = out.shape
    chunks = triton.cdiv(height * width, 4 * 64)
    sums = torch.empty(batch * chunks, columns, dtype=torch.float32, device=out.device)
    if out.numel() > 0:
        with torch.cuda.device_of(out):
            relu_backward_kernel[(batch * chunks, triton.cdiv(columns, 64))](
                grad=grad, out=out, masked=masked, sums=sums, area=height * width, columns=columns, **map_strides(out),
                STEPS=4, BLOCK_PIXELS=64, BLOCK_COLUMNS=64, num_warps=8,
            )  # fmt: skip
    return masked, sums.sum(0)


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    geometry: Geometry,
    need_x: bool,
    need_weight: bool,
    *,
    path_x: str | None = None,
    path_weight: str | None = None,
    tile: Tile | None = None,
) -> list[Tensor]:
    """Of scale · conv2d(x, weight): the gradient to x, where needed, and to the weight as if scale were 1.

    path_x, path_weight ("triton" or "cudnn") and the tile of the former: instead of those of the tables.
    """
    arithmetic = arithmetic_of(x)
    shape = "unaligned" if weight.shape[0] % ALIGNMENT else "dilated" if max(geometry.dilation) > 1 else "plain"
    path_x = path_x or path_for("atrous_conv2d_backward_x", arithmetic, shape)
    path_weight = path_weight or path_for("atrous_conv2d_backward_weight", arithmetic, shape)
    fits = _fits(x, weight, geometry) and _fits(grad, weight, geometry) and x.shape[0] > 0
    own_x = need_x and fits and path_x == "triton" and max(geometry.stride) == 1
    own_weight = need_weight and fits and path_weight == "triton"
    scaled = weight if scale is None or not need_x else weight.float() * scale.float()[:, None, None, None]

    to_x = to_weight = None
    with torch.cuda.device_of(x):
        if (need_x and not own_x) or (need_weight and not own_weight):
            to_x, to_weight, _ = torch.ops.aten.convolution_backward(
                grad, x, pack(scaled, x.dtype), None, *geometry, False, [0, 0], 1,
                [need_x and not own_x, need_weight and not own_weight, False],
            )  # fmt: skip
        if own_x:
            to_x = _backward_x(grad, x, scaled, geometry, tile)
        if own_weight:
            to_weight = _backward_weight(grad, x, weight, geometry)
    result = []
    if need_x and to_x is not None:
        result.append(to_x.contiguous(memory_format=format_of(x)))
    if need_weight and to_weight is not None:
        result.append(to_weight.to(weight.dtype).contiguous())
    return result


def _backward_x(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, tile: Tile | None) -> Tensor:
    """With stride 1, a convolution of grad with the kernel turned round, from channels K to C."""
    turned = pack(weight.flip(2, 3).transpose(0, 1), x.dtype)
    _, padding, dilation = geometry
    turned_padding = [dilation[a] * (weight.shape[2 + a] - 1) - padding[a] for a in range(2)]  # may be negative
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=format_of(x))
    return _launch(grad, turned, Geometry([1, 1], turned_padding, dilation), Epilogue(), out, tile)


def _backward_weight(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """In two stages: partial sums of some pixels each, then these summed."""
    columns, channels, kernel_h, kernel_w = weight.shape
    grad, x = grad.contiguous(memory_format=LAST), x.contiguous(memory_format=LAST)
    pixels = grad.shape[0] * grad.shape[2] * grad.shape[3]
    arithmetic = arithmetic_of(x)
    block = {"16bit": 64, "tf32": 32, "ieee": 32}[arithmetic]
    block_columns = min(block, max(16, triton.next_power_of_2(columns)))
    block_c = min(block, max(16, triton.next_power_of_2(channels)))
    grid = (triton.cdiv(columns, block_columns), kernel_h * kernel_w * triton.cdiv(channels, block_c))
    # Enough parts for two programs a multiprocessor, of four steps at least.
    parts = min(triton.cdiv(2 * processors_of(x), grid[0] * grid[1]), triton.cdiv(pixels, 4 * block))
    pixels_each = triton.cdiv(triton.cdiv(pixels, parts), block) * block
    parts = triton.cdiv(pixels, pixels_each)
    sums = torch.empty(parts, columns, kernel_h, kernel_w, channels, dtype=torch.float32, device=x.device)
    weight_gradient_kernel[(*grid, parts)](
        grad=grad, x=x, sums=sums, pixels=pixels, pixels_each=pixels_each, columns=columns,
        **_maps(x, grad), **_steps(geometry), KERNEL_H=kernel_h, KERNEL_W=kernel_w,
        WIDE=is_wide(x, geometry.padding) or is_wide(grad, geometry.padding), PRECISION=precision_of(arithmetic),
        BLOCK_PIXELS=block, BLOCK_COLUMNS=block_columns, BLOCK_C=block_c, num_warps=4, num_stages=4,
    )  # fmt: skip
    return sums.sum(0).permute(0, 3, 1, 2)


def _launch(
    x: Tensor, packed: Tensor, geometry: Geometry, epilogue: Epilogue, out: Tensor, tile: Tile | None
) -> Tensor:
    columns, pixels = out.shape[1], out.shape[0] * out.shape[2] * out.shape[3]
    if pixels == 0:
        return out
    x = x.contiguous(memory_format=LAST)
    arithmetic = arithmetic_of(x)
    tile = tile or tile_for(arithmetic, pixels, columns, processors_of(x))
    options = tile_options(tile, columns, x.shape[1])
    programs = triton.cdiv(pixels, options["BLOCK_PIXELS"]) * triton.cdiv(columns, options["BLOCK_COLUMNS"])
    atrous_conv2d_kernel[(programs,)](
        x=x, weight=packed, out=out, pixels=pixels, columns=columns, **_maps(x, out), **_steps(geometry),
        **_finishing(epilogue, out), KERNEL_H=packed.shape[2], KERNEL_W=packed.shape[3],
        WIDE=is_wide(x, geometry.padding) or is_wide(out, geometry.padding), PRECISION=precision_of(arithmetic),
        **options,
    )  # fmt: skip
    return out


def _finish(out: Tensor, epilogue: Epilogue) -> Tensor:
    """In place: all that follows the convolution itself."""
    batch, columns, height, width = out.shape
    if out.numel() > 0 and (epilogue.relu or any(part is not None for part in epilogue[:3])):
        epilogue_kernel[(batch * triton.cdiv(height * width, 64), triton.cdiv(columns, 64))](
            out=out, area=height * width, columns=columns, **_finishing(epilogue, out),
            BLOCK_PIXELS=64, BLOCK_COLUMNS=64, num_warps=8,
        )  # fmt: skip
    return out


def _maps(x: Tensor, out: Tensor) -> dict[str, int]:
    """Channels and sizes of maps as the kernels take them; `out` of a convolution of x."""
    channels, height, width = x.shape[1:]
    return {"C": channels, "H": height, "W": width, "out_H": out.shape[2], "out_W": out.shape[3]}


def _steps(geometry: Geometry) -> dict[str, int]:
    """The geometry as the kernels take it."""
    named = zip(("stride", "padding", "rate"), geometry, strict=True)
    return {f"{name}_{axis}": step for name, steps in named for axis, step in zip("yx", steps, strict=True)}


def _finishing(epilogue: Epilogue, out: Tensor) -> dict[str, Any]:
    """The epilogue as the kernels take it, and how to step through `out` and the residual."""
    bias, scale, residual, relu = epilogue
    if residual is not None:
        residual = residual.contiguous(memory_format=format_of(out))
    named = {"bias": _vector(bias), "scale": _vector(scale), "residual": residual, "RELU": relu}
    return named | map_strides(out, "out_")


def _vector(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()


def _fits(maps: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether numbers of pixels and offsets into the weight fit in 32 bits."""
    reach = [geometry.padding[a] + geometry.dilation[a] * weight.shape[2 + a] for a in range(2)]
    return fits_32_bits(maps, reach) and weight.numel() < 2**30
