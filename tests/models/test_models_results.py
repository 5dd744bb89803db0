"""`deeplab_fast.models`: results beside plain PyTorch, and of the kernels beside the reference."""

from __future__ import annotations

import copy

import pytest
import torch
from conv_samples import centred
from torch import Tensor, nn
from torch.nn import functional

from deeplab_fast import models
from deeplab_fast.models.layers import BilinearUpsampling
from deeplab_fast.ops import define

RATES = (6, 12, 18, 24)


def without_data(name: str, num_classes: int = 21, **options) -> nn.Module:
    """Large models, of which parts are replaced or looked at."""
    with torch.device("meta"):
        return models.create(name, num_classes, **options)


def with_statistics(model: nn.Module) -> nn.Module:
    """Batch norms that are not those of the start, so that each of their four vectors matters."""
    for b, module in enumerate(model.modules()):
        if isinstance(module, nn.BatchNorm2d):
            channels = module.num_features
            with torch.no_grad():
                module.running_mean.copy_(0.2 * centred(b, channels))
                module.running_var.copy_(1 + 0.5 * centred(b + 1, channels))
                module.weight.copy_(1 + 0.3 * centred(b + 2, channels))
                module.bias.copy_(0.2 * centred(b + 3, channels))
    return model


def plain_deeplab(state: dict[str, Tensor], x: Tensor, stride_in_3x3: bool) -> Tensor:
    """DeepLab-v2 from its weights, by the layer table, with `torch.nn.functional` only."""

    def unit(name: str, x: Tensor, stride: int = 1, rate: int = 1) -> Tensor:
        weight = state[f"{name}.conv.weight"]
        x = functional.conv2d(x, weight, None, stride, rate * (weight.shape[-1] // 2), rate)
        statistics = [state[f"{name}.bn.{one}"] for one in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(x, *statistics, eps=1e-5)

    x = functional.max_pool2d(unit("layer1.conv1", x, 2).relu(), 3, 2, 1, ceil_mode=True)
    for layer, layer_stride, rate in ((2, 1, 1), (3, 2, 1), (4, 1, 2), (5, 1, 4)):
        block = 1
        while f"layer{layer}.block{block}.reduce.conv.weight" in state:
            name = f"layer{layer}.block{block}"
            stride = layer_stride if block == 1 else 1
            strides = (1, stride) if stride_in_3x3 else (stride, 1)
            shortcut = unit(f"{name}.shortcut", x, stride) if block == 1 else x
            x = unit(f"{name}.conv3x3", unit(f"{name}.reduce", x, strides[0]).relu(), strides[1], rate).relu()
            x = (unit(f"{name}.increase", x) + shortcut).relu()
            block += 1
    return sum(
        functional.conv2d(x, state[f"aspp.c{b}.weight"], state[f"aspp.c{b}.bias"], padding=rate, dilation=rate)
        for b, rate in enumerate(RATES)
    )


@pytest.mark.parametrize("stride_in_3x3", [False, True])
def test_deeplabv2_as_plain_pytorch(stride_in_3x3: bool):
    torch.manual_seed(0)
    model = with_statistics(models.deeplabv2_small(5, msc=False, stride_in_3x3=stride_in_3x3)).double().eval()
    x = centred(1, 2, 3, 65, 50).double()
    torch.testing.assert_close(model(x), plain_deeplab(model.state_dict(), x, stride_in_3x3), rtol=1e-9, atol=1e-9)


def plain_vgg(state: dict[str, Tensor], x: Tensor, average: bool) -> Tensor:
    """DeepLab on VGG-16 from its weights, by the published prototxts."""

    def conv(name: str, x: Tensor, rate: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        padding = rate * (weight.shape[-1] // 2)
        return functional.conv2d(x, weight, state[f"{name}.bias"], padding=padding, dilation=rate)

    for i, number in enumerate((2, 2, 3, 3, 3), start=1):
        for j in range(1, number + 1):
            x = conv(f"conv{i}_{j}", x, 2 if i == 5 else 1).relu()
        x = functional.max_pool2d(x, 3, 2 if i < 4 else 1, 1, ceil_mode=True)
    if average:
        x = functional.avg_pool2d(x, 3, 1, 1)
        return conv("fc8", conv("fc7", conv("fc6", x, 12).relu()).relu())
    branches = enumerate(RATES, start=1)
    return sum(conv(f"fc8_{b}", conv(f"fc7_{b}", conv(f"fc6_{b}", x, r).relu()).relu()) for b, r in branches)


@pytest.mark.parametrize("name", ["deeplabv1_vgg16", "deeplabv2_vgg16"])
def test_deeplab_vgg_as_plain_pytorch(name: str):
    torch.manual_seed(0)
    model = models.create(name, 3).eval()
    x = centred(1, 1, 3, 41, 34)
    expected = plain_vgg(model.state_dict(), x, average=name == "deeplabv1_vgg16")
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "sources"), [("fcn32s_vgg16", 1), ("fcn16s_vgg16", 2), ("fcn8s_vgg16", 3)])
def test_scores_of_fcn_lie_on_the_image(name: str, sources: int):
    """Each map holds the place in the image that its pixels are the middle of; so then must the scores."""
    model = without_data(name, 2)

    def ramps(x: Tensor) -> list[Tensor]:
        maps = []
        for stride in (2, 4, 8, 16, 32):
            length = -(-(x.shape[2] + 198) // stride)
            ramp = stride * torch.arange(length, dtype=torch.float64) + (stride - 1) / 2 - 99
            rows, columns = torch.meshgrid(ramp, ramp, indexing="ij")
            maps.append(torch.stack([rows, columns])[None])
        return maps

    model.features = ramps
    model.fc6 = nn.ZeroPad2d(-3)  # the middle of a 7×7 kernel
    for replaced in ("fc7", "score_fr", "score_pool4", "score_pool3"):
        setattr(model, replaced, nn.Identity())
    for child, module in list(model.named_children()):
        if isinstance(module, BilinearUpsampling):
            setattr(model, child, BilinearUpsampling(2, module.stride[0], learned=False).double())
    scores = model.eval()(torch.zeros(1, 3, 160, 160, dtype=torch.float64))
    inside = torch.arange(48, 112, dtype=torch.float64)  # further out are the zeros around the maps
    rows, columns = torch.meshgrid(inside, inside, indexing="ij")
    torch.testing.assert_close(scores[0, :, 48:112, 48:112], sources * torch.stack([rows, columns]))


def test_upsampling_of_fcn():
    kernel = BilinearUpsampling(2, 2, learned=True).weight
    row = torch.tensor([0.25, 0.75, 0.75, 0.25])
    assert torch.equal(kernel[1, 1], row[:, None] * row)
    assert not kernel[0, 1].any()
    model = without_data("fcn8s_vgg16")
    fixed = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert fixed == ["upscore8.weight"]
    assert (model.pool_scales, without_data("fcn8s_vgg16", at_once=True).pool_scales) == ((1, 1), (0.01, 0.0001))


@pytest.mark.parametrize("padded", [True, False])
def test_unet_as_plain_pytorch(padded: bool):
    torch.manual_seed(0)
    model = models.UNet(3, padded=padded, width=2).double().eval()
    state = model.state_dict()

    def double(name: str, x: Tensor) -> Tensor:
        for i in range(2):
            weight, bias = state[f"{name}.{i}.weight"], state[f"{name}.{i}.bias"]
            x = functional.conv2d(x, weight, bias, padding=int(padded)).relu()
        return x

    size = (45, 32) if padded else (204, 188)
    image = centred(1, 1, 3, *size).double()
    x = functional.pad(image, (0, 0, 0, 3), mode="replicate") if padded else image
    skips = [double("down1", x)]
    for i in range(2, 6):
        skips.append(double(f"down{i}", functional.max_pool2d(skips[-1], 2)))
    x = skips[-1]
    for i in range(4, 0, -1):
        x = functional.conv_transpose2d(x, state[f"up{i}.weight"], state[f"up{i}.bias"], stride=2)
        margins = [(skips[i - 1].shape[a] - x.shape[a]) // 2 for a in (2, 3)]
        skip = functional.pad(skips[i - 1], (-margins[1], -margins[1], -margins[0], -margins[0]))
        x = double(f"join{i}", torch.cat([skip, x], 1))
    expected = functional.conv2d(x, state["score.weight"], state["score.bias"])
    expected = expected[:, :, :45] if padded else expected
    torch.testing.assert_close(model(image), expected, rtol=1e-9, atol=1e-9)


def test_resnet101_runs():
    torch.manual_seed(0)
    model = models.deeplabv2_resnet101(21).train()
    x = centred(1, 1, 3, 65, 65)
    with torch.no_grad():
        outs = model(x)
        assert [out.shape for out in outs] == [(1, 21, size, size) for size in (9, 5, 7, 9)]
        state = {key.removeprefix("base."): tensor for key, tensor in model.state_dict().items()}
        expected = plain_deeplab(state, x, stride_in_3x3=False)
        torch.testing.assert_close(outs[0], expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
        assert torch.equal(model.eval()(x), outs[-1])


@pytest.mark.parametrize("frozen", [True, False])
def test_kernels_and_reference_agree(frozen: bool, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    model = with_statistics(models.deeplabv2_small(4, frozen_batch_norm=frozen)).train()
    x = centred(1, 2, 3, 97, 65)
    results = []
    for wanted in (True, False):
        monkeypatch.setattr(define, "kernels_wanted", lambda wanted=wanted: wanted)
        one = copy.deepcopy(model)
        outs = one(x)
        sum(out.square().sum() for out in outs).backward()
        gradients = {name: p.grad for name, p in one.named_parameters() if p.requires_grad}
        assert all(grad is not None and grad.any() for grad in gradients.values())
        with torch.no_grad():
            results.append((outs, one.eval()(x), gradients))
    (outs, scores, gradients), (expected_outs, expected_scores, expected_gradients) = results
    torch.testing.assert_close(outs, expected_outs, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(scores, expected_scores, rtol=1e-3, atol=1e-4)
    for name, expected in expected_gradients.items():  # a ReLU at 0 may go either way, so not element for element
        assert (gradients[name] - expected).norm() <= 1e-2 * expected.norm(), name
