"""A network run on an image at several scales."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from deeplab_fast._arguments import check_floating, shape_of
from deeplab_fast._conv_arguments import format_of
from deeplab_fast.errors import ArgumentError, ArgumentTypeError


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
            raise ArgumentTypeError("base", type(base), "a torch.nn.Module")
        for scale in scales:
            if not (scale > 0 and math.isfinite(scale)):
                raise ArgumentError("scales", tuple(scales), "positive numbers")
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
            raise ArgumentError(
                "x", shape_of(x), f"(N, C, H, W) with H and W at least 1 at scales {self.scales}", what="shape"
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
            raise ArgumentTypeError("base", type(logits[0]), "a tensor of scores", what="output")
        size = max((one.shape[2:] for one in logits), key=math.prod)
        resized = [
            one if one.shape[2:] == size else interpolate(one, size, mode="bilinear", align_corners=False)
            for one in logits
        ]
        maximum = torch.stack(resized).max(dim=0).values
        return [*logits, maximum] if self.training else maximum
