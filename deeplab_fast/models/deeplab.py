"""DeepLab-v2 on a ResNet: Chen et al., "DeepLab", TPAMI 2018.

Names of parameters are those of the PyTorch DeepLab-v2 in common use, so published weights load.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from deeplab_fast.models.layers import check_count, check_images, freeze_batch_norm
from deeplab_fast.models.resnet import add_trunk
from deeplab_fast.nn import ASPP, MSC


class DeepLabV2(nn.Module):
    """ResNet of output stride 8, and an ASPP. Children: layer1 … layer5, aspp.

    Args:
        num_classes: K.
        blocks: residual blocks of layer2 … layer5.
        width: channels of the first convolution; the last layer has 32 times as many.
        stride_in_3x3: whether blocks of stride 2 have it in their 3×3 convolution, as torchvision's, and not in the
            first 1×1, as Caffe's and the published weights.
        rates: of the ASPP.
        frozen_batch_norm: see `freeze_batch_norm`.

    Raises:
        TypeError, ValueError: if a number is none, or less than 1, or there are no rates.
    """

    def __init__(
        self,
        num_classes: int,
        blocks: tuple[int, int, int, int] = (3, 4, 23, 3),
        width: int = 64,
        *,
        stride_in_3x3: bool = False,
        rates: Sequence[int] = (6, 12, 18, 24),
        frozen_batch_norm: bool = True,
    ):
        super().__init__()
        num_classes = check_count("num_classes", num_classes)
        self.stride_in_3x3 = stride_in_3x3
        channels = add_trunk(self, blocks, width, stride_in_3x3)
        self.aspp = ASPP(channels, num_classes, rates)
        if frozen_batch_norm:
            freeze_batch_norm(self)

    def extra_repr(self) -> str:
        return f"stride_in_3x3={self.stride_in_3x3}"

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W), floating -> scores (N, K, h, w), h and w an eighth, rounded up (and one, at times).

        Raises:
            TypeError, ValueError: if x is anything else.
        """
        check_images(x)
        for name in ("layer1", "layer2", "layer3", "layer4", "layer5", "aspp"):
            x = getattr(self, name)(x)
        return x

    def classifier_modules(self) -> list[nn.Module]:
        """The ASPP: 10 times the learning rate for its weights, 20 times for its biases."""
        return [self.aspp]


def deeplabv2_resnet101(
    num_classes: int,
    msc: bool = True,
    *,
    stride_in_3x3: bool = False,
    rates: Sequence[int] = (6, 12, 18, 24),
    frozen_batch_norm: bool = True,
) -> nn.Module:
    """DeepLab-v2 as published: ResNet-101, ASPP-L, three scales.

    Images are BGR in 0..255 minus the mean. A crop of 321 gives scores of 41², of 513 gives 65².

    Args:
        num_classes: K.
        msc: whether it is in `deeplab_fast.nn.MSC`: parameters then have names that start with `base.`, and in training
            it returns the list [full, 0.5, 0.75, maximum].
        stride_in_3x3: for torchvision's ImageNet weights; see `DeepLabV2`.
        rates: of the ASPP; (2, 4, 8, 12) is ASPP-S.
        frozen_batch_norm: see `freeze_batch_norm`.

    Raises:
        TypeError, ValueError: as `DeepLabV2` does.
    """
    base = DeepLabV2(num_classes, stride_in_3x3=stride_in_3x3, rates=rates, frozen_batch_norm=frozen_batch_norm)
    return MSC(base) if msc else base


def deeplabv2_small(
    num_classes: int,
    msc: bool = True,
    *,
    stride_in_3x3: bool = False,
    rates: Sequence[int] = (6, 12, 18, 24),
    frozen_batch_norm: bool = False,
) -> nn.Module:
    """DeepLab-v2 to train from nothing on a CPU: five blocks, a quarter of the channels, about a million parameters.

    Structure and arguments are those of `deeplabv2_resnet101`. Its batch norm is live, as nothing is there to freeze.
    """
    base = DeepLabV2(
        num_classes, (1, 1, 2, 1), 16, stride_in_3x3=stride_in_3x3, rates=rates, frozen_batch_norm=frozen_batch_norm
    )
    return MSC(base) if msc else base
