"""The recipe of DeepLab-v2 against numbers worked out here, not by the package."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from small_trainings import first_weights, logged, small_config, write_set
from torch.nn.functional import cross_entropy, interpolate

from deeplab_fast import data, models, training
from deeplab_fast.config import CRFLossConfig
from deeplab_fast.nn import DenseCRFLoss
from deeplab_fast.training.display import Display
from deeplab_fast.training.processes import Processes, synchronise_batch_norm

CLASSES = 5


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("recipe"))


def resized(labels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Label maps resized by Pillow itself, one by one."""
    pictures = [Image.fromarray(one.numpy().astype(np.uint8)) for one in labels]
    return torch.stack([torch.from_numpy(np.array(one.resize((width, height), 0))).long() for one in pictures])


def some_labels(count: int, height: int, width: int) -> torch.Tensor:
    rng = np.random.default_rng(3)
    return torch.from_numpy(rng.choice([0, 1, 2, 3, 4, 255], (count, height, width)))


# --- Optimizer -----------------------------------------------------------------------------------------------------


def test_resnet101_has_three_groups():
    with torch.device("meta"):
        model = models.create("deeplabv2_resnet101", 21)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = training.parameter_groups(model, 2.5e-4, 5e-4)
    assert [group["lr"] for group in groups] == pytest.approx([2.5e-4, 2.5e-3, 5e-3])
    assert [group["weight_decay"] for group in groups] == [5e-4, 5e-4, 0]
    trunk, weights, biases = ([names[id(parameter)] for parameter in group["params"]] for group in groups)
    assert weights == [f"base.aspp.c{i}.weight" for i in range(4)]
    assert biases == [f"base.aspp.c{i}.bias" for i in range(4)]
    # One convolution in the stem, three in each of 33 blocks, one in each of 4 shortcuts.
    assert len(trunk) == 1 + 3 * 33 + 4
    assert all(name.endswith(".conv.weight") for name in trunk)
    assert set(names.values()) - {*trunk, *weights, *biases} == {n for n in names.values() if ".bn." in n}


def test_live_batch_norm_and_biases_do_not_decay():
    groups = {
        group["name"]: group for group in training.parameter_groups(models.create("deeplabv2_small", CLASSES), 1.0, 0.5)
    }
    assert groups["batch norm"]["weight_decay"] == 0
    assert groups["classifier biases"]["weight_decay"] == 0
    assert groups["classifier biases"]["lr"] == 20
    vgg = {g["name"]: g for g in training.parameter_groups(models.create("deeplabv1_vgg16", CLASSES), 1.0, 0.5)}
    assert (vgg["trunk biases"]["lr"], vgg["trunk biases"]["weight_decay"]) == (2, 0)


def test_learning_rate_falls_every_ten_steps():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(parameters, (2.5e-4, 2.5e-3, 5e-3), strict=True)]
    optimizer = torch.optim.SGD(groups)
    scheduler = training.poly_scheduler(optimizer, 45)
    expected = [1.0] * 10 + [(35 / 45) ** 0.9] * 10 + [(25 / 45) ** 0.9] * 10 + [(15 / 45) ** 0.9] * 10
    expected += [(5 / 45) ** 0.9] * 5
    for factor in expected:
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([2.5e-4 * factor, 2.5e-3 * factor, 5e-3 * factor], rel=1e-12)
        optimizer.step()
        scheduler.step()
    assert training.poly_factor(50, 50) == 0
    assert training.poly_factor(70, 50) == 0


def test_log_has_the_rate_of_each_step(root, tmp_path):
    config = small_config(root, tmp_path, iterations=5, lr=0.01, lr_every=2)
    training.train(config, quiet=True)
    factors = [1, 1, (3 / 5) ** 0.9, (3 / 5) ** 0.9, (1 / 5) ** 0.9]
    assert [float(line[2]) for line in logged(tmp_path)] == pytest.approx([0.01 * f for f in factors], rel=1e-8)


# --- Loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(41, 41), (21, 31), (65, 33), (5, 97)])
def test_labels_are_resized_as_pillow_does(size):
    labels = some_labels(2, 121, 97)
    assert torch.equal(data.resize_labels(labels, size), resized(labels, *size))


def test_loss_of_four_scores():
    generator = torch.Generator().manual_seed(0)
    sizes = [(17, 13), (9, 7), (13, 10), (17, 13)]
    logits = [torch.randn(2, CLASSES, *size, generator=generator) for size in sizes]
    labels = some_labels(2, 129, 97)
    labels[0, :64] = 255  # images have different numbers of pixels that count
    loss = training.SegmentationLoss()
    expected = sum(
        cross_entropy(scores, resized(labels, *size), ignore_index=255)
        for scores, size in zip(logits, sizes, strict=True)
    )
    assert loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)
    one = cross_entropy(logits[1], resized(labels, 9, 7), ignore_index=255)
    assert loss(logits[1], labels).item() == pytest.approx(one.item(), rel=1e-6)


def test_nothing_labelled_is_no_loss():
    logits = torch.randn(2, CLASSES, 9, 9, requires_grad=True)
    loss = training.SegmentationLoss()([logits, logits], torch.full((2, 65, 65), 255))
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("label", [-1, CLASSES, 254])
def test_label_outside_the_classes(label):
    labels = torch.zeros(1, 9, 9, dtype=torch.long)
    labels[0, 4, 4] = label
    with pytest.raises(ValueError, match=rf"labels: one is {label}, should be 0 to 4, or 255"):
        training.SegmentationLoss()(torch.zeros(1, CLASSES, 9, 9), labels)


def test_crf_loss_sees_the_photo_and_the_last_scores():
    photo = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    x = torch.zeros(1, 3, 32, 32)  # padded at the right and the bottom
    x[0, :, :20, :24] = data.to_network(photo)
    logits = [torch.randn(1, CLASSES, 4, 4), torch.randn(1, CLASSES, 5, 5)]
    values = {"weight": 1e-3, "sigma_rgb": 15, "sigma_xy": 20, "scale_factor": 1.0}
    found = training.CRFRegularisation(CRFLossConfig(**values))(x, logits)

    images = torch.tensor(data.MEAN_BGR[::-1])[:, None, None].expand(1, 3, 32, 32).clone()
    images[0, :, :20, :24] = torch.from_numpy(photo).permute(2, 0, 1).float()
    region = torch.zeros(1, 32, 32)
    region[0, :20, :24] = 1
    probabilities = interpolate(logits[1], (32, 32), mode="bilinear", align_corners=False).softmax(dim=1)
    assert found.item() == pytest.approx(DenseCRFLoss(**values)(images, probabilities, region).item(), rel=1e-5)


# --- Steps ---------------------------------------------------------------------------------------------------------


def batch_loss(model: torch.nn.Module, crops: list[data.Crop]) -> torch.Tensor:
    x, labels = torch.stack([crop.image for crop in crops]), torch.stack([crop.label for crop in crops])
    scores = model(x.contiguous(memory_format=torch.channels_last))
    assert len(scores) == 4
    return sum(cross_entropy(one, resized(labels, *one.shape[2:]), ignore_index=255) for one in scores)


def test_two_steps_of_two_batches_by_hand(root, tmp_path):
    # A batch norm that is live, or frozen but does not fit, makes much of the last digits: gradients would differ.
    options = {"msc": True, "frozen_batch_norm": True}
    recipe = {"iterations": 10, "accumulation": 2, "lr": 0.0001, "weight_decay": 0.1}
    config = small_config(root, tmp_path, options, first_weights(tmp_path), **recipe)
    trainer = training.Trainer(config, torch.device("cpu"), Processes(), Display(config, shown=False))
    by_hand = copy.deepcopy(trainer.model).train()
    crops = [trainer.samples[pair] for pair in itertools.islice(trainer.sampler, 8)]
    batches = trainer._batches()
    velocity = {}
    for step in range(2):
        loss = trainer._step(batches)
        halves = [batch_loss(by_hand, crops[first : first + 2]) for first in (4 * step, 4 * step + 2)]
        expected = (halves[0] + halves[1]) / 2
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        by_hand.zero_grad()
        expected.backward()
        rate = 0.0001 * (1 - step / 10) ** 0.9
        with torch.no_grad():
            for (name, parameter), trained in zip(by_hand.named_parameters(), trainer.model.parameters(), strict=True):
                assert parameter.requires_grad == (".bn." not in name)
                if not parameter.requires_grad:
                    continue
                assert (trained.grad - parameter.grad).norm() <= 1e-3 * parameter.grad.norm(), name
                factor = (20 if name.endswith("bias") else 10) if ".aspp." in name else 1
                decay = 0 if name.endswith("bias") else 0.1
                gradient = trained.grad + decay * parameter
                velocity[name] = gradient if step == 0 else 0.9 * velocity[name] + gradient
                parameter -= rate * factor * velocity[name]
                torch.testing.assert_close(trained, parameter, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("frozen", [True, False])
def test_synchronised_batch_norm_stays_frozen(frozen):
    model = models.create("deeplabv2_small", CLASSES, frozen_batch_norm=frozen)
    names = list(model.state_dict())
    synchronise_batch_norm(model)
    model.train()
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms
    for module in norms:
        assert isinstance(module, torch.nn.SyncBatchNorm) != frozen
        assert module.training != frozen
        assert module.weight.requires_grad != frozen
    assert list(model.state_dict()) == names
