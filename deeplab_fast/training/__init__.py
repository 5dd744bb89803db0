"""Training of segmentation networks: the recipe of DeepLab-v2, its optimizer, losses, checkpoints and logs."""

from __future__ import annotations

from deeplab_fast.training.freezing import freeze, trunk_stages
from deeplab_fast.training.interrupts import TrainingTerminated
from deeplab_fast.training.logs import Logger, TensorBoard, TrainingLog, read_log
from deeplab_fast.training.losses import CRFRegularisation, SegmentationLoss, dice_loss
from deeplab_fast.training.optimization import parameter_groups, poly_factor, poly_scheduler, warmup_factor
from deeplab_fast.training.result import TrainingResult
from deeplab_fast.training.trainer import Trainer, train

__all__ = [
    "CRFRegularisation",
    "Logger",
    "SegmentationLoss",
    "TensorBoard",
    "Trainer",
    "TrainingLog",
    "TrainingResult",
    "TrainingTerminated",
    "dice_loss",
    "freeze",
    "parameter_groups",
    "poly_factor",
    "poly_scheduler",
    "read_log",
    "train",
    "trunk_stages",
    "warmup_factor",
]
