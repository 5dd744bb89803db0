"""Prediction with a segmentation network, its scores, their report, and the search for CRF parameters.

The modules' main functions: `evaluate.evaluate`, `predict.predict`, `crf_search.search`, `report.write_report`.
"""

from __future__ import annotations

from deeplab_fast.evaluation import crf_search, evaluate, predict, report
from deeplab_fast.evaluation.crf_search import SearchResult
from deeplab_fast.evaluation.evaluate import EvaluationResult
from deeplab_fast.evaluation.metrics import ConfusionMatrix, Scores
from deeplab_fast.evaluation.predict import PredictionResult, collect_images
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
