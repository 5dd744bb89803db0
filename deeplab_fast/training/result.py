"""What a training returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended.

    Attributes:
        step: steps done, with those before it was resumed.
        mean_iou: of the last evaluation; None if there was none.
        best_mean_iou: of the best checkpoint.
        stopped_early: whether it ended because it did not get better, by `training.early_stopping`.
        last: the newest checkpoint.
        best: that with the best mean IoU; None if there was no evaluation.
    """

    step: int
    mean_iou: float | None
    best_mean_iou: float | None
    last: Path
    best: Path | None
    stopped_early: bool = False
