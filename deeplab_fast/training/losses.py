"""The loss of DeepLab-v2: cross entropy on the scores of every scale, and of their maximum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy, interpolate

from deeplab_fast.config import CRFLossConfig
from deeplab_fast.data import MEAN_BGR, resize_labels
from deeplab_fast.errors import ArgumentError
from deeplab_fast.nn import DenseCRFLoss
from deeplab_fast.pictures import IGNORED


class SegmentationLoss(nn.Module):
    """Sum over the scores given of the mean cross entropy, labels brought to each one's size by Pillow's nearest.

    Chen et al., TPAMI 2018, section 4.1. The mean is over the pixels that are not ignored; where all are, it is 0. In
    several processes it is over the pixels of all of them, so that the gradients which DistributedDataParallel
    averages are those of one process with all images.

    Args:
        ignore_index: the label of pixels that do not count.
    """

    def __init__(self, ignore_index: int = IGNORED):
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor | Sequence[Tensor], labels: Tensor) -> Tensor:
        """Scores (N, K, h, w), or a list of such, and labels int64 (N, H, W) -> a number, float32.

        Raises:
            ValueError: if a label lies outside the classes (on a CPU; on a GPU torch stops the process).
        """
        every = [logits] if isinstance(logits, Tensor) else list(logits)
        resized = [resize_labels(labels, one.shape[2:]) for one in every]
        if labels.device.type == "cpu":
            self._check(labels, every[0].shape[1])
        counts = torch.stack([(one != self.ignore_index).sum() for one in resized]).float()
        world = 1
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(counts)
            world = distributed.get_world_size()
        sums = [
            cross_entropy(scores.float(), target, ignore_index=self.ignore_index, reduction="sum")
            for scores, target in zip(every, resized, strict=True)
        ]
        return (torch.stack(sums) * world / counts.clamp(min=1)).sum()

    def _check(self, labels: Tensor, classes: int) -> None:
        wrong = labels[(labels != self.ignore_index) & ((labels < 0) | (labels >= classes))]
        if len(wrong):
            raise ArgumentError("labels", int(wrong[0]), f"0 to {classes - 1}, or {self.ignore_index}", what="one")


class CRFRegularisation(nn.Module):
    """`nn.DenseCRFLoss` on a network's input and scores, as a training has them.

    The photo is the input plus the mean; the region is where the crop was not padded.

    Args:
        config: of the loss.
        mean_bgr: that was subtracted.
    """

    mean: Tensor

    def __init__(self, config: CRFLossConfig, mean_bgr: Sequence[float] = MEAN_BGR):
        super().__init__()
        self.loss = DenseCRFLoss(**config.model_dump())
        self.register_buffer("mean", torch.tensor(mean_bgr)[:, None, None], persistent=False)

    def forward(self, x: Tensor, logits: Tensor | Sequence[Tensor]) -> Tensor:
        """Input float32 (N, 3, H, W) and scores (N, K, h, w), or a list whose last counts -> a number."""
        scores = logits if isinstance(logits, Tensor) else logits[-1]
        images = (x + self.mean).flip(1).clamp(0, 255)
        # Padding is 0 after the subtraction; no photo is, for the mean is no whole number.
        rois = (x != 0).any(dim=1)
        resized = interpolate(scores.float(), x.shape[2:], mode="bilinear", align_corners=False)
        return self.loss(images, torch.softmax(resized, dim=1), rois)
