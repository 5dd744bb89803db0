"""The dense CRF on numpy arrays, without torch: photo and class probabilities in, refined probabilities out."""

from __future__ import annotations

from deeplab_fast.crf.refine import (
    CLIP,
    PRESETS,
    BuiltCRF,
    CRFParameters,
    build,
    densecrf,
    parameters,
    probabilities_from_labels,
)
from deeplab_fast.scores import probabilities_from_scores, resize_scores, score_kind

__all__ = [
    "CLIP",
    "PRESETS",
    "BuiltCRF",
    "CRFParameters",
    "build",
    "densecrf",
    "parameters",
    "probabilities_from_labels",
    "probabilities_from_scores",
    "resize_scores",
    "score_kind",
]
