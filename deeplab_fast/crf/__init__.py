"""The dense CRF on numpy arrays, without torch: photo or volume, and class probabilities in, refined ones out.

`batched_crf`, for batches of tensors, imports torch when it is first asked for.

The model is that of Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials" (NIPS 2011): a bilateral (appearance) and a spatial (smoothness) kernel, equation 3, and
mean-field inference, algorithm 1. Presets are parameter sets that well-known segmentation projects publish.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deeplab_fast import _lazy
from deeplab_fast.crf.dataset import DatasetResult, refine_dataset
from deeplab_fast.crf.parameters import PRESETS, CRFParameters, parameters
from deeplab_fast.crf.refining import CLIP, BuiltCRF, build, densecrf, probabilities_from_labels, refine
from deeplab_fast.crf.volumes import Volume, read_volume
from deeplab_fast.scores import probabilities_from_scores, resize_scores, score_kind

if TYPE_CHECKING:
    from deeplab_fast.crf.batched import batched_crf
else:
    __getattr__, __dir__ = _lazy.attributes(__name__, {"batched_crf": "batched"})

__all__ = [
    "CLIP",
    "PRESETS",
    "BuiltCRF",
    "CRFParameters",
    "DatasetResult",
    "Volume",
    "batched_crf",
    "build",
    "densecrf",
    "parameters",
    "probabilities_from_labels",
    "probabilities_from_scores",
    "read_volume",
    "refine",
    "refine_dataset",
    "resize_scores",
    "score_kind",
]
