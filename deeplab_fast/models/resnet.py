"""The trunk of DeepLab-v2: a ResNet of bottleneck blocks with atrous convolutions, output stride 8."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from deeplab_fast.models.layers import he_initialise
from deeplab_fast.nn import ConvBnReLU

# Strides and rates of layer2 … layer5: Chen et al., "DeepLab", TPAMI 2018, section 3.1.
STRIDES = (1, 2, 1, 1)
RATES = (1, 1, 2, 4)
EXPANSION = 4


class Bottleneck(nn.Module):
    """Residual block of 1×1, 3×3 and 1×1 convolutions: He et al., "Deep residual learning", CVPR 2016, figure 5.

    Children: reduce, conv3x3, increase, and shortcut where the shape changes; each a `ConvBnReLU`.

    Args:
        in_channels, out_channels: of the block; the 3×3 convolution has a quarter of `out_channels`.
        stride: of the block.
        rate: of the 3×3 convolution.
        project: whether the shortcut is a convolution.
        stride_in_3x3: where the stride is: in the 3×3 convolution, else in the first 1×1.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, rate: int, project: bool, stride_in_3x3: bool = False
    ):
        super().__init__()
        middle = out_channels // EXPANSION
        first, second = (1, stride) if stride_in_3x3 else (stride, 1)
        self.reduce = ConvBnReLU(in_channels, middle, 1, first)
        self.conv3x3 = ConvBnReLU(middle, middle, 3, second, padding=rate, dilation=rate)
        self.increase = ConvBnReLU(middle, out_channels, 1)
        self.shortcut = ConvBnReLU(in_channels, out_channels, 1, stride, relu=False) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, out_channels, H', W')."""
        residual = x if self.shortcut is None else self.shortcut(x)
        return self.increase(self.conv3x3(self.reduce(x)), residual=residual)


def stem(channels: int) -> nn.Sequential:
    """7×7 convolution and max pool, both of stride 2: images (N, 3, H, W) -> (N, channels, H/4, W/4)."""
    return nn.Sequential(
        OrderedDict(
            conv1=ConvBnReLU(3, channels, 7, stride=2, padding=3),
            pool=nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        )
    )


def layer(
    blocks: int, in_channels: int, out_channels: int, stride: int, rate: int, stride_in_3x3: bool
) -> nn.Sequential:
    """`blocks` bottlenecks, named block1, block2, …; the first has the stride and the shortcut."""
    return nn.Sequential(
        OrderedDict(
            (
                f"block{b + 1}",
                Bottleneck(
                    out_channels if b else in_channels, out_channels, 1 if b else stride, rate, b == 0, stride_in_3x3
                ),
            )
            for b in range(blocks)
        )
    )


def add_trunk(model: nn.Module, blocks: tuple[int, int, int, int], width: int, stride_in_3x3: bool) -> int:
    """Add layer1 … layer5 to `model`, initialised; returns the number of channels that come out.

    Args:
        model: a module without such children.
        blocks: of layer2 … layer5.
        width: channels of the stem.
        stride_in_3x3: see `Bottleneck`.
    """
    model.layer1 = stem(width)
    in_channels = width
    for i, (count, stride, rate) in enumerate(zip(blocks, STRIDES, RATES, strict=True)):
        out_channels = EXPANSION * width * 2**i
        model.add_module(f"layer{i + 2}", layer(count, in_channels, out_channels, stride, rate, stride_in_3x3))
        in_channels = out_channels
    he_initialise(model.modules())
    return in_channels
