"""`deeplab_fast.models`: parameters, sizes, frozen batch norm, bad input; results are in test_models_results.py."""

from __future__ import annotations

import copy
import io
import itertools

import pytest
import torch
from conv_samples import centred
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from deeplab_fast import models


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def without_data(name: str, num_classes: int = 21, **options) -> nn.Module:
    """Large models, of which only shapes are looked at."""
    with torch.device("meta"):
        return models.create(name, num_classes, **options)


def sizes(name: str, images: tuple[int, ...], train: bool, **options) -> list[tuple[int, ...]]:
    """Shapes of the scores of images."""
    with FakeTensorMode(), torch.no_grad():
        out = models.create(name, 21, **options).train(train)(torch.zeros(images))
    return [tuple(one.shape) for one in (out if isinstance(out, list) else [out])]


# --- Parameters ----------------------------------------------------------------------------------------------------


def published_keys(blocks: tuple[int, ...], prefix: str = "base.") -> list[str]:
    """Of the PyTorch DeepLab-v2 in common use, in its order."""
    units = ["layer1.conv1"]
    for layer, number in enumerate(blocks, start=2):
        for block in range(1, number + 1):
            parts = ["reduce", "conv3x3", "increase"] + ["shortcut"] * (block == 1)
            units += [f"layer{layer}.block{block}.{part}" for part in parts]
    batch_norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = [f"{unit}.{rest}" for unit in units for rest in ("conv.weight", *(f"bn.{one}" for one in batch_norm))]
    return [prefix + key for key in keys + [f"aspp.c{b}.{one}" for b in range(4) for one in ("weight", "bias")]]


@pytest.mark.parametrize("msc", [True, False])
def test_deeplabv2_has_the_published_keys(msc: bool):
    prefix = "base." if msc else ""
    state = without_data("deeplabv2_resnet101", msc=msc).state_dict()
    assert list(state) == published_keys((3, 4, 23, 3), prefix)
    assert len(state) == 104 * 6 + 8
    assert state[f"{prefix}layer1.conv1.conv.weight"].shape == (64, 3, 7, 7)
    assert state[f"{prefix}layer4.block23.conv3x3.conv.weight"].shape == (256, 256, 3, 3)
    assert state[f"{prefix}layer5.block1.shortcut.conv.weight"].shape == (2048, 1024, 1, 1)
    assert state[f"{prefix}aspp.c3.weight"].shape == (21, 2048, 3, 3)
    assert list(models.deeplabv2_small(2, msc=msc).state_dict()) == published_keys((1, 1, 2, 1), prefix)


def test_parameters_of_deeplabv2():
    trunk = 3 * 64 * 49 + 2 * 64
    channels = 64
    for blocks, middle in ((3, 64), (4, 128), (23, 256), (3, 512)):
        out = 4 * middle
        for block in range(blocks):
            trunk += channels * middle + 9 * middle**2 + middle * out + 2 * (2 * middle + out)
            trunk += channels * out + 2 * out if block == 0 else 0
            channels = out
    assert trunk == 42_500_160  # as ImageNet's ResNet-101 without its classifier: 44,549,160 - 2,049,000
    assert count(without_data("deeplabv2_resnet101")) == trunk + 4 * (9 * 2048 * 21 + 21) == 44_048_532
    assert count(without_data("deeplabv2_resnet101", stride_in_3x3=True)) == 44_048_532
    assert count(without_data("deeplabv2_resnet101", rates=(6,))) == trunk + 9 * 2048 * 21 + 21
    assert 9e5 < count(models.deeplabv2_small(21)) < 1.1e6


def test_parameters_of_vgg_models():
    pairs = [
        (3, 64),
        (64, 64),
        (64, 128),
        (128, 128),
        (128, 256),
        (256, 256),
        (256, 256),
        (256, 512),
        *[(512, 512)] * 5,
    ]
    trunk = sum(9 * before * after + after for before, after in pairs)
    assert trunk == 14_714_688
    branch = (9 * 512 * 1024 + 1024) + (1024 * 1024 + 1024) + (1024 * 21 + 21)
    assert count(without_data("deeplabv1_vgg16")) == trunk + branch == 20_505_429
    assert count(without_data("deeplabv2_vgg16")) == trunk + 4 * branch == 37_877_652
    fully_connected = (49 * 512 * 4096 + 4096) + (4096 * 4096 + 4096)
    assert trunk + fully_connected == 138_357_544 - 4_097_000 == 134_260_544  # VGG-16 without its classifier
    fcn = trunk + fully_connected + 4096 * 21 + 21
    skips = (512 * 21 + 21) + 21**2 * 4**2, (256 * 21 + 21) + 21**2 * 4**2
    assert count(without_data("fcn32s_vgg16")) == fcn + 21**2 * 64**2 == 136_152_917
    assert count(without_data("fcn16s_vgg16")) == fcn + skips[0] + 21**2 * 32**2
    assert count(without_data("fcn8s_vgg16")) == fcn + sum(skips) + 21**2 * 16**2


def test_parameters_of_unet():
    channels = [1, 64, 128, 256, 512, 1024]
    expected = sum(9 * a * b + b + 9 * b * b + b for a, b in itertools.pairwise(channels))
    expected += sum(4 * 2 * b * b + b + 9 * 2 * b * b + b + 9 * b * b + b for b in channels[1:-1])
    expected += 64 * 2 + 2
    model = without_data("unet", 2, in_channels=1)
    assert count(model) == expected == 31_030_658
    assert sum(isinstance(module, nn.Conv2d | nn.ConvTranspose2d) for module in model.modules()) == 23


def test_initialisation():
    torch.manual_seed(0)
    model = models.deeplabv2_small(5, msc=False)
    for module in (model.layer1.conv1.conv, model.layer5.block1.conv3x3.conv):
        inputs = module.weight[0].numel()
        assert module.weight.std().item() == pytest.approx((2 / inputs) ** 0.5, rel=0.05)
    assert model.aspp.c2.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not model.aspp.c2.bias.any()
    large_fov = models.deeplabv1_vgg16(21)
    assert large_fov.conv3_2.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.05)
    assert large_fov.fc8.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not large_fov.conv3_2.bias.any()


# --- Sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deeplabv2_resnet101", "deeplabv2_small"])
def test_sizes_of_deeplabv2(name: str):
    assert [shape[2:] for shape in sizes(name, (2, 3, 321, 321), train=True)] == [(s, s) for s in (41, 21, 31, 41)]
    assert sizes(name, (1, 3, 513, 513), train=False) == [(1, 21, 65, 65)]
    assert sizes(name, (1, 3, 321, 321), train=True, msc=False, stride_in_3x3=True) == [(1, 21, 41, 41)]
    assert sizes(name, (1, 3, 375, 500), train=False) == [(1, 21, 48, 63)]


@pytest.mark.parametrize("name", ["deeplabv1_vgg16", "deeplabv2_vgg16"])
def test_sizes_of_deeplab_vgg(name: str):
    assert sizes(name, (1, 3, 321, 321), train=True) == [(1, 21, 41, 41)]
    assert sizes(name, (1, 3, 513, 513), train=False) == [(1, 21, 65, 65)]
    shapes = sizes(name, (1, 3, 321, 321), train=True, msc=True)
    assert [shape[2] for shape in shapes] == [41, 21, 31, 41]


@pytest.mark.parametrize("name", ["fcn32s_vgg16", "fcn16s_vgg16", "fcn8s_vgg16", "unet"])
def test_scores_of_the_size_of_the_image(name: str):
    for size in ((1, 1), (17, 33), (64, 64), (500, 375)):
        assert sizes(name, (1, 3, *size), train=False) == [(1, 21, *size)]


def test_sizes_of_unet_as_published():
    options = {"in_channels": 1, "padded": False, "train": True}
    assert sizes("unet", (1, 1, 572, 572), **options) == [(1, 21, 388, 388)]
    assert sizes("unet", (1, 1, 188, 204), **options) == [(1, 21, 4, 20)]
    for size in (571, 576, 172):  # what a pool would not halve, and what leaves nothing
        with pytest.raises(ValueError, match=rf"x: size is {size} x 572, should be 188, 204, … 572"):
            sizes("unet", (1, 1, size, 572), **options)


# --- Classifier and batch norm -------------------------------------------------------------------------------------


def test_classifier_modules():
    model = models.deeplabv2_small(3)
    assert models.classifier_modules(model) == [model.base.aspp]
    assert models.classifier_modules(nn.DataParallel(model)) == [model.base.aspp]
    for name, layers in {
        "deeplabv1_vgg16": ["fc8"],
        "deeplabv2_vgg16": ["fc8_1", "fc8_2", "fc8_3", "fc8_4"],
        "fcn32s_vgg16": ["score_fr"],
        "fcn16s_vgg16": ["score_fr", "score_pool4"],
        "fcn8s_vgg16": ["score_fr", "score_pool4", "score_pool3"],
        "unet": ["score"],
    }.items():
        model = without_data(name)
        assert models.classifier_modules(model) == [getattr(model, layer) for layer in layers]
    with pytest.raises(TypeError, match=r"model: is a Conv2d, should be of deeplab_fast\.models"):
        models.classifier_modules(nn.Conv2d(1, 1, 1))


def assert_frozen(model: nn.Module) -> None:
    model.train()
    batch_norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert batch_norms
    before = copy.deepcopy(model.state_dict())
    sum(out.sum() for out in model(centred(1, 2, 3, 33, 33))).backward()
    assert model.base.layer1.conv1._is_fusable()
    for module in batch_norms:
        assert not module.training
        assert not module.weight.requires_grad
        assert module.weight.grad is None
    assert model.base.layer1.conv1.conv.weight.grad is not None
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_frozen_batch_norm_survives():
    model = models.deeplabv2_small(2)
    assert models.freeze_batch_norm(model) is model
    assert_frozen(model)
    model.load_state_dict(models.deeplabv2_small(2).state_dict())
    assert_frozen(model.eval())
    assert_frozen(copy.deepcopy(model))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert_frozen(torch.load(file, weights_only=False))


def test_batch_norm_by_flag():
    frozen = without_data("deeplabv2_resnet101").train()
    live = without_data("deeplabv2_resnet101", frozen_batch_norm=False).train()
    small = models.deeplabv2_small(2).train()
    for model, expected in ((frozen, False), (live, True), (small, True)):
        batch_norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        assert {module.training for module in batch_norms} == {expected}
        assert {module.weight.requires_grad for module in batch_norms} == {expected}
    with pytest.raises(TypeError, match=r"model: is a str, should be a torch\.nn\.Module"):
        models.freeze_batch_norm("model")


# --- Making --------------------------------------------------------------------------------------------------------


def test_create():
    assert len(models.NAMES) == 8
    for name in models.NAMES:
        model = without_data(name, 3)
        assert type(model) is type(without_data(name, 3))
        assert getattr(models, name).__name__ == name
    with pytest.raises(ValueError, match=r"name: is 'resnet', should be one of deeplabv2_resnet101, .*, unet"):
        models.create("resnet", 21)
    with pytest.raises(TypeError, match=r"options: is 'padded', should be one of msc, rates"):
        models.create("deeplabv2_vgg16", 21, padded=True)
    with pytest.raises(TypeError, match=r"options: is 'msc', should be left out, fcn32s_vgg16 has none"):
        models.create("fcn32s_vgg16", 21, msc=True)


@pytest.mark.parametrize("name", models.NAMES)
def test_refuses(name: str):
    with pytest.raises(ValueError, match="num_classes: is 0, should be at least 1"):
        without_data(name, 0)
    for value in (2.5, "21", True, None):
        with pytest.raises(TypeError, match=f"num_classes: is {value!r}, should be a whole number"):
            without_data(name, value)
    model = without_data(name, 2)
    with pytest.raises(TypeError, match=r"x: dtype is torch\.uint8, should be (a )?floating"):
        model(torch.zeros(1, 3, 65, 65, dtype=torch.uint8))
    for shape in ((3, 65, 65), (1, 4, 65, 65), (1, 3, 65, 0)):
        with pytest.raises(ValueError, match=rf"x: shape is \({', '.join(map(str, shape))}\), should be \(N, "):
            model(torch.zeros(shape))


def test_refuses_rates():
    for rates in ((), "6", 6):
        with pytest.raises(ValueError, match=r"rates: is .*, should be a sequence of integers, one a branch"):
            without_data("deeplabv2_vgg16", rates=rates)
    with pytest.raises(ValueError, match="rates: is 0, should be at least 1"):
        without_data("deeplabv2_resnet101", rates=(6, 0))
