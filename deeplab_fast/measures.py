"""Measures of a segmentation from counts of its pixels. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Scores", "scores_of"]


@dataclass(frozen=True, eq=False)
class Scores:
    """What a confusion matrix h, rows being the truth, says; all in 0..1. NaN where there is nothing to divide by.

    The definitions are those of Long et al., "Fully Convolutional Networks", CVPR 2015, section 5.

    Attributes:
        pixel_accuracy: sum of h's diagonal / sum of h.
        mean_accuracy: mean of `accuracy` over the classes that the truth has.
        mean_iou: mean of `iou` over the classes that the truth has.
        frequency_weighted_iou: `iou` weighted by the classes' share of the truth's pixels.
        iou: float64 (K,), diagonal / (row + column - diagonal); NaN for classes that the truth does not have.
        accuracy: float64 (K,), diagonal / row; NaN likewise.
        uncounted: classes that `mean_accuracy` and `mean_iou` leave out, as the background.
    """

    pixel_accuracy: float
    mean_accuracy: float
    mean_iou: float
    frequency_weighted_iou: float
    iou: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    uncounted: tuple[int, ...] = ()


def scores_of(counts: NDArray[np.integer], uncounted: Sequence[int] = ()) -> Scores:
    """The measures of counts (K, K + n), pixels by [truth, label]; labels from K on are no class, as of pixels that
    have none, and always wrong. Classes that are `uncounted` are left out of the means over classes."""
    counts = counts.astype(np.float64)
    K = len(counts)
    diagonal, truth, predicted = np.diag(counts[:, :K]), counts.sum(axis=1), counts.sum(axis=0)[:K]
    present = truth > 0
    if not present.any():
        absent = np.full(K, np.nan)
        return Scores(np.nan, np.nan, np.nan, np.nan, absent, absent.copy(), tuple(uncounted))
    # A class that is predicted but never true has an IoU of 0; like an absent one it is left out of the means.
    iou = np.where(present, diagonal / np.maximum(truth + predicted - diagonal, 1), np.nan)
    accuracy = np.where(present, diagonal / np.maximum(truth, 1), np.nan)
    averaged = present & ~np.isin(np.arange(K), list(uncounted))
    return Scores(
        pixel_accuracy=float(diagonal.sum() / counts.sum()),
        mean_accuracy=float(accuracy[averaged].mean()) if averaged.any() else np.nan,
        mean_iou=float(iou[averaged].mean()) if averaged.any() else np.nan,
        frequency_weighted_iou=float((truth[present] / counts.sum() * iou[present]).sum()),
        iou=iou,
        accuracy=accuracy,
        uncounted=tuple(uncounted),
    )
