"""A network run on an image at several scales."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from deeplab_fast._arguments import check_floating, shape_of
from deeplab_fast._conv_arguments import format_of


class MSC(nn.Module):
    """Scores of `base` for the image at its own size and at `scales`, and their maximum at every pixel.

    Chen et al., "DeepLab", TPAMI 2018, section 4.1: image and scores are resized bilinearly (align_corners=False), and
    the scores brought to the size of the largest.

    Args:
        base: a module, images (N, C, H, W) -> scores (N, K, h, w). Parameters keep their names, behind `base.`.
        scales: of the image, beside 1; positive.

    Raises:
        TypeError: if `base` is no module.
        ValueError: if a scale is not positive and finite.
    """

    def __init__(self, base: nn.Module, scales: Sequence[float] = (0.5, 0.75)):
        super().__init__()
        if not isinstance(base, nn.Module):
            raise TypeError(f"base: is a {type(base).__name__}, should be a torch.nn.Module")
        for scale in scales:
            if not (scale > 0 and math.isfinite(scale)):
                raise ValueError(f"scales: is {tuple(scales)}, should be positive numbers")
        self.base = base
        self.scales = tuple(scales)

    def extra_repr(self) -> str:
        return f"scales={self.scales}"

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images (N, C, H, W), floating -> scores.

        Returns:
            In evaluation mode the maximum, (N, K, h, w) of the size of the largest scores. In training mode, for a loss
            on each, the list [full, scaled…, maximum], scaled scores at the size that `base` gave them.

        Raises:
            TypeError: if x is no floating tensor, or `base` returns no tensor.
            ValueError: if x does not have four axes, or is so small that a scale leaves nothing of it.
        """
        check_floating("x", x)
        if x.ndim != 4 or any(int(size * scale) < 1 for scale in (1, *self.scales) for size in x.shape[2:]):
            raise ValueError(
                f"x: shape is {shape_of(x)}, should be (N, C, H, W) with H and W at least 1 at scales {self.scales}"
            )
        # By factor, not by size: of an odd size the two give different positions, and published weights know this one.
        # And in the format of x, which interpolate loses for three channels: layers in two formats would copy.
        images = [
            interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False).contiguous(
                memory_format=format_of(x)
            )
            for scale in self.scales
        ]
        logits = [self.base(image) for image in (x, *images)]
        if not all(isinstance(one, Tensor) for one in logits):
            raise TypeError(f"base: returned a {type(logits[0]).__name__}, should return a tensor of scores")
        size = max((one.shape[2:] for one in logits), key=math.prod)
        resized = [
            one if one.shape[2:] == size else interpolate(one, size, mode="bilinear", align_corners=False)
            for one in logits
        ]
        maximum = torch.stack(resized).max(dim=0).values
        return [*logits, maximum] if self.training else maximum
