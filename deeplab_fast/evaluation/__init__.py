"""Prediction with a segmentation network, its scores, their report, and the search for CRF parameters.

Beside what is named here: `crf_search.search`, `report.write_report`. The report, and importing this, need no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deeplab_fast import _lazy

# name -> module that has it
_LAZY = {
    "ConfusionMatrix": "metrics",
    "EvaluationResult": "evaluating",
    "Prediction": "predictor",
    "PredictionResult": "predicting",
    "Predictor": "predictor",
    "Scores": "metrics",
    "SearchResult": "crf_search",
    "collect_images": "predicting",
    "evaluate": "evaluating",
    "predict": "predicting",
}
_MODULES = ("crf_search", "report")

__all__ = [*_LAZY, *_MODULES]

if TYPE_CHECKING:  # `X as X` marks what is exported
    from deeplab_fast.evaluation import crf_search as crf_search
    from deeplab_fast.evaluation import report as report
    from deeplab_fast.evaluation.crf_search import SearchResult as SearchResult
    from deeplab_fast.evaluation.evaluating import EvaluationResult as EvaluationResult
    from deeplab_fast.evaluation.evaluating import evaluate as evaluate
    from deeplab_fast.evaluation.metrics import ConfusionMatrix as ConfusionMatrix
    from deeplab_fast.evaluation.metrics import Scores as Scores
    from deeplab_fast.evaluation.predicting import PredictionResult as PredictionResult
    from deeplab_fast.evaluation.predicting import collect_images as collect_images
    from deeplab_fast.evaluation.predicting import predict as predict
    from deeplab_fast.evaluation.predictor import Prediction as Prediction
    from deeplab_fast.evaluation.predictor import Predictor as Predictor
else:
    __getattr__, __dir__ = _lazy.attributes(__name__, _LAZY, _MODULES)
