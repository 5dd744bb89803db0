"""Small models written as people write them: what `deeplab_fast.patch` meets."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

# --- DeepLab-v2 ----------------------------------------------------------------------------------------------------


class SumOfNamed(nn.Module):
    """An ASPP with a child a branch, summed by name."""

    def __init__(self, channels: int, classes: int, rates=(1, 2, 3, 4)):
        super().__init__()
        self.c0, self.c1, self.c2, self.c3 = (
            nn.Conv2d(channels, classes, 3, padding=rate, dilation=rate) for rate in rates
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.c0(x) + self.c1(x) + self.c2(x) + self.c3(x)


class SumInALoop(nn.Module):
    """An ASPP with a list of branches, summed in place."""

    def __init__(self, channels: int, classes: int, rates=(1, 2, 3, 4)):
        super().__init__()
        self.conv2d_list = nn.ModuleList(
            nn.Conv2d(channels, classes, 3, stride=1, padding=rate, dilation=rate, bias=True) for rate in rates
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2d_list[0](x)
        for i in range(len(self.conv2d_list) - 1):
            out += self.conv2d_list[i + 1](x)
        return out


class SumOfChildren(nn.Module):
    """An ASPP whose children are its branches, summed by `sum`."""

    def __init__(self, channels: int, classes: int, rates=(1, 2, 3, 4)):
        super().__init__()
        for i, rate in enumerate(rates):
            self.add_module(f"c{i}", nn.Conv2d(channels, classes, 3, 1, padding=rate, dilation=rate, bias=True))

    def forward(self, x: Tensor) -> Tensor:
        return sum([stage(x) for stage in self.children()])


class SumOfStack(SumInALoop):
    """An ASPP that stacks its branches first."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([conv(x) for conv in self.conv2d_list]).sum(dim=0)


SUMMED = (SumOfNamed, SumInALoop, SumOfChildren, SumOfStack)


class Unit(nn.Sequential):
    """Convolution, batch norm, ReLU, in the naming of Caffe's ports."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, padding: int, dilation: int, relu=True):
        super().__init__()
        self.add_module("conv", nn.Conv2d(channels, out, kernel, stride, padding, dilation, bias=False))
        self.add_module("bn", nn.BatchNorm2d(out, eps=1e-5, momentum=1 - 0.999))
        if relu:
            self.add_module("relu", nn.ReLU())


class CaffeBottleneck(nn.Module):
    """A residual block of units."""

    def __init__(self, channels: int, out: int, stride: int, dilation: int, downsample: bool):
        super().__init__()
        mid = out // 4
        self.reduce = Unit(channels, mid, 1, stride, 0, 1)
        self.conv3x3 = Unit(mid, mid, 3, 1, dilation, dilation)
        self.increase = Unit(mid, out, 1, 1, 0, 1, relu=False)
        self.shortcut = Unit(channels, out, 1, stride, 0, 1, relu=False) if downsample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.reduce(x)
        h = self.conv3x3(h)
        h = self.increase(h)
        h += self.shortcut(x)
        return functional.relu(h)


def deeplab(aspp: type[nn.Module] = SumOfChildren, classes: int = 4) -> nn.Sequential:
    """DeepLab-v2, small."""
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(
            layer1=nn.Sequential(OrderedDict(conv1=Unit(3, 8, 7, 2, 3, 1), pool=nn.MaxPool2d(3, 2, 1, ceil_mode=True))),
            layer2=CaffeBottleneck(8, 16, 1, 1, downsample=True),
            layer3=nn.Sequential(
                CaffeBottleneck(16, 16, 1, 2, downsample=False), CaffeBottleneck(16, 32, 2, 2, downsample=True)
            ),
            aspp=aspp(32, classes),
        )
    )


# --- torchvision's residual blocks ---------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        identity = x

        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)

        out = self.conv2(out)
        out = self.bn2(out)

        if self.downsample is not None:
            identity = self.downsample(x)

        out += identity
        out = self.relu(out)

        return out


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inplanes, planes, stride=1, downsample=None, groups=1, dilation=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, dilation, dilation, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """Stem, a layer of each kind of block, a classifier."""

    def __init__(self, groups: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8))
        downsample = nn.Sequential(nn.Conv2d(8, 16, kernel_size=1, stride=2, bias=False), nn.BatchNorm2d(16))
        self.layer2 = nn.Sequential(
            Bottleneck(8, 4, 2, downsample, groups=groups), Bottleneck(16, 4, dilation=2, groups=groups)
        )
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(16, 5)

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))

    def forward(self, x: Tensor) -> Tensor:
        return self._forward_impl(x)


# --- Others --------------------------------------------------------------------------------------------------------


class ConcatenatedASPP(nn.Module):
    """DeepLab-v3: branches with batch norm, and a pooled one, concatenated and projected."""

    def __init__(self, channels: int, out: int, rates=(2, 3, 4)):
        super().__init__()
        self.convs = nn.ModuleList([Unit(channels, out, 1, 1, 0, 1)])
        self.convs.extend(Unit(channels, out, 3, 1, rate, rate) for rate in rates)
        self.convs.append(PooledBranch(channels, out))
        self.project = Unit(len(self.convs) * out, out, 1, 1, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(torch.cat([conv(x) for conv in self.convs], dim=1))


class PooledBranch(nn.Sequential):
    def __init__(self, channels: int, out: int):
        super().__init__(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        for module in self:
            x = module(x)
        return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


class ConcatenatedBare(nn.Module):
    """Parallel convolutions, concatenated."""

    def __init__(self, channels: int, out: int, rates=(1, 2, 3, 4)):
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(channels, out, 3, padding=rate, dilation=rate) for rate in rates)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def vgg(classes: int = 4) -> nn.Sequential:
    """DeepLab-v1: convolutions with bias and ReLU, no batch norm; dropout before the classifier."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(8, 16, 3, padding=4, dilation=4),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.5),
        nn.Conv2d(16, classes, 1),
    )
