"""`upsample_argmax`, `upsample_softmax` and the latter's gradient in plain PyTorch; in float32 for 16-bit logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from deeplab_fast._arguments import sum_dtype
from deeplab_fast._conv_arguments import Size, check_upsample_arguments


def upsample_argmax(logits: Tensor, size: Size) -> Tensor:
    """The class of the largest score after bilinear upsampling: logits (N, K, h, w) -> (N, H, W) int64."""
    return _upsample(logits, size).argmax(dim=1)


def upsample_softmax(logits: Tensor, size: Size) -> Tensor:
    """Softmax over classes after bilinear upsampling: logits (N, K, h, w) -> (N, K, H, W), dtype of logits."""
    return torch.softmax(_upsample(logits, size), dim=1).to(logits.dtype)


def upsample_softmax_backward(grad: Tensor, out: Tensor, size: tuple[int, int]) -> Tensor:
    """Gradient of `upsample_softmax` to logits of this size, from that to its result, out (N, K, H, W)."""
    dtype = sum_dtype(grad)
    if out.shape[0] == 0:
        return out.new_empty(*out.shape[:2], *size)
    to_scores = torch.ops.aten._softmax_backward_data(grad.to(dtype), out.to(dtype), 1, dtype)
    to_logits = torch.ops.aten.upsample_bilinear2d_backward(
        to_scores, list(out.shape[2:]), [*out.shape[:2], *size], False
    )
    return to_logits.to(out.dtype)


def _upsample(logits: Tensor, size: Size) -> Tensor:
    height, width = check_upsample_arguments(logits, size)
    if logits.shape[0] == 0:  # interpolate refuses an empty batch
        return logits.new_empty(0, logits.shape[1], height, width, dtype=sum_dtype(logits))
    return interpolate(logits.to(sum_dtype(logits)), (height, width), mode="bilinear", align_corners=False)
