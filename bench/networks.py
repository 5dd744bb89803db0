"""DeepLab-v2 as people write it, in stock PyTorch: the peer of the cases of whole networks."""

from __future__ import annotations

from torch import Tensor, nn


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


def deeplabv2_resnet101(classes: int = 21) -> nn.Sequential:
    """Chen et al., TPAMI 2018: output stride 8, rates 2 and 4 in the last two stages."""
    return nn.Sequential(
        ConvBn(3, 64, 7, 2),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        bottlenecks(3, 64, 256, 1, 1),
        bottlenecks(4, 256, 512, 2, 1),
        bottlenecks(23, 512, 1024, 1, 2),
        bottlenecks(3, 1024, 2048, 1, 4),
        Aspp(2048, classes),
    )
