"""The dense CRF on numpy arrays, without torch: photo and class probabilities in, refined probabilities out.

The model is that of Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials" (NIPS 2011): a bilateral (appearance) and a spatial (smoothness) kernel, equation 3, and
mean-field inference, algorithm 1. Presets are parameter sets that well-known segmentation projects publish.
"""

from __future__ import annotations

from deeplab_fast.crf.dataset import DatasetResult, refine_dataset
from deeplab_fast.crf.parameters import PRESETS, CRFParameters, parameters
from deeplab_fast.crf.refining import CLIP, BuiltCRF, build, densecrf, probabilities_from_labels, refine
from deeplab_fast.scores import probabilities_from_scores, resize_scores, score_kind

__all__ = [
    "CLIP",
    "PRESETS",
    "BuiltCRF",
    "CRFParameters",
    "DatasetResult",
    "build",
    "densecrf",
    "parameters",
    "probabilities_from_labels",
    "probabilities_from_scores",
    "refine",
    "refine_dataset",
    "resize_scores",
    "score_kind",
]
