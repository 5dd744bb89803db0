"""The search for CRF parameters on saved logits."""

from __future__ import annotations

import csv
import io
import os

import numpy as np
import pytest
import torch
from fake_segmentation import Colours, FakeDataset
from rich.console import Console

from deeplab_fast.crf import PRESETS, CRFParameters, parameters
from deeplab_fast.evaluation import Predictor, evaluate
from deeplab_fast.evaluation.crf_search import combinations, differences, search, table, write_table
from deeplab_fast.nn import DenseCRF
from deeplab_fast.scores import probabilities_from_scores

GRID = {"bi_w": [0, 4], "bi_rgb_std": [20.0, 60.0], "bi_xy_std": [2], "iterations": [0, 3.0]}


@pytest.fixture(scope="module")
def logits(tmp_path_factory):
    """A folder with the logits of the fake set, in float32."""
    folder = tmp_path_factory.mktemp("logits")
    evaluate(Predictor(Colours(), 4), FakeDataset(5), save_logits=folder, logits_dtype=np.float32)
    return folder


def test_agrees_with_evaluation_and_comes_best_first(logits):
    dataset, seen = FakeDataset(5), []
    results = search(logits, dataset, GRID, progress=lambda *at: seen.append(at))
    assert len(results) == 1 + 8
    assert seen == [(n, 5 * 8) for n in range(1, 41)]
    plain = evaluate(Predictor(Colours(), 4), dataset).matrix.scores()
    assert results[0].params is None
    assert (results[0].mean_iou, results[0].pixel_accuracy) == (plain.mean_iou, plain.pixel_accuracy)
    assert results[0].seconds == 0
    order = [result.mean_iou for result in results[1:]]
    assert order == sorted(order, reverse=True)
    assert order[0] > results[0].mean_iou > 0
    assert {result.params for result in results[1:]} == set(combinations(GRID))
    for result in (results[1], results[-1]):
        crf = DenseCRF(**vars(result.params))
        expected = evaluate(Predictor(Colours(), 4, crf=crf), dataset).matrix_crf.scores()
        assert result.mean_iou == expected.mean_iou
        assert result.mean_accuracy == expected.mean_accuracy
        assert result.frequency_weighted_iou == expected.frequency_weighted_iou
        assert result.seconds > 0


def test_float16_logits_give_nearly_the_same(logits, tmp_path):
    evaluate(Predictor(Colours(), 4), FakeDataset(5), save_logits=tmp_path)
    (half, _), (single, _) = (search(folder, FakeDataset(5), {"iterations": [1]}) for folder in (tmp_path, logits))
    assert half.mean_iou == pytest.approx(single.mean_iou, abs=0.01)


def test_float16_holds_large_logits(logits, tmp_path):
    class Large(Colours):
        def forward(self, x):
            return super().forward(x) + 3e5  # beyond float16; common to all classes, so it means nothing

    evaluate(Predictor(Large(), 4), FakeDataset(5), save_logits=tmp_path)
    found, expected = (search(folder, FakeDataset(5), {"iterations": [1]}) for folder in (tmp_path, logits))
    assert found[0].mean_iou == pytest.approx(expected[0].mean_iou, abs=0.02)


def test_combinations():
    assert combinations({}) == [CRFParameters()]
    made = combinations({"pos_w": [1, 2, 2], "iterations": [5.0, 1]})
    assert made == [CRFParameters(pos_w=w, iterations=n) for w in (1, 2) for n in (5, 1)]
    huge = {name: list(range(1, 1001)) for name in ("pos_w", "pos_xy_std", "bi_w", "bi_xy_std", "bi_rgb_std")}
    drawn = combinations(huge, random=50, seed=3)
    assert len(set(drawn)) == 50
    assert drawn == combinations(huge, random=50, seed=3) != combinations(huge, random=50, seed=4)
    assert len(combinations({"bi_w": [1, 2, 3]}, random=10)) == 3


def test_combinations_around_presets():
    assert combinations({}, presets=["irn", "manga"]) == [PRESETS["irn"], PRESETS["manga"]]
    assert len(combinations({}, presets=list(PRESETS))) == len(PRESETS) - 1  # stego's numbers are deeplab's
    mine = CRFParameters(pos_w=9, normalization="after")
    made = combinations({"bi_w": [1, 2], "iterations": [3]}, presets=["irn", mine])
    assert made == [parameters(base, bi_w=w, iterations=3) for base in ("irn", mine) for w in (1, 2)]
    assert len(combinations({"bi_w": [1, 2, 3]}, random=4, presets=list(PRESETS))) == 4
    with pytest.raises(ValueError, match=r"presets: is \[\], should be a list of at least one preset"):
        combinations({}, presets=[])
    with pytest.raises(ValueError, match="preset: is 'best', should be deeplab"):
        combinations({}, presets=["best"])


def test_the_fewest_words_for_parameters():
    assert differences(PRESETS["toco"]) == ("toco", {})
    assert differences(parameters("irn", bi_w=7, iterations=3)) == ("irn", {"bi_w": 7, "iterations": 3})
    assert differences(parameters("manga", bi_w=7)) == ("manga", {"bi_w": 7})
    preset, changes = differences(CRFParameters(1, 2, 3, 4, 5, 6, "none"))
    assert preset == "manga"  # which has no normalization either
    assert parameters(preset, **changes) == CRFParameters(1, 2, 3, 4, 5, 6, "none")


def test_presets_are_named(logits, tmp_path):
    results = search(logits, FakeDataset(2), {"iterations": [10.0]}, presets=["irn", "psa", parameters("afa", bi_w=1)])
    write_table(tmp_path / "crf.csv", results)
    with open(tmp_path / "crf.csv", newline="") as file:
        assert sorted(row["preset"] for row in csv.DictReader(file)) == ["", "", "irn", "psa"]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table(results))
    text = console.export_text()
    assert "irn" in text
    assert "…" not in text


@pytest.mark.parametrize(
    ("grid", "error", "message"),
    [
        ({"sigma": [1]}, ValueError, "grid: name is sigma, should be one of pos_w, pos_xy_std, bi_w"),
        ({"bi_w": []}, ValueError, r"grid: bi_w is \[\], should be a list of at least one number"),
        ({"bi_w": 3}, ValueError, "grid: bi_w is 3, should be a list"),
        ({"bi_w": ["3"]}, TypeError, "grid: one of bi_w is '3', should be a number"),
        ({"bi_xy_std": [0]}, ValueError, "bi_xy_std: is 0, should be a positive number"),
        ({"iterations": [2.5]}, TypeError, r"iterations: is 2\.5, should be a whole number"),
    ],
)
def test_refuses_grids(logits, grid, error, message):
    with pytest.raises(error, match=message):
        search(logits, FakeDataset(5), grid)
    with pytest.raises(ValueError, match="random: is 0, should be at least 1"):
        combinations({}, random=0)


def test_limit_spreads_over_the_set(logits):
    class Counting(FakeDataset):
        def __getitem__(self, index):
            self.asked.append(index)
            return super().__getitem__(index)

    dataset = Counting(5)
    dataset.asked = []
    search(logits, dataset, {"iterations": [0]}, limit=2)
    assert dataset.asked == [0, 2]
    with pytest.raises(ValueError, match="limit: is 0, should be at least 1"):
        search(logits, dataset, {}, limit=0)


def test_missing_and_unfit_logits(logits, tmp_path):
    with pytest.raises(FileNotFoundError, match="logits_dir: folder not found"):
        search(tmp_path / "missing", FakeDataset(5), {})
    with pytest.raises(FileNotFoundError, match=r"has no file for any image of the set, should hold \{name\}\.npy"):
        search(tmp_path, FakeDataset(5), {})
    with pytest.raises(FileNotFoundError, match=r"2 of 7 images have no scores in .*, the first picture5; --skip-mi"):
        search(logits, FakeDataset(7), {"iterations": [0]})
    with pytest.warns(UserWarning, match=r"2 of 7 images have no scores in .*, they were left out"):
        assert len(search(logits, FakeDataset(7), {"iterations": [0]}, skip_missing=True)) == 2
    with pytest.raises(ValueError, match="dataset: label of picture3 is None, should be there for a search"):
        search(logits, FakeDataset(5, unlabelled=(3,)), {"iterations": [0]})
    np.save(tmp_path / "picture0.npy", np.random.default_rng(0).normal(size=(5, 3, 5)))
    with pytest.raises(ValueError, match=r"picture0\.npy: scores: number of classes is 5, should be 4"):
        search(tmp_path, FakeDataset(1), {})
    (tmp_path / "picture0.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"picture0\.npy is no readable numpy file"):
        search(tmp_path, FakeDataset(1), {})


def test_probabilities_are_read_as_probabilities(tmp_path):
    """The same scores, handed in as probabilities, give the same."""
    saved, prob = tmp_path / "logits", tmp_path / "prob"
    evaluate(Predictor(Colours(stride=1), 4), FakeDataset(5), save_logits=saved, logits_dtype=np.float32)
    prob.mkdir()
    for path in saved.iterdir():
        np.save(prob / path.name, probabilities_from_scores(np.load(path), "logits"))
    expected, found = (search(folder, FakeDataset(5), {"iterations": [2]}) for folder in (saved, prob))
    for one, other in zip(expected, found, strict=True):
        assert other.mean_iou == pytest.approx(one.mean_iou, abs=1e-4)
    as_logits = search(prob, FakeDataset(5), {"iterations": [2]}, kind="logits")
    assert abs(as_logits[1].mean_iou - expected[1].mean_iou) > 0.02  # what taking them for logits would give


def test_scores_that_are_not_finite_or_not_clear(logits, tmp_path):
    values = np.load(logits / "picture0.npy")
    for changed, message in (
        (np.where(values == values.max(), np.nan, values), "scores: values are NaN or Inf in 1 of"),
        (1 / (1 + np.exp(-values)), "say --kind sigmoid"),
        (values.transpose(1, 2, 0), "which --layout hwk says"),
    ):
        np.save(tmp_path / "picture0.npy", changed)
        with pytest.raises(ValueError, match=rf"picture0\.npy: .*{message}"):
            search(tmp_path, FakeDataset(1), {"iterations": [1]})
    assert search(tmp_path, FakeDataset(1), {"iterations": [1]}, layout="hwk")[0].mean_iou > 0
    (tmp_path / "picture0.npy").unlink()
    np.savez(tmp_path / "picture0.npz", scores=values, features=values[:1])
    with pytest.raises(ValueError, match="key: is None, should be one of scores, features"):
        search(tmp_path, FakeDataset(1), {"iterations": [1]})
    assert search(tmp_path, FakeDataset(1), {"iterations": [1]}, key="scores")[0].mean_iou > 0


def test_table_and_csv(logits, tmp_path):
    results = search(logits, FakeDataset(5), {"iterations": [0, 2], "bi_xy_std": [8]})
    write_table(tmp_path / "crf.csv", results)
    assert os.listdir(tmp_path) == ["crf.csv"]
    with open(tmp_path / "crf.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["mean_iou"]) for row in rows] == [result.mean_iou for result in results]
    assert rows[0]["bi_w"] == ""
    assert {row["iterations"] for row in rows[1:]} == {"0", "2"}
    assert all(float(row["bi_xy_std"]) == 8 for row in rows[1:])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(results))
    text = console.export_text()
    assert "no CRF" in text
    assert f"{100 * results[1].mean_iou:.2f}" in text
    assert f"{100 * (results[1].mean_iou - results[0].mean_iou):+.2f}" in text
    assert "…" not in text


def test_runs_without_gradients(logits):
    with torch.enable_grad():
        assert len(search(logits, FakeDataset(2), {"iterations": [1]})) == 2
