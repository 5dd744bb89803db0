"""The confusion matrix and its scores: by hand, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deeplab_fast.evaluation import ConfusionMatrix


def counted(truth, predicted, num_classes: int = 3, **options) -> ConfusionMatrix:
    matrix = ConfusionMatrix(num_classes, **options)
    matrix.update(np.array(truth), np.array(predicted))
    return matrix


def test_a_case_by_hand():
    matrix = counted([[0, 0, 0, 1], [1, 2, 255, 255]], [[0, 0, 1, 1], [1, 0, 2, 0]])
    assert matrix.counts.tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert matrix.counts.dtype == torch.int64
    scores = matrix.scores()
    assert scores.pixel_accuracy == 4 / 6
    np.testing.assert_allclose(scores.accuracy, [2 / 3, 1, 0])
    np.testing.assert_allclose(scores.iou, [2 / 4, 2 / 3, 0])
    assert scores.mean_accuracy == pytest.approx(5 / 9)
    assert scores.mean_iou == pytest.approx(7 / 18)
    assert scores.frequency_weighted_iou == pytest.approx(3 / 6 * 2 / 4 + 2 / 6 * 2 / 3)


def test_classes_that_the_truth_lacks_are_left_out_of_the_means_but_cost_those_they_were_taken_for():
    scores = counted([0, 0, 0, 0], [0, 0, 0, 2]).scores()
    np.testing.assert_array_equal(np.isnan(scores.iou), [False, True, True])
    np.testing.assert_array_equal(np.isnan(scores.accuracy), [False, True, True])
    assert scores.mean_iou == scores.iou[0] == scores.mean_accuracy == scores.frequency_weighted_iou == 0.75


def test_background_is_left_out_of_the_means_but_costs_what_it_was_taken_for():
    truth, predicted = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 2]
    whole, scores = counted(truth, predicted).scores(), counted(truth, predicted, count_background=False).scores()
    assert scores.mean_iou == pytest.approx((1 / 3 + 1) / 2)
    assert scores.mean_accuracy == pytest.approx((1 / 2 + 1) / 2)
    assert scores.pixel_accuracy == whole.pixel_accuracy
    assert scores.frequency_weighted_iou == whole.frequency_weighted_iou
    np.testing.assert_array_equal(scores.iou, whole.iou)
    assert np.isnan(counted([0, 0], [0, 1], count_background=False).scores().mean_iou)


def test_perfect():
    labels = np.arange(3).repeat(5)
    scores = counted(labels, labels).scores()
    assert (scores.pixel_accuracy, scores.mean_accuracy, scores.mean_iou) == (1, 1, 1)
    assert scores.frequency_weighted_iou == pytest.approx(1)


@pytest.mark.parametrize(
    "matrix", [ConfusionMatrix(3), counted([255], [1]), counted(np.zeros((0, 4), int), np.zeros((0, 4), int))]
)
def test_nothing_counted_gives_nan(matrix):
    scores = matrix.scores()
    assert np.isnan([scores.pixel_accuracy, scores.mean_accuracy, scores.mean_iou, scores.frequency_weighted_iou]).all()
    assert np.isnan(scores.iou).all()
    assert scores.iou.shape == scores.accuracy.shape == (3,)


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_scikit_learn(seed: int):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    K = int(rng.integers(2, 30))
    classes = rng.permutation(K)[: max(K * 2 // 3, 1)]  # some never occur in the truth
    truth = rng.choice([*classes, 255], (3, 40, 50))
    predicted = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, K, truth.shape))
    predicted[predicted == 255] = 0
    matrix = ConfusionMatrix(K)
    for one_truth, one_predicted in zip(truth, predicted, strict=True):
        matrix.update(one_truth, one_predicted)
    valid = truth != 255
    expected = metrics.confusion_matrix(truth[valid], predicted[valid], labels=range(K))
    np.testing.assert_array_equal(matrix.counts.numpy(), expected)
    scores = matrix.scores()
    present = sorted(set(truth[valid]))
    jaccard = metrics.jaccard_score(truth[valid], predicted[valid], labels=present, average=None)
    recall = metrics.recall_score(truth[valid], predicted[valid], labels=present, average=None)
    np.testing.assert_allclose(scores.iou[present], jaccard, rtol=1e-12)
    np.testing.assert_allclose(scores.accuracy[present], recall, rtol=1e-12)
    weighted = metrics.jaccard_score(truth[valid], predicted[valid], labels=present, average="weighted")
    assert scores.frequency_weighted_iou == pytest.approx(weighted, rel=1e-12)
    assert scores.mean_iou == pytest.approx(jaccard.mean(), rel=1e-12)
    assert scores.pixel_accuracy == pytest.approx(metrics.accuracy_score(truth[valid], predicted[valid]), rel=1e-12)


def test_kinds_of_input_count_the_same():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 5, (6, 7)), rng.integers(0, 5, (6, 7))
    expected = counted(truth, predicted, 5).counts
    for kind in (np.uint8, np.int32, np.uint16):
        assert torch.equal(counted(truth.astype(kind)[::-1], predicted.astype(kind)[::-1], 5).counts, expected)
    matrix = ConfusionMatrix(5)
    matrix.update(torch.from_numpy(truth).to(torch.uint8), predicted)
    assert torch.equal(matrix.counts, expected)


def test_256_classes_without_a_label_to_ignore():
    labels = np.arange(256, dtype=np.uint8)
    matrix = ConfusionMatrix(256, ignore_index=-1)
    matrix.update(labels, labels)
    assert torch.equal(matrix.counts, torch.eye(256, dtype=torch.int64))


def test_merge_is_the_sum():
    one, other = counted([0, 1], [0, 2]), counted([2, 1], [2, 2])
    one.merge(other)
    assert torch.equal(one.counts, counted([0, 1, 2, 1], [0, 2, 2, 2]).counts)
    with pytest.raises(ValueError, match="other: num_classes is 4, should be 3"):
        one.merge(ConfusionMatrix(4))
    with pytest.raises(ValueError, match="other: ignore_index is 0, should be 255"):
        one.merge(ConfusionMatrix(3, ignore_index=0))


def test_all_reduce_of_a_lone_process_changes_nothing():
    matrix = counted([0, 1], [0, 2])
    before = matrix.counts.clone()
    matrix.all_reduce()
    assert torch.equal(matrix.counts, before)


@pytest.mark.parametrize(
    ("truth", "predicted", "error", "message"),
    [
        (
            [[0, 3]],
            [[0, 1]],
            ValueError,
            r"truth: values are 3, should be in 0\.\.2, or 255 where it does not count",
        ),
        ([[0, -1]], [[0, 1]], ValueError, "truth: values are -1"),
        ([[0, 1]], [[0, 255]], ValueError, r"predicted: values are 255, should be in 0\.\.2"),
        ([[255, 1]], [[9, 1]], ValueError, "predicted: values are 9"),
        ([[0, 1]], [0, 1], ValueError, r"predicted: shape is \(2,\), should be \(1, 2\), that of truth"),
        ([[0.0, 1.0]], [[0, 1]], TypeError, "truth: dtype is float64, should be whole numbers"),
        ([[0, 1]], [[True, False]], TypeError, "predicted: dtype is bool, should be whole numbers"),
    ],
)
def test_refuses_and_counts_nothing(truth, predicted, error, message):
    matrix = ConfusionMatrix(3)
    with pytest.raises(error, match=message):
        matrix.update(np.array(truth), np.array(predicted))
    with pytest.raises(error):
        matrix.update(torch.tensor(truth), torch.tensor(predicted))
    assert matrix.counts.sum() == 0


def test_refuses_lists_and_class_counts():
    with pytest.raises(TypeError, match="truth: is a list"):
        ConfusionMatrix(3).update([0], [0])
    with pytest.raises(ValueError, match="num_classes: is 0, should be at least 1"):
        ConfusionMatrix(0)
    with pytest.raises(TypeError, match=r"num_classes: is 2\.0, should be a whole number"):
        ConfusionMatrix(2.0)
