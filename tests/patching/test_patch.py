"""`patch` and `unpatch`: what is replaced in models as people write them, and that nothing else changes."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conv_samples import centred
from models_in_the_wild import SUMMED, ConcatenatedASPP, ResNet, Unit, deeplab, vgg
from torch import Tensor, nn

import deeplab_fast
from deeplab_fast import ops, patching

MODELS: dict[str, Callable[[], nn.Module]] = {
    "deeplab": deeplab,
    "resnet": ResNet,
    "vgg": vgg,
    "deeplab_v3": lambda: nn.Sequential(Unit(3, 8, 3, 1, 1, 1), ConcatenatedASPP(8, 4)),
}
DEEPLAB_SITES = {
    ("layer1.conv1", "conv + bn + ReLU"),
    *(
        (f"{block}.{unit}", "conv + bn + ReLU")
        for block in ("layer2", "layer3.0", "layer3.1")
        for unit in ("reduce", "conv3x3")
    ),
    *((block, "increase.conv + increase.bn + residual + ReLU") for block in ("layer2", "layer3.0", "layer3.1")),
    *((f"{block}.shortcut", "conv + bn") for block in ("layer2", "layer3.1")),
}


def used(model: nn.Module) -> nn.Module:
    """`model` with statistics and parameters of batch norm that are not those of the start."""
    for seed, module in enumerate(model.modules()):
        if isinstance(module, nn.BatchNorm2d):
            count = module.num_features
            module.running_mean.copy_(centred(seed, count) / 4)
            module.running_var.copy_(centred(seed + 100, count).abs() + 0.5)
            module.weight.data.copy_(centred(seed + 200, count) / 2 + 1)
            module.bias.data.copy_(centred(seed + 300, count) / 4)
    return model


def freeze(model: nn.Module) -> None:
    """Training mode with the statistics of batch norm frozen, as DeepLab trains."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def outputs_and_gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor | None], Tensor]:
    model.zero_grad()
    x = x.detach().requires_grad_()
    torch.manual_seed(0)  # dropout
    out = model(x)
    (out * centred(9, *out.shape).to(out.dtype)).sum().backward()
    return out.detach(), {name: p.grad for name, p in model.named_parameters()}, x.grad


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the ops that are called, in order."""
    names = []
    for name in ("aspp_sum", "atrous_conv2d"):
        original = getattr(ops, name)

        def noted(*arguments, name=name, original=original, **keywords):
            names.append(name)
            return original(*arguments, **keywords)

        monkeypatch.setattr(ops, name, noted)
    return names


# --- What is replaced ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aspp", SUMMED)
def test_deeplab_is_replaced_entirely(aspp: type[nn.Module], calls: list[str]):
    model = used(deeplab(aspp)).double().eval()
    x = centred(1, 2, 3, 33, 33).double()
    expected = outputs_and_gradients(model, x)
    report = deeplab_fast.patch(model)
    assert not report.left_alone
    found = {(entry.path, entry.what) for entry in report.replaced}
    names = [f"c{b}" if hasattr(model.aspp, "c0") else f"conv2d_list.{b}" for b in range(4)]
    assert found == DEEPLAB_SITES | {("aspp", f"sum of 4 convolutions: {' + '.join(names)}")}
    calls.clear()
    torch.testing.assert_close(outputs_and_gradients(model, x), expected, rtol=1e-9, atol=1e-9)
    assert calls == ["atrous_conv2d"] * 12 + ["aspp_sum"]


def test_resnet_is_replaced_entirely(calls: list[str]):
    model = ResNet().eval()
    report = deeplab_fast.patch(model)
    assert not report.left_alone
    found = [(entry.path, entry.what) for entry in report.replaced]
    assert ("", "conv1 + bn1 + ReLU") in found
    assert ("layer1.0", "conv2 + bn2 + residual + ReLU") in found
    assert ("layer2.1", "conv3 + bn3 + residual + ReLU") in found
    assert ("layer2.0.downsample", "convolution 0 + batch norm 1") in found
    calls.clear()
    model(torch.zeros(1, 3, 33, 33))
    assert calls == ["atrous_conv2d"] * 12


def test_the_report_is_for_people():
    model = nn.Sequential(deeplab(), ConcatenatedASPP(4, 2))
    text = str(deeplab_fast.patch(model))
    assert "Replaced (19):\n  0.layer1.conv1 (Unit): conv + bn + ReLU\n" in text
    assert "0.aspp (SumOfChildren): sum of 4 convolutions: c0 + c1 + c2 + c3\n" in text
    assert (
        "Left alone (1):\n  1 (ConcatenatedASPP): convolutions of one input with dilation 1, 2, 3, 4: they are " in text
    )
    assert str(deeplab_fast.patch(nn.Linear(2, 2))).startswith("Nothing to replace was found")


def test_patched_twice():
    model = deeplab()
    first = deeplab_fast.patch(model)
    classes = [type(module) for module in model.modules()]
    second = deeplab_fast.patch(model)
    assert not second.replaced
    assert {(e.path, e.what) for e in second.already_patched} == {(e.path, e.what) for e in first.replaced}
    assert [type(module) for module in model.modules()] == classes
    assert "Already patched (13):" in str(second)


# --- Same results --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["eval", "frozen", "train"])
@pytest.mark.parametrize("name", MODELS)
def test_same_results_and_gradients(name: str, mode: str):
    model = used(MODELS[name]()).double()
    patched = copy.deepcopy(model)
    assert deeplab_fast.patch(patched).replaced
    results = []
    for one in (model, patched):
        freeze(one) if mode == "frozen" else one.train(mode == "train")
        results.append(outputs_and_gradients(one, centred(1, 2, 3, 41, 37).double()))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(patched.state_dict(), model.state_dict(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("mode", "dtype", "tolerance"),
    # With live batch norm in float32, one ReLU that a rounding turns over can part the curves, of any two programs.
    [("frozen", torch.float32, 1e-4), ("frozen", torch.float64, 1e-12), ("train", torch.float64, 1e-12)],
)
def test_training_curves_agree(mode: str, dtype: torch.dtype, tolerance: float):
    model = used(deeplab()).to(dtype)
    curves = []
    for patched in (False, True):
        one = copy.deepcopy(model)
        optimizer = torch.optim.SGD(one.parameters(), lr=0.01, momentum=0.9)  # of tensors from before the patch
        if patched:
            assert deeplab_fast.patch(one).replaced
        freeze(one) if mode == "frozen" else one.train()
        curve = []
        for step in range(20):
            x = centred(step, 2, 3, 33, 33).to(dtype)
            labels = x.mean(1)[:, ::8, ::8].mul(40).long() % 4
            logits = nn.functional.interpolate(one(x), labels.shape[1:], mode="bilinear")
            loss = nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[0][-1] != pytest.approx(curves[0][0], rel=0.02)  # it did train
    assert curves[1] == pytest.approx(curves[0], rel=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_16_bits(dtype: torch.dtype):
    model = used(deeplab()).eval().to(dtype)
    x = centred(1, 1, 3, 33, 33).to(dtype)
    exact = copy.deepcopy(model).double()(x.double())
    plain_error = (model(x).double() - exact).abs().max()
    assert not deeplab_fast.patch(model).left_alone
    out = model(x)
    assert out.dtype == dtype
    assert (out.double() - exact).abs().max() <= 2 * plain_error + torch.finfo(dtype).eps * exact.abs().max()


def test_autocast():
    model = used(deeplab()).eval()
    x = centred(1, 1, 3, 33, 33)
    expected = model(x)
    deeplab_fast.patch(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=0.05 * expected.abs().max().item())


@pytest.mark.cuda
@pytest.mark.parametrize("name", MODELS)
def test_same_results_on_a_gpu(name: str):
    model = used(MODELS[name]()).eval().double().cuda()
    x = centred(1, 2, 3, 41, 37).double().cuda()
    expected = outputs_and_gradients(model, x)
    report = deeplab_fast.patch(model)
    assert report.replaced
    torch.testing.assert_close(outputs_and_gradients(model, x), expected, rtol=1e-9, atol=1e-9)


# --- What stays ----------------------------------------------------------------------------------------------------


def test_modules_parameters_and_keys_stay():
    model = deeplab()
    before = (
        {name: id(module) for name, module in model.named_modules()},
        {name: (id(p), p._version) for name, p in model.named_parameters()},
        [(name, value.clone()) for name, value in model.state_dict().items()],
        repr(model),
    )
    deeplab_fast.patch(model)
    assert {name: id(module) for name, module in model.named_modules()} == before[0]
    assert {name: (id(p), p._version) for name, p in model.named_parameters()} == before[1]
    for (name, value), (old_name, old) in zip(model.state_dict().items(), before[2], strict=True):
        assert name == old_name
        assert torch.equal(value, old)
    assert repr(model) == before[3]
    assert isinstance(model.aspp, SUMMED[2])


def test_checkpoints_load_both_ways():
    model, patched = used(deeplab()).eval(), deeplab().eval()
    deeplab_fast.patch(patched)
    x = centred(1, 1, 3, 33, 33)
    patched.load_state_dict(model.state_dict())
    torch.testing.assert_close(patched(x), model(x))
    fresh = deeplab().eval()
    fresh.load_state_dict(patched.state_dict())
    torch.testing.assert_close(fresh(x), model(x))


@pytest.mark.parametrize("change", ["in place", "data", "optimizer", "load_state_dict", "functional_call"])
def test_changed_weights_are_seen(change: str):
    model = used(deeplab()).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    deeplab_fast.patch(model)
    x = centred(1, 1, 3, 33, 33)
    before = model(x)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    if change == "in place":
        with torch.no_grad():
            model.aspp.c1.weight.mul_(2)
    elif change == "data":
        model.layer2.conv3x3.bn.running_var.data.mul_(2)
        model.layer2.increase.conv.weight.data = 3 * model.layer2.increase.conv.weight.data
    elif change == "optimizer":
        model(x).sum().backward()
        optimizer.step()
    else:
        state = {name: value * 1.5 if value.is_floating_point() else value for name, value in state.items()}
    if change == "functional_call":
        after = torch.func.functional_call(model, state, x)
        model.load_state_dict(state)
    else:
        model.load_state_dict(state) if change == "load_state_dict" else None
        after = model(x)
    deeplab_fast.unpatch(model)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, model(x))


def test_hooks_on_replaced_modules_are_called():
    model, seen = deeplab().eval(), []
    deeplab_fast.patch(model)
    for path in ("layer3.0", "aspp", "layer2.reduce"):
        model.get_submodule(path).register_forward_hook(
            lambda _, inputs, out, path=path: seen.append((path, out.shape))
        )
    model(torch.zeros(1, 3, 33, 33))
    assert [path for path, _ in seen] == ["layer2.reduce", "layer3.0", "aspp"]


@pytest.mark.parametrize("path", ["aspp.c1", "layer2.increase", "layer2.increase.bn", "layer3.0.conv3x3.conv"])
def test_hooks_on_children_that_come_later_are_called(path: str):
    model, seen = used(deeplab()).eval(), []
    deeplab_fast.patch(model)
    x = centred(1, 1, 3, 33, 33)
    expected = model(x)
    handle = model.get_submodule(path).register_forward_hook(lambda *_: seen.append(path))
    torch.testing.assert_close(model(x), expected)
    assert seen == [path]
    handle.remove()
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("change", ["weight_norm", "parametrization", "replaced", "forward"])
def test_children_that_change_later_are_called(change: str):
    model = used(deeplab()).eval()
    deeplab_fast.patch(model)
    if change == "weight_norm":
        with pytest.warns(FutureWarning):
            nn.utils.weight_norm(model.aspp.c1)
        model.aspp.c1.weight_g.data.mul_(3)
    elif change == "parametrization":
        nn.utils.parametrizations.spectral_norm(model.aspp.c1)
    elif change == "replaced":
        model.aspp.c1 = nn.Sequential(model.aspp.c1, nn.Tanh())
    else:
        model.aspp.c1.forward = lambda x: 0 * x[:, :4]
    x = centred(1, 1, 3, 33, 33)
    out = model(x)
    deeplab_fast.unpatch(model)
    torch.testing.assert_close(out, model(x))


def test_probing_leaves_no_trace():
    model = deeplab()
    model.layer2.eval()
    for module in (model.aspp.c0, model.layer2):
        next(module.parameters()).grad = torch.ones_like(next(module.parameters()))
    model.layer3.requires_grad_(False)
    flags = [(module.training, [(p.requires_grad, p.grad) for p in module.parameters()]) for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    with torch.no_grad():
        assert deeplab_fast.patch(model, example=torch.zeros(1, 3, 33, 33)).replaced
    after = [(module.training, [(p.requires_grad, p.grad) for p in module.parameters()]) for module in model.modules()]
    assert str(after) == str(flags)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert np.random.get_state()[1].tolist() == generators[2]  # noqa: NPY002


# --- unpatch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_unpatch_undoes_it(name: str):
    model = MODELS[name]().eval()
    x = centred(1, 1, 3, 33, 33)
    before = model(x), [type(module) for module in model.modules()], [set(vars(module)) for module in model.modules()]
    assert deeplab_fast.patch(model).replaced
    deeplab_fast.unpatch(model)
    assert torch.equal(model(x), before[0])
    assert [type(module) for module in model.modules()] == before[1]
    assert [set(vars(module)) for module in model.modules()] == before[2]
    deeplab_fast.unpatch(model)  # nothing to undo
    assert deeplab_fast.patch(model).replaced


def test_a_part_can_be_unpatched():
    model = deeplab()
    deeplab_fast.patch(model)
    deeplab_fast.unpatch(model.aspp)
    assert type(model.aspp) is SUMMED[2]
    assert [entry.path for entry in deeplab_fast.patch(model).replaced] == ["aspp"]


# --- Arguments -----------------------------------------------------------------------------------------------------


def test_an_example_tells_sizes():
    class OfTokens(nn.Module):  # of which the graph does not tell the channels
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(torch.nn.functional.pixel_unshuffle(x, 2))).relu()

    model = OfTokens()
    report = deeplab_fast.patch(model)
    assert "cannot be probed" in report.left_alone[0].why
    assert "example" in report.left_alone[0].why
    assert deeplab_fast.patch(model, example=torch.zeros(1, 1, 12, 12)).replaced
    deeplab_fast.unpatch(model)
    assert deeplab_fast.patch(model, example=[torch.zeros(1, 1, 12, 12)]).replaced


def test_windows_beside_the_map():
    """The fused op does what the stock layers do, where all that some outputs see is padding: oneDNN would crash."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 35, 1, stride=2, padding=1, dilation=2, bias=False)
    model = nn.Sequential(convolution, nn.BatchNorm2d(35), nn.ReLU()).eval()
    x = centred(0, 1, 3, 4, 1)
    with torch.no_grad():
        model[1].running_mean.uniform_(-1, 1)
        model[1].bias.uniform_(-1, 1)
        expected = model(x)
        assert deeplab_fast.patch(model, example=x).replaced
        torch.testing.assert_close(model(x), expected)


def test_refuses():
    for function in (deeplab_fast.patch, deeplab_fast.unpatch):
        with pytest.raises(TypeError, match=r"model: is a dict, should be a torch\.nn\.Module"):
            function({})
    with pytest.raises(TypeError, match="example: is a dict, should be a tensor or a sequence"):
        deeplab_fast.patch(deeplab(), example={})
    with pytest.raises(ValueError, match=r"example: the model does not take it: .* expected input"):
        deeplab_fast.patch(deeplab(), example=torch.zeros(1, 4, 33, 33))


def test_names():
    assert deeplab_fast.patch is patching.patch
    assert {"patch", "unpatch", "accelerate", "patching"} <= set(dir(deeplab_fast))
