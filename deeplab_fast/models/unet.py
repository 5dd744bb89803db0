"""U-Net: Ronneberger et al., "U-Net: convolutional networks for biomedical image segmentation", MICCAI 2015."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from deeplab_fast.errors import ArgumentError
from deeplab_fast.models.layers import check_count, check_images, classifier, conv_relu, he_initialise

LEVELS = 5
# Four pools halve the size: padded images are filled up to a multiple of this.
STRIDE = 16
# Sizes without padding are 16 n + 12, so that every pool meets an even size; 188 is the least that leaves something.
_REMAINDER, _LEAST = 12, 188


class DoubleConv(nn.Sequential):
    """Two 3×3 convolutions, each with ReLU."""

    def __init__(self, in_channels: int, out_channels: int, padding: int):
        super().__init__(
            conv_relu(in_channels, out_channels, 3, padding), conv_relu(out_channels, out_channels, 3, padding)
        )


class UNet(nn.Module):
    """A contracting path down1 … down5, an expansive path up4 … up1 with join4 … join1, and score: 23 convolutions.

    Args:
        num_classes: K.
        in_channels: of the images.
        padded: whether convolutions keep the size; published without.
        width: channels of the first convolutions; every level has twice those of the one above.

    Raises:
        TypeError, ValueError: if a number is none, or less than 1.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, padded: bool = True, width: int = 64):
        super().__init__()
        num_classes = check_count("num_classes", num_classes)
        self.in_channels = check_count("in_channels", in_channels)
        self.padded = padded
        channels = [self.in_channels, *(check_count("width", width) * 2**i for i in range(LEVELS))]
        for i in range(1, LEVELS + 1):
            self.add_module(f"down{i}", DoubleConv(channels[i - 1], channels[i], padding=int(padded)))
        for i in range(LEVELS - 1, 0, -1):
            up = nn.ConvTranspose2d(channels[i + 1], channels[i], 2, stride=2)
            he_initialise([up])
            self.add_module(f"up{i}", up)
            self.add_module(f"join{i}", DoubleConv(2 * channels[i], channels[i], padding=int(padded)))
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(0.5)  # at the end of the contracting path, section 3.1
        self.score = classifier(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W), floating -> scores: padded (N, K, H, W), else (N, K, H - 184, W - 184).

        Raises:
            TypeError, ValueError: if x is anything else, or, without padding, of a size that pools do not halve.
        """
        check_images(x, self.in_channels)
        height, width = x.shape[2:]
        if self.padded:
            x = pad(x, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        elif any(size < _LEAST or size % STRIDE != _REMAINDER for size in (height, width)):
            wanted = (
                f"{_LEAST}, {_LEAST + STRIDE}, … 572, …, without padding: {_REMAINDER} more than a multiple of {STRIDE}"
            )
            raise ArgumentError("x", f"{height} x {width}", wanted, what="size")
        skips = []
        for i in range(1, LEVELS + 1):
            x = getattr(self, f"down{i}")(x if i == 1 else self.pool(x))
            x = self.dropout(x) if i >= LEVELS - 1 else x
            skips.append(x)
        for i in range(LEVELS - 1, 0, -1):
            x = getattr(self, f"up{i}")(x)
            x = getattr(self, f"join{i}")(torch.cat([_centre(skips[i - 1], x.shape[2:]), x], dim=1))
        scores = self.score(x)
        return scores[:, :, :height, :width].contiguous() if self.padded else scores

    def classifier_modules(self) -> list[nn.Module]:
        """The last convolution."""
        return [self.score]


def _centre(x: Tensor, size: Sequence[int]) -> Tensor:
    """The middle of x (N, C, H, W), (N, C, *size)."""
    top, left = ((x.shape[2 + a] - size[a]) // 2 for a in range(2))
    return x[:, :, top : top + size[0], left : left + size[1]]


def unet(num_classes: int, in_channels: int = 3, padded: bool = True) -> nn.Module:
    """U-Net, 31 million parameters, no batch norm.

    Args:
        num_classes: K.
        in_channels: of the images.
        padded: whether scores have the size of the image: convolutions are padded with zeros, and the image at its
            right and bottom to a multiple of 16, by its last pixels. Else as published, 572 -> 388.

    Raises:
        TypeError, ValueError: if a number is none, or less than 1.
    """
    return UNet(num_classes, in_channels, padded)
