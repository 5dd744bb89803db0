"""Scores of a segmentation, from one confusion matrix that is filled image by image."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeplab_fast._arguments import shape_of
from deeplab_fast.errors import ArgumentError, ArgumentTypeError
from deeplab_fast.measures import Scores, scores_of

__all__ = ["ConfusionMatrix", "Scores"]


class ConfusionMatrix:
    """How often each class was taken for each: one (K, K) matrix, so that no prediction has to be kept.

    Args:
        num_classes: K, at least 1.
        ignore_index: label of pixels that do not count.
        device: where the counts are kept.
        count_background: whether class 0 is one of those that mean IoU and mean accuracy are the means of; its pixels
            are counted in any case.

    Attributes:
        counts: int64 (K, K), pixels by [truth, predicted].

    Raises:
        TypeError: if `num_classes` is no whole number.
        ValueError: if it is less than 1.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        device: torch.device | str = "cpu",
        *,
        count_background: bool = True,
    ):
        if isinstance(num_classes, bool) or not isinstance(num_classes, int):
            raise ArgumentTypeError("num_classes", num_classes, "a whole number")
        if num_classes < 1:
            raise ArgumentError("num_classes", num_classes, "at least 1")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.count_background = count_background
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def __repr__(self) -> str:
        return f"ConfusionMatrix({self.num_classes} classes, {int(self.counts.sum()):,} pixels)"

    def update(self, truth: Tensor | NDArray, predicted: Tensor | NDArray) -> None:
        """Count the pixels of one image or a batch.

        Args:
            truth: classes, whole numbers of any shape, an array or a tensor on any device.
            predicted: of the same shape.

        Raises:
            TypeError: if they are no whole numbers.
            ValueError: if shapes differ, `truth` has a label that is neither a class nor `ignore_index`, or `predicted`
                one that is no class. Nothing is counted then.
        """
        truth, predicted = _labels("truth", truth), _labels("predicted", predicted)
        if truth.shape != predicted.shape:
            raise ArgumentError("predicted", shape_of(predicted), f"{shape_of(truth)}, that of truth", what="shape")
        predicted = predicted.to(truth.device).flatten()
        counted = truth.flatten() != self.ignore_index
        truth = truth.flatten()[counted]
        self._check("truth", truth, f", or {self.ignore_index} where it does not count")
        self._check("predicted", predicted, "")
        K = self.num_classes
        new = torch.bincount(truth * K + predicted[counted], minlength=K * K).view(K, K)
        self.counts += new.to(self.counts.device)

    def _check(self, name: str, labels: Tensor, besides: str) -> None:
        if labels.numel() == 0:
            return
        low, high = (bound.item() for bound in labels.aminmax())
        if low < 0 or high >= self.num_classes:
            wrong = labels[(labels < 0) | (labels >= self.num_classes)].unique().tolist()
            shown = ", ".join(map(str, wrong[:5])) + (", …" if len(wrong) > 5 else "")
            raise ArgumentError(name, shown, f"in 0..{self.num_classes - 1}{besides}", what="values")

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of another matrix.

        Raises:
            ValueError: if it has other classes or another `ignore_index`.
        """
        for name in ("num_classes", "ignore_index"):
            if getattr(self, name) != getattr(other, name):
                raise ArgumentError("other", getattr(other, name), str(getattr(self, name)), what=name)
        self.counts += other.counts.to(self.counts.device)

    def all_reduce(self) -> None:
        """Make it the sum over all processes of torch.distributed; without such processes do nothing."""
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        # NCCL moves memory of GPUs only.
        total = self.counts.cuda() if distributed.get_backend() == "nccl" else self.counts.clone()
        distributed.all_reduce(total)
        self.counts.copy_(total)

    def scores(self) -> Scores:
        """The scores of what has been counted so far."""
        return scores_of(self.counts.cpu().numpy(), () if self.count_background else (0,))


def _labels(name: str, labels: Tensor | NDArray) -> Tensor:
    """As an int64 tensor."""
    if isinstance(labels, np.ndarray):
        if labels.dtype.kind not in "iu":
            raise ArgumentTypeError(name, labels.dtype, "whole numbers", what="dtype")
        return torch.from_numpy(np.array(labels, np.int64))
    if not isinstance(labels, Tensor):
        raise ArgumentTypeError(name, type(labels), "an array or a tensor")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ArgumentTypeError(name, labels.dtype, "whole numbers", what="dtype")
    return labels.long()
