"""VGG-16 as a trunk, and DeepLab on it. Children have the names of the published Caffe models."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from deeplab_fast.errors import ArgumentError
from deeplab_fast.models.layers import check_count, check_images, classifier, conv_relu
from deeplab_fast.nn import MSC

# Convolutions and channels of conv1 … conv5: Simonyan and Zisserman, ICLR 2015, table 1, D.
VGG16 = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


class VGG16Trunk(nn.Module):
    """The 13 convolutions of VGG-16, conv1_1 … conv5_3, and its five max pools.

    Args:
        pools: pool1 … pool5.
        padding: of the first convolution.
        last_rate: of conv5_1 … conv5_3.
    """

    def __init__(self, pools: Sequence[nn.Module], padding: int = 1, last_rate: int = 1):
        super().__init__()
        in_channels = 3
        for i, ((count, channels), pool) in enumerate(zip(VGG16, pools, strict=True), start=1):
            rate = last_rate if i == len(VGG16) else 1
            for j in range(1, count + 1):
                conv = conv_relu(in_channels, channels, 3, padding if i == j == 1 else rate, rate)
                self.add_module(f"conv{i}_{j}", conv)
                in_channels = channels
            self.add_module(f"pool{i}", pool)

    def features(self, x: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W) -> what each of the five pools gives.

        Raises:
            TypeError, ValueError: if x is anything else.
        """
        check_images(x)
        outs = []
        for i, (count, _) in enumerate(VGG16, start=1):
            for name in (*(f"conv{i}_{j}" for j in range(1, count + 1)), f"pool{i}"):
                x = getattr(self, name)(x)
            outs.append(x)
        return outs


def _deeplab_pools() -> list[nn.Module]:
    """As in the published prototxts: 3×3 where VGG has 2×2, so that responses align; stride 1 from pool4 on."""
    return [nn.MaxPool2d(3, stride, padding=1, ceil_mode=True) for stride in (2, 2, 2, 1, 1)]


class DeepLabVGG16(VGG16Trunk):
    """VGG-16 of output stride 8 and branches fc6 - fc7 - fc8 at several rates, summed.

    Children: conv1_1 … conv5_3, and fc6, fc7, fc8 if there is one rate, else fc6_1, fc7_1, fc8_1, fc6_2, …

    Args:
        num_classes: K.
        rates: of the 3×3 convolution fc6 of each branch.
        average_pool: whether a 3×3 average pool comes after pool5, as in LargeFOV.

    Raises:
        TypeError, ValueError: if a number is none, or less than 1, or there are no rates.
    """

    def __init__(self, num_classes: int, rates: Sequence[int], average_pool: bool = False):
        num_classes = check_count("num_classes", num_classes)
        if not isinstance(rates, Sequence) or isinstance(rates, str) or len(rates) == 0:
            raise ArgumentError("rates", rates, "a sequence of integers, one a branch")
        rates = [check_count("rates", rate) for rate in rates]
        super().__init__(_deeplab_pools(), last_rate=2)
        self.average = nn.AvgPool2d(3, stride=1, padding=1) if average_pool else nn.Identity()
        self.dropout = nn.Dropout(0.5)
        self.branches = [""] if len(rates) == 1 else [f"_{b + 1}" for b in range(len(rates))]
        for branch, rate in zip(self.branches, rates, strict=True):
            self.add_module(f"fc6{branch}", conv_relu(512, 1024, 3, padding=rate, rate=rate))
            self.add_module(f"fc7{branch}", conv_relu(1024, 1024, 1))
            self.add_module(f"fc8{branch}", classifier(1024, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W), floating -> scores (N, K, h, w), h and w an eighth, rounded up (and one, at times).

        Raises:
            TypeError, ValueError: if x is anything else.
        """
        features = self.average(self.features(x)[-1])
        return reduce(torch.add, (self._scores(features, branch) for branch in self.branches))

    def _scores(self, x: Tensor, branch: str) -> Tensor:
        for name in ("fc6", "fc7"):
            x = self.dropout(getattr(self, name + branch)(x))
        return getattr(self, "fc8" + branch)(x)

    def classifier_modules(self) -> list[nn.Module]:
        """fc8 of each branch: 10 times the learning rate for weights, 20 times for biases."""
        return [getattr(self, "fc8" + branch) for branch in self.branches]


def deeplabv1_vgg16(num_classes: int, msc: bool = False) -> nn.Module:
    """DeepLab-LargeFOV: Chen et al., "Semantic image segmentation with deep convolutional nets", ICLR 2015.

    fc6 is a 3×3 convolution of rate 12 and 1024 channels. Images are BGR in 0..255 minus the mean; a crop of 321 gives
    scores of 41².

    Args:
        num_classes: K.
        msc: whether it is in `deeplab_fast.nn.MSC`, as `deeplabv2_resnet101`.

    Raises:
        TypeError, ValueError: if `num_classes` is no whole number, or less than 1.
    """
    base = DeepLabVGG16(num_classes, rates=(12,), average_pool=True)
    return MSC(base) if msc else base


def deeplabv2_vgg16(num_classes: int, msc: bool = False, *, rates: Sequence[int] = (6, 12, 18, 24)) -> nn.Module:
    """DeepLab-v2 on VGG-16, with ASPP-L: Chen et al., TPAMI 2018, figure 7 (b).

    Four branches fc6 - fc7 - fc8, whose scores are summed. Images are BGR in 0..255 minus the mean.

    Args:
        num_classes: K.
        msc: whether it is in `deeplab_fast.nn.MSC`, as `deeplabv2_resnet101`.
        rates: of fc6 in each branch; (2, 4, 8, 12) is ASPP-S.

    Raises:
        TypeError, ValueError: as `DeepLabVGG16` does.
    """
    base = DeepLabVGG16(num_classes, rates)
    return MSC(base) if msc else base
