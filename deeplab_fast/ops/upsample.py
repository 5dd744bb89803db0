"""`upsample_argmax` and `upsample_softmax`: the functions that users call, and their custom ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deeplab_fast import reference
from deeplab_fast._conv_arguments import Size, check_upsample_arguments
from deeplab_fast.ops.define import OPS, define, empty_maps, format_of, kernels_loaded


def upsample_argmax(logits: Tensor, size: Size) -> Tensor:
    """The class with the largest score after bilinear upsampling (align_corners=False), without a map of scores.

    Args:
        logits: (N, K, h, w), floating.
        size: height and width of the result, or one integer for both.

    Returns:
        (N, H, W), int64. Scores are interpolated in float32 for 16-bit logits. As in `torch.argmax`, among equal scores
        the first class wins, and NaN counts as larger than all; of scores that differ by rounding only, any may win.
        Mixing makes NaN of infinities (0 · inf), as in `interpolate`: to rule a class out, use a large finite number.

    Raises:
        TypeError: for logits that are not floating.
        ValueError: for a shape or size that does not fit.
    """
    height, width = check_upsample_arguments(logits, size)
    return OPS["upsample_argmax"](logits, height, width)


def upsample_softmax(logits: Tensor, size: Size) -> Tensor:
    """Softmax over classes after bilinear upsampling (align_corners=False); nothing of its size is held beside it.

    Differentiable.

    Args:
        logits: (N, K, h, w), floating.
        size: height and width of the result, or one integer for both.

    Returns:
        (N, K, H, W), dtype of logits; channels_last if logits are. Computed in float32 for 16-bit logits. A pixel with
        a NaN or +inf score is NaN in all classes.

    Raises:
        TypeError: for logits that are not floating.
        ValueError: for a shape or size that does not fit.
    """
    height, width = check_upsample_arguments(logits, size)
    return OPS["upsample_softmax"](logits, height, width)


# --- Ops -----------------------------------------------------------------------------------------------------------
#
# The compiled kernels are internal ops, `upsample_X_into`, that fill a tensor given to them.


def _kernel_takes(*maps: Tensor) -> bool:
    """Whether there is a compiled kernel for these tensors: all on one kind of device and of one dtype."""
    kind, dtype = maps[0].device.type, maps[0].dtype
    fits = dtype != torch.float64 and all(m.dtype == dtype and m.device.type == kind for m in maps)
    return fits and kernels_loaded(kind)


def _argmax(logits: Tensor, height: int, width: int) -> Tensor:
    return reference.upsample_argmax(logits, (height, width))


def _argmax_compiled(logits: Tensor, height: int, width: int) -> Tensor:
    if not _kernel_takes(logits):
        return _argmax(logits, height, width)
    out = _argmax_fake(logits, height, width)
    torch.ops.deeplab_fast.upsample_argmax_into(logits, out)
    return out


def _argmax_fake(logits: Tensor, height: int, width: int) -> Tensor:
    return logits.new_empty(logits.shape[0], height, width, dtype=torch.int64)


def _softmax(logits: Tensor, height: int, width: int) -> Tensor:
    out = reference.upsample_softmax(logits, (height, width))
    return out.contiguous(memory_format=format_of(logits))


def _softmax_compiled(logits: Tensor, height: int, width: int) -> Tensor:
    if not _kernel_takes(logits):
        return _softmax(logits, height, width)
    out = _empty_like_format(logits, height, width)
    torch.ops.deeplab_fast.upsample_softmax_into(logits, out)
    return out


def _empty_like_format(like: Tensor, height: int, width: int) -> Tensor:
    """Maps of a size, uninitialised, otherwise as `like`: batch, classes, dtype, memory format."""
    return empty_maps(like, like.shape[1], (height, width))


def _softmax_backward(grad: Tensor, out: Tensor, height: int, width: int) -> Tensor:
    to_logits = reference.upsample_softmax_backward(grad, out, (height, width))
    return to_logits.contiguous(memory_format=format_of(out))


def _softmax_backward_compiled(grad: Tensor, out: Tensor, height: int, width: int) -> Tensor:
    if not _kernel_takes(grad, out):
        return _softmax_backward(grad, out, height, width)
    to_logits = _empty_like_format(out, height, width)
    torch.ops.deeplab_fast.upsample_softmax_backward_into(grad, out, to_logits)
    return to_logits


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    logits, _, _ = inputs
    ctx.size = logits.shape[2:]
    ctx.save_for_backward(output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (out,) = ctx.saved_tensors
    return OPS["upsample_softmax_backward"](grad, out, *ctx.size), None, None


define("upsample_argmax", reference=_argmax, fake=_argmax_fake, cpu=_argmax_compiled, cuda=_argmax_compiled)
define(
    "upsample_softmax",
    reference=_softmax,
    fake=_empty_like_format,
    cpu=_softmax_compiled,
    cuda=_softmax_compiled,
    setup_context=_setup_context,
    backward=_backward,
)
define(
    "upsample_softmax_backward",
    reference=_softmax_backward,
    fake=lambda grad, out, height, width: _empty_like_format(out, height, width),
    cpu=_softmax_backward_compiled,
    cuda=_softmax_backward_compiled,
)
