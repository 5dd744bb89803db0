"""What `patch` leaves as it is, and says so."""

from __future__ import annotations

import re

import pytest
import torch
from conv_samples import centred
from models_in_the_wild import BasicBlock, ConcatenatedBare, ResNet, SumInALoop, SumOfNamed, Unit
from torch import Tensor, nn

import deeplab_fast
from deeplab_fast.patching import replacing


def sum_of_two(**second) -> nn.Module:
    model = SumOfNamed(3, 4)
    model.c1 = nn.Conv2d(3, 4, **{"kernel_size": 3, "padding": 2, "dilation": 2, **second})
    return model


class Scaled(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def with_hook(path: str, kind: str = "forward") -> nn.Module:
    model = SumOfNamed(3, 4) if path.startswith("c") and path[1:] in "0123" else BasicBlock(3, 3)
    register = getattr(model.get_submodule(path), f"register_{kind}_hook")
    register(lambda *_: None)
    return model


def with_weight_norm() -> nn.Module:
    model = SumOfNamed(3, 4)
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model.c2)
    return model


def after_a_call(model: nn.Module) -> nn.Module:
    model(torch.zeros(1, 3, 9, 9))
    return model


def with_parametrization(make) -> nn.Module:
    model = SumOfNamed(3, 4)
    make(model.c2)
    return model


def with_shared_convolution() -> nn.Module:
    model = nn.Sequential(Unit(3, 3, 3, 1, 1, 1), Unit(3, 3, 3, 1, 1, 1))
    model[1].conv = model[0].conv
    return model


class UsedTwice(SumOfNamed):
    def forward(self, x: Tensor) -> Tensor:
        return self.c0(x) + self.c1(x) + self.c1(x)


class LooksAtValues(SumOfNamed):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else self.c0(x)


class WithoutGradient(SumOfNamed):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


class InFloat32(SumOfNamed):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x)


class OtherInTraining(SumOfNamed):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else self.c0(x) + self.c1(x)


class TwoInputs(SumOfNamed):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x) + y


class Alternating(SumOfNamed):
    """Every other call is of other branches: nothing that a graph can tell."""

    count = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).count += 1
        return super().forward(x) if (type(self).count + 1) // 2 % 2 else self.c0(x) + self.c1(x)


class BroadcastResidual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.pool = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)) + self.pool(x))


def without_statistics() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, track_running_stats=False))


def lazy() -> nn.Module:
    model = SumOfNamed(3, 4)
    model.head = nn.LazyLinear(2)
    return model


class MindsSubclasses(SumOfNamed):
    def __init_subclass__(cls):
        if "_deeplab_fast_class" in vars(cls):
            raise TypeError("is final")


def replaced_forward() -> nn.Module:
    model = SumOfNamed(3, 4)
    model.forward = model.c0.forward
    return model


def uncopyable() -> nn.Module:
    model = SumOfNamed(3, 4)
    model.open_file = (number for number in range(3))
    return model


LEFT_ALONE = {
    "concatenated": (lambda: ConcatenatedBare(3, 4), "they are concatenated, as in DeepLab-v3, not summed"),
    "hook": (lambda: with_hook("c1"), "c1 has hooks"),
    "pre_hook": (lambda: with_hook("c1", "forward_pre"), "c1 has hooks"),
    "backward_hook": (lambda: with_hook("c1", "full_backward"), "c1 has hooks"),
    "weight_norm": (with_weight_norm, "c2 has WeightNorm, a hook that makes its weight from others"),
    "weight_norm_called": (lambda: after_a_call(with_weight_norm()), "c2 has WeightNorm"),
    "parametrized": (
        lambda: with_parametrization(nn.utils.parametrizations.weight_norm),
        r"c2 is parametrized \(WeightNorm\)",
    ),
    "spectral_norm": (
        lambda: with_parametrization(nn.utils.parametrizations.spectral_norm),
        r"c2 is parametrized \(SpectralNorm\)",
    ),
    "used_twice": (lambda: UsedTwice(3, 4), "c1 is shared: used in more than one place"),
    "groups": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4)), "0 has groups=2"),
    "padding_mode": (lambda: sum_of_two(padding_mode="reflect"), "c1 has padding_mode='reflect'"),
    "other_padding": (
        lambda: sum_of_two(stride=2, padding=1),
        r"c1 has kernel \(3, 3\), stride \(2, 2\), padding \(1, 1\)",
    ),
    "two_rates": (lambda: sum_of_two(padding=(2, 1), dilation=(2, 1)), r"dilation \(2, 1\), which does not keep"),
    "one_channel": (lambda: _with(SumOfNamed(3, 4), "c1", nn.Conv2d(3, 1, 1)), "c1 has another number of channels"),
    "subclass": (
        lambda: _with(SumOfNamed(3, 4), "c1", Scaled(3, 4, 3, padding=1)),
        "c1 is a Scaled with a forward of its own, no Conv2d",
    ),
    "values": (lambda: LooksAtValues(3, 4), r"its forward cannot be traced \(symbolically traced variables"),
    "no_grad": (lambda: WithoutGradient(3, 4), "probing failed|gradient"),
    "autocast": (lambda: InFloat32(3, 4), "output in evaluation mode under autocast"),
    "other_in_training": (lambda: OtherInTraining(3, 4), "not the same in training and in evaluation mode"),
    "two_inputs": (lambda: TwoInputs(3, 4), r"its forward does not take one input, but \(x: .*, y: .*\)"),
    "differs": (lambda: Alternating(3, 4), "the fused output in .* differs by .* of the largest value"),
    "broadcast": (BroadcastResidual, r"residual: shape is .*, should be .*, that of the output"),
    "no_statistics": (without_statistics, "1 keeps no running statistics"),
    "replaced_forward": (replaced_forward, "its forward was replaced on the instance"),
    "lazy": (lazy, "it has parameters that wait for a first input"),
    "final": (lambda: MindsSubclasses(3, 4), r"its class cannot be given a fused forward \(is final\)"),
    "not_copied": (uncopyable, "it cannot be copied"),
    "fx": (lambda: torch.fx.symbolic_trace(SumOfNamed(3, 4)), "it is a SumOfNamed of torch.fx"),
    "meta": (lambda: SumOfNamed(3, 4).to("meta"), "its parameters are on the meta device"),
}


def _with(model: nn.Module, name: str, child: nn.Module) -> nn.Module:
    setattr(model, name, child)
    return model


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", LEFT_ALONE)
def test_left_alone_and_said_so(name: str):
    make, why = LEFT_ALONE[name]
    model = make()
    classes = [type(module) for module in model.modules()]
    report = deeplab_fast.patch(model)
    assert not report.replaced
    assert len(report.left_alone) == 1
    assert re.search(why, report.left_alone[0].why), report.left_alone[0].why
    assert report.left_alone[0].why in str(report)
    assert [type(module) for module in model.modules()] == classes


def test_shared_convolutions_are_left_alone():
    report = deeplab_fast.patch(with_shared_convolution())
    assert [(entry.path, entry.why) for entry in report] == [
        ("0", "conv is shared: used in more than one place"),
        ("1", "conv is shared: used in more than one place"),
    ]


@pytest.mark.parametrize("path", ["conv2", "bn2"])
def test_only_what_has_hooks_is_left_alone(path: str):
    model, seen = with_hook(path).eval(), []
    model.get_submodule(path).register_forward_hook(lambda *_: seen.append(path))
    report = deeplab_fast.patch(model)
    assert seen == []  # probing calls no hooks
    assert [entry.what for entry in report.replaced] == ["conv1 + bn1 + ReLU"]
    assert [(entry.what, entry.why) for entry in report.left_alone] == [
        ("conv2 + bn2 + residual + ReLU", f"{path} has hooks")
    ]
    model(torch.zeros(1, 3, 9, 9))
    assert seen == [path]


def test_a_relu_with_a_hook_is_called():
    model, seen = BasicBlock(3, 3).eval(), []
    model.relu.register_forward_hook(lambda *_: seen.append("relu"))
    assert [entry.what for entry in deeplab_fast.patch(model).replaced] == ["conv1 + bn1", "conv2 + bn2 + residual"]
    model(torch.zeros(1, 3, 9, 9))
    assert seen == ["relu", "relu"]


def test_grouped_convolutions_in_a_resnet():
    report = deeplab_fast.patch(ResNet(groups=2))
    assert [(entry.path, entry.why) for entry in report.left_alone] == [
        ("layer2.0", "conv2 has groups=2"),
        ("layer2.1", "conv2 has groups=2"),
    ]
    assert ("layer2.1", "conv3 + bn3 + residual + ReLU") in [(entry.path, entry.what) for entry in report.replaced]


def test_values_that_others_use_are_computed():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            features = self.conv(x)
            return features, self.bn(features).relu()

    report = deeplab_fast.patch(Both())
    assert not report.entries


def test_a_sum_written_over_its_input_is_left_alone():
    class OverItsInput(SumInALoop):
        def forward(self, x: Tensor) -> Tensor:
            out = x.clone()
            before = out * 2
            for conv in self.conv2d_list:
                out += conv(before)
            return out

    report = deeplab_fast.patch(OverItsInput(3, 3))
    assert [entry.why for entry in report.left_alone] == ["the sum is written over one of its addends"]


@pytest.mark.parametrize("as_method", [True, False])
def test_a_stack_of_what_one_operation_gives_is_no_sum_of_convolutions(as_method: bool):
    class OfUnbound(SumOfNamed):
        def forward(self, x: Tensor) -> Tensor:
            stack = torch.stack((self.c0(x) + self.c1(x)).unbind(0))
            return stack.sum(0) if as_method else torch.sum(stack, dim=0)

    model = OfUnbound(3, 3).eval()
    x = centred(1, 2, 3, 9, 9)
    expected = model(x)
    assert [entry.what for entry in deeplab_fast.patch(model).replaced] == ["sum of 2 convolutions: c0 + c1"]
    torch.testing.assert_close(model(x), expected)


def test_a_sum_with_more_in_it():
    class WithSkip(SumOfNamed):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.c0(x) + self.c1(x) * 2 + self.c2(x)

    model = WithSkip(3, 3).eval()
    x = centred(1, 1, 3, 9, 9)
    expected = model(x)
    assert [entry.what for entry in deeplab_fast.patch(model).replaced] == ["sum of 2 convolutions: c0 + c2"]
    torch.testing.assert_close(model(x), expected)


def test_other_inputs_get_the_forward_that_was_there():
    model = SumOfNamed(3, 4)
    x = centred(1, 3, 9, 9)
    expected = model(x)
    deeplab_fast.patch(model)
    torch.testing.assert_close(model(x), expected)  # without a batch
    torch.testing.assert_close(model(x=x[None])[0], expected)
    with pytest.raises(TypeError, match="unexpected keyword argument 'y'"):
        model(x, y=2)


def test_programs_can_be_read():
    model = SumOfNamed(3, 4)
    deeplab_fast.patch(model)
    assert "sum_of_branches(x, [c0_1, c1_1, c2_1, c3_1])" in replacing.program_of(model).source
