"""What may be added to the cross entropy: weights of classes, smoothing, hard pixels alone, Dice."""

from __future__ import annotations

import math

import pytest
import torch
from small_trainings import first_weights, logged, small_config, write_set
from torch.nn.functional import cross_entropy

from deeplab_fast import training
from deeplab_fast.config import LossConfig, parse_config

K = 4
NAMES = ("sky", "road", "car", "tree")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("losses"))


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (2, K, 6, 5) and labels of the same size; class 3 is in none, some are ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, K, 6, 5, generator=generator)
    labels = torch.randint(0, 3, (2, 6, 5), generator=generator)
    labels[0, 0], labels[1, 3:] = 255, 255
    return logits.requires_grad_(), labels


def loss_of(**entries) -> training.SegmentationLoss:
    return training.SegmentationLoss.of(LossConfig(**entries), NAMES)


def test_off_it_is_the_cross_entropy():
    logits, labels = batch()
    expected = cross_entropy(logits, labels, ignore_index=255, reduction="sum") / (labels != 255).sum()
    assert loss_of()(logits, labels).item() == expected.item()


@pytest.mark.parametrize("weights", [[0.2, 3.0, 0.5, 1.0], {"sky": 0.2, "road": 3.0, "car": 0.5}])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_weights_and_smoothing_are_those_of_torch(weights, smoothing):
    logits, labels = batch()
    loss = loss_of(class_weights=weights, label_smoothing=smoothing)([logits, logits], labels)
    torch_loss = torch.nn.CrossEntropyLoss(torch.tensor([0.2, 3.0, 0.5, 1.0]), None, 255, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(2 * torch_loss(logits, labels).item(), rel=1e-6)


def test_pixels_of_weight_0_do_not_count():
    logits, labels = batch()
    only = labels.where(labels == 1, 255)
    expected = cross_entropy(logits, only, ignore_index=255)
    assert loss_of(class_weights=[0, 1, 0, 0])(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss_of(class_weights=[0, 0, 0, 1])(logits, labels).item() == 0  # class 3 is in no label


@pytest.mark.parametrize(("threshold", "min_kept"), [(0.5, 0.01), (0.05, 0.4), (1.0, 0.01), (0.5, 1.0)])
def test_ohem_takes_the_hardest_pixels(threshold, min_kept):
    logits, labels = batch()
    loss = loss_of(ohem={"threshold": threshold, "min_kept": min_kept})(logits, labels)
    loss.backward()
    entropy = cross_entropy(logits.detach(), labels, ignore_index=255, reduction="none")[labels != 255]
    hardest = entropy.sort(descending=True).values.tolist()
    count = max(sum(one >= -math.log(threshold) for one in hardest), math.ceil(min_kept * len(hardest)))
    assert loss.item() == pytest.approx(sum(hardest[:count]) / count, rel=1e-6)
    assert int((logits.grad != 0).any(dim=1).sum()) == count


def test_dice_by_hand():
    logits, labels = batch()
    plain, loss = loss_of()(logits, labels), loss_of(dice=0.5)([logits, logits], labels)
    probabilities = logits.softmax(1)
    coefficients = []
    for k in range(3):  # class 3 is in no label
        p, y = probabilities[:, k][labels != 255], (labels == k)[labels != 255].float()
        coefficients.append(2 * (p * y).sum() / (p.sum() + y.sum()))
    dice = 1 - sum(coefficients) / 3
    assert loss.item() == pytest.approx((2 * plain + 2 * 0.5 * dice).item(), rel=1e-6)
    assert training.dice_loss(logits, labels).item() == pytest.approx(dice.item(), rel=1e-6)
    right = 200 * torch.nn.functional.one_hot(labels.clamp(max=K - 1), K).movedim(-1, 1).float()
    assert training.dice_loss(right, labels).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("entries", [{"dice": 1}, {"ohem": {}}, {"class_weights": [1, 2, 3, 4]}])
def test_nothing_labelled_is_no_loss(entries):
    logits = torch.randn(2, K, 5, 5, requires_grad=True)
    loss = loss_of(**entries)(logits, torch.full((2, 9, 9), 255))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def in_shares(monkeypatch, loss, logits, labels):
    """Values and gradients of two processes with an image each, which are run one after the other.

    In the first of two passes the processes' sums are noted, in the second they are what all_reduce gives.
    """
    distributed = torch.distributed
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    sums: list[list[torch.Tensor]] = [[], []]
    for noting in (True, False):
        results = []
        for rank in range(2):
            turn = iter(range(10))

            def all_reduce(tensor, rank=rank, turn=turn, noting=noting):
                call = next(turn)
                if noting:
                    sums[rank].append(tensor.clone())
                else:
                    tensor.copy_(sums[0][call] + sums[1][call])

            monkeypatch.setattr(distributed, "all_reduce", all_reduce)
            share = logits[rank : rank + 1].detach().requires_grad_()
            value = loss(share, labels[rank : rank + 1])
            value.backward()
            results.append((value.item(), share.grad))
    return results


@pytest.mark.parametrize("entries", [{}, {"class_weights": [1, 2, 3, 4]}, {"dice": 2.0}])
def test_two_processes_average_to_one(monkeypatch, entries):
    logits, labels = batch()
    loss = loss_of(**entries)
    whole = loss(logits, labels)
    whole.backward()
    results = in_shares(monkeypatch, loss, logits, labels)
    assert sum(value for value, _ in results) / 2 == pytest.approx(whole.item(), rel=1e-6)
    # DistributedDataParallel divides by the number of processes.
    torch.testing.assert_close(torch.cat([gradient for _, gradient in results]) / 2, logits.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "entries",
    [{"class_weights": {"background": 0.1}}, {"label_smoothing": 0.1}, {"ohem": {"threshold": 0.1}}, {"dice": 1.0}],
    ids=lambda entries: next(iter(entries)),
)
def test_a_training_has_it(root, tmp_path, entries):
    weights = first_weights(tmp_path)
    losses = []
    for name, loss in (("without", {}), ("with", entries)):
        training.train(small_config(root, tmp_path / name, weights=weights, iterations=2, loss=loss), quiet=True)
        losses.append([float(line[1]) for line in logged(tmp_path / name)])
    assert losses[1][0] != pytest.approx(losses[0][0], rel=1e-3)
    assert all(map(math.isfinite, losses[1]))


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"label_smoothing": 1}, "training.loss.label_smoothing: is 1: input should be less than 1"),
        ({"dice": -1}, "training.loss.dice: is -1"),
        ({"ohem": {"threshold": 0}}, "training.loss.ohem.threshold: is 0"),
        ({"ohem": {"min_kept": 2}}, "training.loss.ohem.min_kept: is 2"),
        ({"class_weights": [1, -1]}, "training.loss.class_weights.1: is -1: input should be"),
        ({"class_weights": {"sky": -1}}, "training.loss.class_weights.sky: is -1: input should"),
        ({"class_weights": 3}, "training.loss.class_weights: is 3"),
        ({"weights": [1]}, "training.loss.weights: is unknown"),
    ],
)
def test_wrong_entries(entries, said):
    config = {"data": {"kind": "voc12", "root": "x"}, "training": {"loss": entries}}
    with pytest.raises(ValueError, match="test: ") as caught:
        parse_config(config, "test")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1, 2], "training.loss.class_weights: number is 2, should be 5, one a class"),
        ({"cat": 2, "disc": 1}, "training.loss.class_weights: class is cat, should be one of background, disc"),
        ([0, 0, 0, 0, 0], r"training.loss.class_weights: is \[0.0, 0.0, 0.0, 0.0, 0.0\], should be positive for at l"),
    ],
)
def test_weights_of_other_classes(root, tmp_path, weights, said):
    config = small_config(root, tmp_path / "out", loss={"class_weights": weights})
    with pytest.raises(ValueError, match=said):
        training.train(config, quiet=True)
    assert not (tmp_path / "out").exists()
