"""Fully convolutional networks on VGG-16: Long et al., CVPR 2015. Children have the names of the Caffe models."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from deeplab_fast.models.layers import BilinearUpsampling, check_count, classifier, conv_relu
from deeplab_fast.models.vgg import VGG16Trunk

# A pool's scores are cut to those of the deeper one from these rows and columns on, and so is the result to the image:
# the padding of 100, and each kernel's half, in pixels of that resolution.
_POOL_OFFSETS = {4: 5, 3: 9}
_IMAGE_OFFSETS = {32: 19, 16: 27, 8: 31}


class FCN(VGG16Trunk):
    """FCN-32s, FCN-16s or FCN-8s.

    Children: conv1_1 … conv5_3, fc6, fc7, score_fr; upscore; or upscore2, score_pool4 and upscore16; or upscore2,
    score_pool4, upscore_pool4, score_pool3 and upscore8. Score layers start from 0, upsampling as bilinear; the last
    upsampling is fixed (`requires_grad` is False).

    Args:
        num_classes: K.
        stride: 32, 16 or 8.
        pool_scales: what pool4 and pool3 are multiplied by before they are scored.

    Raises:
        TypeError, ValueError: if `num_classes` is no whole number, or less than 1.
    """

    def __init__(self, num_classes: int, stride: int, pool_scales: tuple[float, float] = (1, 1)):
        num_classes = check_count("num_classes", num_classes)
        super().__init__([nn.MaxPool2d(2, 2, ceil_mode=True) for _ in range(5)], padding=100)
        self.stride, self.pool_scales = stride, pool_scales
        self.fc6 = conv_relu(512, 4096, 7)
        self.fc7 = conv_relu(4096, 4096, 1)
        self.dropout = nn.Dropout(0.5)
        self.score_fr = classifier(4096, num_classes, std=0)
        if stride <= 16:
            self.upscore2 = BilinearUpsampling(num_classes, 2, learned=True)
            self.score_pool4 = classifier(512, num_classes, std=0)
        if stride == 8:
            self.upscore_pool4 = BilinearUpsampling(num_classes, 2, learned=True)
            self.score_pool3 = classifier(256, num_classes, std=0)
        self.last = "upscore" if stride == 32 else f"upscore{stride}"
        self.add_module(self.last, BilinearUpsampling(num_classes, stride, learned=False))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W), floating -> scores (N, K, H, W).

        Raises:
            TypeError, ValueError: if x is anything else.
        """
        *_, pool3, pool4, pool5 = self.features(x)
        scores = self.score_fr(self.dropout(self.fc7(self.dropout(self.fc6(pool5)))))
        if self.stride <= 16:
            scores = self.upscore2(scores)
            scores = scores + _cut(self.score_pool4(pool4 * self.pool_scales[0]), _POOL_OFFSETS[4], scores.shape[2:])
        if self.stride == 8:
            scores = self.upscore_pool4(scores)
            scores = scores + _cut(self.score_pool3(pool3 * self.pool_scales[1]), _POOL_OFFSETS[3], scores.shape[2:])
        scores = getattr(self, self.last)(scores)
        return _cut(scores, _IMAGE_OFFSETS[self.stride], x.shape[2:]).contiguous()

    def classifier_modules(self) -> list[nn.Module]:
        """The score layers."""
        names = {32: ("score_fr",), 16: ("score_fr", "score_pool4"), 8: ("score_fr", "score_pool4", "score_pool3")}
        return [getattr(self, name) for name in names[self.stride]]


def _cut(x: Tensor, offset: int, size: Sequence[int]) -> Tensor:
    """x (N, C, H, W) -> (N, C, *size), from row and column `offset` on."""
    return x[:, :, offset : offset + size[0], offset : offset + size[1]]


def fcn32s_vgg16(num_classes: int) -> nn.Module:
    """FCN-32s: scores of the last layer, upsampled 32 times to the size of the image.

    Images are BGR in 0..255 minus the mean.

    Args:
        num_classes: K.

    Raises:
        TypeError, ValueError: if `num_classes` is no whole number, or less than 1.
    """
    return FCN(num_classes, 32)


def fcn16s_vgg16(num_classes: int) -> nn.Module:
    """FCN-16s: as `fcn32s_vgg16`, with scores of pool4 added at stride 16."""
    return FCN(num_classes, 16)


def fcn8s_vgg16(num_classes: int, *, at_once: bool = False) -> nn.Module:
    """FCN-8s: as `fcn16s_vgg16`, with scores of pool3 added at stride 8.

    Args:
        num_classes: K.
        at_once: whether pool4 and pool3 are scaled, by 0.01 and 0.0001, as in the published model that was trained in
            one go; not for weights that were trained in stages, from FCN-32s on.
    """
    return FCN(num_classes, 8, (0.01, 0.0001) if at_once else (1, 1))
