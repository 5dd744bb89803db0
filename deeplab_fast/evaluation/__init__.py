"""Prediction with a segmentation network, its scores, their report, and the search for CRF parameters.

Beside what is named here: `crf_search.search`, `report.write_report`.
"""

from __future__ import annotations

from deeplab_fast.evaluation import crf_search, report
from deeplab_fast.evaluation.crf_search import SearchResult
from deeplab_fast.evaluation.evaluating import EvaluationResult, evaluate
from deeplab_fast.evaluation.metrics import ConfusionMatrix, Scores
from deeplab_fast.evaluation.predicting import PredictionResult, collect_images, predict
from deeplab_fast.evaluation.predictor import Prediction, Predictor

__all__ = [
    "ConfusionMatrix",
    "EvaluationResult",
    "Prediction",
    "PredictionResult",
    "Predictor",
    "Scores",
    "SearchResult",
    "collect_images",
    "crf_search",
    "evaluate",
    "predict",
    "report",
]
