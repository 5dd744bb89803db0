"""What is minimised: cross entropy on the scores of every scale and of their maximum, and what may be added to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy, interpolate

from deeplab_fast.config import CRFLossConfig, LossConfig
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
        class_weights: how much the pixels of each class count, (K,), 0 or more; the mean is weighted by them.
        label_smoothing: share of the target that is spread evenly over all classes, as of
            `torch.nn.CrossEntropyLoss`; 0 to below 1.
        ohem_threshold: only pixels whose class has a probability below this count (Shrivastava et al., "Training
            region-based object detectors with online hard example mining", CVPR 2016); None: all do.
        ohem_min_kept: share of the labelled pixels that count at least, the hardest ones.
        dice: factor of `dice_loss`, which is added; 0: none.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        ignore_index: int = IGNORED,
        *,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        ohem_threshold: float | None = None,
        ohem_min_kept: float = 0.1,
        dice: float = 0.0,
    ):
        super().__init__()
        self.ignore_index = ignore_index
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        self.label_smoothing = label_smoothing
        self.ohem_threshold, self.ohem_min_kept = ohem_threshold, ohem_min_kept
        self.dice = dice

    @classmethod
    def of(cls, config: LossConfig, classes: Sequence[str], ignore_index: int = IGNORED) -> SegmentationLoss:
        """The loss that a configuration describes, for these classes.

        Raises:
            ValueError: if the configuration weights other classes.
        """
        return cls(
            ignore_index,
            class_weights=_weights_of(config.class_weights, classes),
            label_smoothing=config.label_smoothing,
            ohem_threshold=None if config.ohem is None else config.ohem.threshold,
            ohem_min_kept=1.0 if config.ohem is None else config.ohem.min_kept,
            dice=config.dice,
        )

    def forward(self, logits: Tensor | Sequence[Tensor], labels: Tensor) -> Tensor:
        """Scores (N, K, h, w), or a list of such, and labels int64 (N, H, W) -> a number, float32.

        Raises:
            ValueError: if a label lies outside the classes (on a CPU; on a GPU torch stops the process).
        """
        every = [logits] if isinstance(logits, Tensor) else list(logits)
        every = [scores.float() for scores in every]
        resized = [resize_labels(labels, one.shape[2:]) for one in every]
        if labels.device.type == "cpu":
            self._check(labels, every[0].shape[1])
        counted = [self._hard(scores, target) for scores, target in zip(every, resized, strict=True)]
        counts = torch.stack([self._count(target) for target in counted])
        world = 1
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(counts)
            world = distributed.get_world_size()
        sums = [
            cross_entropy(
                scores,
                target,
                weight=self.class_weights,
                ignore_index=self.ignore_index,
                reduction="sum",
                label_smoothing=self.label_smoothing,
            )
            for scores, target in zip(every, counted, strict=True)
        ]
        # Weights may well sum to less than 1.
        divisors = counts.clamp(min=1) if self.class_weights is None else counts.where(counts > 0, 1)
        loss = (torch.stack(sums) * world / divisors).sum()
        if self.dice == 0:
            return loss
        dice = [dice_loss(scores, target, self.ignore_index) for scores, target in zip(every, resized, strict=True)]
        return loss + self.dice * torch.stack(dice).sum()

    def _count(self, labels: Tensor) -> Tensor:
        """The pixels that are not ignored, or the sum of their weights; float32."""
        known = labels != self.ignore_index
        return known.sum().float() if self.class_weights is None else self.class_weights[labels[known]].sum()

    def _hard(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The labels, with `ignore_index` where a pixel does not count because it is easy."""
        if self.ohem_threshold is None:
            return labels
        entropy = cross_entropy(logits.detach(), labels, ignore_index=self.ignore_index, reduction="none")
        known = labels != self.ignore_index
        least = math.ceil(self.ohem_min_kept * int(known.sum()))
        if least == 0:
            return labels
        hardest = entropy[known].topk(least, sorted=False).values.min()
        bound = hardest.clamp(max=-math.log(self.ohem_threshold))  # of the entropy, above which a pixel is hard
        return labels.where(entropy >= bound, self.ignore_index)

    def _check(self, labels: Tensor, classes: int) -> None:
        wrong = labels[(labels != self.ignore_index) & ((labels < 0) | (labels >= classes))]
        if len(wrong):
            raise ArgumentError("labels", int(wrong[0]), f"0 to {classes - 1}, or {self.ignore_index}", what="one")


def _weights_of(given: Sequence[float] | Mapping[str, float] | None, classes: Sequence[str]) -> list[float] | None:
    """A weight for each class."""
    name = "training.loss.class_weights"
    if given is None:
        return None
    if isinstance(given, Mapping):
        unknown = [one for one in given if one not in classes]
        if unknown:
            raise ArgumentError(name, ", ".join(unknown), f"one of {', '.join(classes)}", what="class")
        given = [given.get(one, 1.0) for one in classes]
    if len(given) != len(classes):
        raise ArgumentError(name, len(given), f"{len(classes)}, one a class", what="number")
    if not any(given):
        raise ArgumentError(name, list(given), "positive for at least one class")
    return list(given)


def dice_loss(logits: Tensor, labels: Tensor, ignore_index: int = IGNORED) -> Tensor:
    """1 - the mean, over the classes that the labels have, of the soft Dice coefficient 2 Σ p y / (Σ p + Σ y).

    Milletari et al., "V-Net", 3DV 2016, without squares. The sums are over the pixels of all images that are not
    ignored; in several processes of all of them, and gradients are such that their average is that of one process.

    Args:
        logits: float32 (N, K, h, w).
        labels: int64 (N, h, w).
        ignore_index: the label of pixels that do not count.

    Returns:
        A number; 0 where all pixels are ignored.
    """
    K = logits.shape[1]
    known = labels != ignore_index
    probabilities = logits.softmax(dim=1).movedim(1, -1)[known]  # (pixels, K)
    target = labels[known]
    hits = probabilities.new_zeros(K).index_add(0, target, probabilities.gather(1, target[:, None])[:, 0])
    sums = torch.stack([hits, probabilities.sum(dim=0), torch.bincount(target, minlength=K).to(hits.dtype)])
    if distributed.is_available() and distributed.is_initialized():
        total = sums.detach().clone()
        distributed.all_reduce(total)
        # The value of all processes; gradients are of this one's share, times the number they are divided by.
        sums = total + distributed.get_world_size() * (sums - sums.detach())
    hits, predicted, truth = sums
    present = truth.detach() > 0
    coefficients = 2 * hits[present] / (predicted + truth)[present]
    return (1 - coefficients).sum() / present.sum().clamp(min=1)


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
