"""Reports of scores: table, JSON and picture."""

from __future__ import annotations

import io
import json
import os

import numpy as np
import pytest
from fake_segmentation import CLASSES
from PIL import Image
from rich.console import Console

from deeplab_fast.evaluation import ConfusionMatrix, report


def filled(K: int, seed: int = 0) -> ConfusionMatrix:
    """A matrix in which class K - 1 is absent, though predicted."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, max(K - 1, 1), 40 * K)
    matrix = ConfusionMatrix(K)
    matrix.update(truth, np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, K, truth.shape)))
    return matrix


def test_table_shows_per_cent_and_dashes():
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report.table(matrix.scores(), ("sky", "sea", "cow")))
    lines = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert ["sky", "66.67", "66.67"] in lines
    assert ["sea", "50.00", "100.00"] in lines
    assert ["cow", "–", "–"] in lines
    assert ["mean", "IoU", "58.33"] in lines
    assert ["pixel", "accuracy", "75.00"] in lines
    console.print(report.table(matrix.scores(), ("sky", "sea", "cow"), after=filled(3).scores()))
    assert "IoU with CRF" in console.export_text()


def test_dict_is_json_without_nan():
    matrix = filled(4)
    scores = matrix.scores()
    told = json.loads(json.dumps(report.as_dict(scores, CLASSES, matrix), allow_nan=False))
    assert told["mean_iou"] == scores.mean_iou
    assert told["classes"][1] == {"name": "green", "iou": scores.iou[1], "accuracy": scores.accuracy[1]}
    assert told["classes"][3] == {"name": "never", "iou": None, "accuracy": None}
    assert told["confusion"] == matrix.counts.tolist()
    assert report.as_dict(ConfusionMatrix(4).scores(), CLASSES)["mean_iou"] is None


@pytest.mark.parametrize("K", [5, 182])
def test_report_has_every_class(tmp_path, K: int):
    pytest.importorskip("matplotlib")
    matrix = filled(K)
    names = [f"class number {k}" for k in range(K)]
    paths = report.write_report(tmp_path / "r", "val", matrix.scores(), matrix, names, title="val", extra={"images": 3})
    assert paths == [tmp_path / "r" / "val.json", tmp_path / "r" / "val.png"]
    told = json.loads(paths[0].read_text())
    assert told["images"] == 3
    assert len(told["classes"]) == K
    assert Image.open(paths[1]).height > 400


@pytest.mark.parametrize("K", [1, 5, 182])
def test_picture_shows_every_class(K: int):
    pytest.importorskip("matplotlib")
    matrix = filled(K)
    names = [f"class number {k}" for k in range(K)]
    figure = report.picture(matrix.scores(), matrix, names)
    bars, cells = figure.axes[:2]
    shown = [label.get_text() for label in bars.get_yticklabels()]
    assert sorted(shown) == sorted(names)
    iou = np.array([bar.get_width() for bar in bars.patches])
    np.testing.assert_allclose(iou, -np.sort(-np.nan_to_num(100 * matrix.scores().iou)))
    share = cells.images[0].get_array()
    sums = share.sum(axis=1)
    np.testing.assert_allclose(np.asarray(sums[: max(K - 1, 1)]), 100)


def test_report_is_whole_or_not_at_all(tmp_path):
    pytest.importorskip("matplotlib")
    matrix = filled(4)
    with pytest.raises(ValueError, match="classes: number of names is 3, should be 4, as in the scores"):
        report.write_report(tmp_path, "val", matrix.scores(), matrix, CLASSES[:3])
    with pytest.raises(ValueError, match="JSON"):
        report.write_report(tmp_path, "val", matrix.scores(), matrix, CLASSES, extra={"loss": float("nan")})
    (tmp_path / "val.png").mkdir()  # the second file cannot be written
    with pytest.raises(IsADirectoryError):
        report.write_report(tmp_path, "val", matrix.scores(), matrix, CLASSES)
    assert os.listdir(tmp_path) == ["val.png"]
