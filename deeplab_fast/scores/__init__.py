"""Class scores as networks leave them: read from files, told apart, and turned into probabilities. numpy only.

`.pt` files are read with torch, `.safetensors` with that library; nothing else needs them.
"""

from __future__ import annotations

from deeplab_fast.scores.meaning import (
    KINDS,
    LAYOUTS,
    ScoreMap,
    as_scores,
    checked_scores,
    fits_enlarged,
    probabilities_from_scores,
    resize_scores,
    score_kind,
)
from deeplab_fast.scores.reading import (
    ARRAY_ENDINGS,
    StoredScores,
    find_scores,
    read_array,
    read_scores,
    read_stored,
)
from deeplab_fast.scores.writing import half_logits, npz_writer, save_scores, scores_writer

__all__ = [
    "ARRAY_ENDINGS",
    "KINDS",
    "LAYOUTS",
    "ScoreMap",
    "StoredScores",
    "as_scores",
    "checked_scores",
    "find_scores",
    "fits_enlarged",
    "half_logits",
    "npz_writer",
    "probabilities_from_scores",
    "read_array",
    "read_scores",
    "read_stored",
    "resize_scores",
    "save_scores",
    "score_kind",
    "scores_writer",
]
