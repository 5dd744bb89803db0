"""DeepLab-v2 as people write it, in stock PyTorch: the peer of the cases of whole networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.case import Target


class ConvBn(nn.Sequential):
    """Convolution, batch norm, and maybe ReLU."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, rate: int = 1, relu: bool = True):
        super().__init__()
        padding = rate * (kernel // 2)
        self.add_module("conv", nn.Conv2d(channels, out, kernel, stride, padding, rate, bias=False))
        self.add_module("bn", nn.BatchNorm2d(out))
        if relu:
            self.add_module("relu", nn.ReLU())


class Bottleneck(nn.Module):
    """Residual block of ResNet-50 and deeper, the stride in its first convolution as in the Caffe models."""

    def __init__(self, channels: int, out: int, stride: int, rate: int, project: bool):
        super().__init__()
        self.reduce = ConvBn(channels, out // 4, 1, stride)
        self.conv3x3 = ConvBn(out // 4, out // 4, 3, 1, rate)
        self.increase = ConvBn(out // 4, out, 1, relu=False)
        self.shortcut = ConvBn(channels, out, 1, stride, relu=False) if project else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.increase(self.conv3x3(self.reduce(x))) + self.shortcut(x))


class Aspp(nn.Module):
    """Four dilated convolutions, summed."""

    def __init__(self, channels: int, classes: int, rates: tuple[int, ...] = (6, 12, 18, 24)):
        super().__init__()
        for i, rate in enumerate(rates):
            self.add_module(f"c{i}", nn.Conv2d(channels, classes, 3, padding=rate, dilation=rate))

    def forward(self, x: Tensor) -> Tensor:
        return sum(branch(x) for branch in self.children())


def bottlenecks(count: int, channels: int, out: int, stride: int, rate: int) -> nn.Sequential:
    """One of the four stages of a ResNet."""
    first = Bottleneck(channels, out, stride, rate, project=True)
    return nn.Sequential(first, *(Bottleneck(out, out, 1, rate, project=False) for _ in range(count - 1)))


def shape_of_resnet(target: Target) -> tuple[tuple[int, int, int, int], int]:
    """Blocks of the four stages, and channels of the first convolution: of ResNet-101."""
    return target.pick(((3, 4, 23, 3), 64), ((1, 1, 1, 1), 4))


def deeplabv2_resnet(classes: int, blocks: tuple[int, int, int, int], width: int) -> nn.Sequential:
    """Chen et al., TPAMI 2018: output stride 8, rates 2 and 4 in the last two stages."""
    out = 4 * width
    return nn.Sequential(
        ConvBn(3, width, 7, 2),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        bottlenecks(blocks[0], width, out, 1, 1),
        bottlenecks(blocks[1], out, 2 * out, 2, 1),
        bottlenecks(blocks[2], 2 * out, 4 * out, 1, 2),
        bottlenecks(blocks[3], 4 * out, 8 * out, 1, 4),
        Aspp(8 * out, classes),
    )


def calibrate(net: nn.Module, x: Tensor) -> None:
    """Give the batch norms the statistics of `x`, so that values stay in a range as in a trained network."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.inference_mode():
        net.train()(x)
    net.eval()
