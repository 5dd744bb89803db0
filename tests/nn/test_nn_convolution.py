"""`nn.ASPP`, `nn.AtrousConv2d`, `nn.ConvBnReLU`: parameters, results and gradients beside plain PyTorch, bad input."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from conv_samples import centred
from torch import Tensor
from torch import nn as torch_nn

from deeplab_fast import nn, ops
from deeplab_fast.nn import fusing


class Plain(torch_nn.Module):
    """`ConvBnReLU` as people write it, with the same children."""

    def __init__(self, module: nn.ConvBnReLU):
        super().__init__()
        self.conv, self.bn, self.relu = copy.deepcopy(module.conv), copy.deepcopy(module.bn), module.relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        out = self.bn(self.conv(x))
        out = out if residual is None else out + residual
        return torch.relu(out) if self.relu else out


def unfused_sum(module: nn.ASPP, x: Tensor) -> Tensor:
    return module.c0(x) + module.c1(x) + module.c2(x) + module.c3(x)


def conv_bn_relu(**arguments) -> nn.ConvBnReLU:
    """With statistics, weight and bias that are not those of the start, and some channels that ReLU cuts."""
    module = nn.ConvBnReLU(6, 8, 3, padding=2, dilation=2, **arguments)
    with torch.no_grad():
        module.bn.running_mean.copy_(centred(1, 8))
        module.bn.running_var.copy_(centred(2, 8).abs() + 0.5)
        module.bn.weight.copy_(centred(3, 8))
        module.bn.bias.copy_(centred(4, 8))
    return module


def gradients(module: torch_nn.Module, *inputs: Tensor) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
    """Output, and gradients to parameters and inputs of a weighted sum of it."""
    module.zero_grad()
    inputs = [one.detach().requires_grad_() for one in inputs]
    out = module(*inputs)
    (out * centred(9, *out.shape).to(out.dtype)).sum().backward()
    return out.detach(), {name: p.grad for name, p in module.named_parameters()}, [one.grad for one in inputs]


# --- ASPP ----------------------------------------------------------------------------------------------------------


def test_aspp_has_the_parameters_of_the_common_deeplab():
    torch.manual_seed(0)
    state = nn.ASPP(64, 21).state_dict()
    assert list(state) == [f"c{b}.{kind}" for b in range(4) for kind in ("weight", "bias")]
    assert state["c0.weight"].shape == (21, 64, 3, 3)
    assert all(state[f"c{b}.weight"].std().sub(0.01).abs() < 5e-4 for b in range(4))
    assert all(state[f"c{b}.weight"].mean().abs() < 5e-4 for b in range(4))
    assert not any(state[f"c{b}.bias"].any() for b in range(4))


def test_aspp_is_the_sum_of_its_children():
    module = nn.ASPP(5, 3, rates=(1, 2, 4, 6)).double()
    for b in range(4):
        torch_nn.init.normal_(getattr(module, f"c{b}").bias)
    x = centred(1, 2, 5, 9, 8).double()
    results = gradients(module, x)
    torch.testing.assert_close(results[0], unfused_sum(module, x))
    module.forward = lambda value: unfused_sum(module, value)
    torch.testing.assert_close(results, gradients(module, x))


@pytest.mark.parametrize("rates", [(3,), (1, 2, 3, 4, 5)])
def test_aspp_has_a_branch_a_rate(rates: tuple[int, ...]):
    module = nn.ASPP(4, 2, rates)
    assert [name for name, _ in module.named_children()] == [f"c{b}" for b in range(len(rates))]
    x = centred(1, 1, 4, 7, 7)
    torch.testing.assert_close(module(x), sum(child(x) for child in module.children()))


def test_aspp_is_one_op(monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(ops, "aspp_sum", lambda *arguments: calls.append(arguments) or ops.OPS)
    monkeypatch.setattr(ops, "OPS", "the result", raising=False)
    assert nn.ASPP(4, 2)(centred(1, 1, 4, 5, 5)) == "the result"
    assert len(calls) == 1


@pytest.mark.parametrize("change", ["hook", "weight_norm", "parametrization", "replaced"])
def test_aspp_calls_children_that_do_more_than_convolve(change: str):
    module, seen = nn.ASPP(4, 2), []
    if change == "hook":
        module.c1.register_forward_hook(lambda *_: seen.append("hook"))
    elif change == "weight_norm":
        with pytest.warns(FutureWarning):
            torch_nn.utils.weight_norm(module.c1)
        module.c1.weight_g.data.mul_(3)  # of which the weight hears when the child is called
    elif change == "parametrization":
        torch_nn.utils.parametrizations.weight_norm(module.c1)
    else:
        module.c1 = torch_nn.Sequential(torch_nn.Conv2d(4, 2, 1), torch_nn.Tanh())
    x = centred(1, 1, 4, 7, 7)
    torch.testing.assert_close(module(x), unfused_sum(module, x))
    assert len(seen) == (2 if change == "hook" else 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((4, 2, ()), ValueError, r"rates: is \(\), should be a sequence"),
        ((4, 2, 6), ValueError, "rates: is 6, should be a sequence"),
        ((4, 2, (6, 0)), ValueError, "rates: is 0, should be at least 1"),
        ((4, 2, (6, 1.5)), TypeError, "rates: is 1.5, should be an integer"),
        ((0, 2), ValueError, "in_channels: is 0, should be at least 1"),
        ((4, 0), ValueError, "num_classes: is 0, should be at least 1"),
    ],
)
def test_aspp_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        nn.ASPP(*arguments)


# --- AtrousConv2d --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 3, "padding": "same", "dilation": (2, 1), "bias": False},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)},
    ],
)
def test_atrous_conv2d_is_a_conv2d(arguments: dict):
    torch.manual_seed(0)
    plain = torch_nn.Conv2d(5, 4, **arguments).double()
    module = nn.AtrousConv2d(5, 4, **arguments).double()
    assert isinstance(module, torch_nn.Conv2d)
    module.load_state_dict(plain.state_dict())
    x = centred(1, 2, 5, 9, 8).double()
    torch.testing.assert_close(gradients(module, x), gradients(plain, x))
    torch.testing.assert_close(module(x[0]), plain(x[0]))


def test_atrous_conv2d_refuses():
    with pytest.raises(ValueError, match=r"groups: is 2, should be 1; for others take torch\.nn\.Conv2d"):
        nn.AtrousConv2d(4, 4, 3, groups=2)
    with pytest.raises(ValueError, match="padding_mode: is 'reflect', should be 'zeros'"):
        nn.AtrousConv2d(4, 4, 3, padding_mode="reflect")
    with pytest.raises(ValueError, match=r"weight: shape is \(4, 4, 3, 3\), should be \(K, 5, kh, kw\)"):
        nn.AtrousConv2d(4, 4, 3)(torch.zeros(1, 5, 9, 9))


# --- ConvBnReLU ----------------------------------------------------------------------------------------------------


def test_conv_bn_relu_has_the_common_parameters():
    state = nn.ConvBnReLU(6, 8, 3, stride=2, padding=1).state_dict()
    names = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert list(state) == ["conv.weight", *[f"bn.{name}" for name in names]]


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("mode", ["eval", "frozen", "live"])
def test_conv_bn_relu(mode: str, residual: bool, relu: bool):
    module = conv_bn_relu(relu=relu).double()
    plain = Plain(module).double()
    inputs = [centred(5, 2, 6, 9, 8).double(), centred(6, 2, 8, 9, 8).double()][: 1 + residual]
    for one in (module, plain):
        one.train(mode != "eval")
        one.bn.train(mode == "live")
    torch.testing.assert_close(gradients(module, *inputs), gradients(plain, *inputs))
    torch.testing.assert_close(module.state_dict(), plain.state_dict())  # statistics moved, or did not, alike
    assert (module.bn.num_batches_tracked > 0) == (mode == "live")


@pytest.mark.parametrize("bn", [{"affine": False}, {"track_running_stats": False}, {"eps": 0.1}])
def test_conv_bn_relu_with_another_batch_norm(bn: dict):
    module = conv_bn_relu().eval()
    module.bn = torch_nn.BatchNorm2d(8, **bn).eval()
    x = centred(5, 2, 6, 9, 8)
    torch.testing.assert_close(module(x), Plain(module).eval()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("child", ["conv", "bn"])
def test_conv_bn_relu_calls_children_with_hooks(child: str):
    module, calls = conv_bn_relu().eval(), []
    expected = module(centred(5, 2, 6, 9, 8))
    getattr(module, child).register_forward_hook(lambda *_: calls.append(child))
    torch.testing.assert_close(module(centred(5, 2, 6, 9, 8)), expected, rtol=1e-5, atol=1e-5)
    assert calls == [child]


def test_global_hooks_see_the_children():
    module, calls = conv_bn_relu().eval(), []
    handle = torch_nn.modules.module.register_module_forward_hook(lambda called, *_: calls.append(called))
    try:
        module(centred(5, 2, 6, 9, 8))
    finally:
        handle.remove()
    assert calls == [module.conv, module.bn, module]


@pytest.mark.parametrize("change", ["in place", "data", "optimizer", "load_state_dict"])
def test_changed_weights_are_seen(change: str):
    module = conv_bn_relu().eval()
    x = centred(5, 2, 6, 9, 8)
    before = module(x)
    if change == "in place":
        with torch.no_grad():
            module.bn.weight.mul_(2)
    elif change == "data":
        module.bn.running_var.data.mul_(2)
    elif change == "optimizer":
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        module(x).sum().backward()
        optimizer.step()
    else:
        module.load_state_dict(nn.ConvBnReLU(6, 8, 3).state_dict())
    after = module(x)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, Plain(module).eval()(x), rtol=1e-5, atol=1e-5)


def test_half_the_precision_is_not_lost_in_batch_norm():
    """Scale and bias are computed in float32 from bfloat16 parameters: at least as near as the children one by one."""
    module = conv_bn_relu().bfloat16().eval()
    x = centred(5, 2, 6, 9, 8).bfloat16()
    exact = Plain(module).double().eval()(x.double())
    plain = Plain(module).eval()(x)
    assert module(x).dtype == torch.bfloat16
    assert (module(x) - exact).abs().max() <= (plain - exact).abs().max() + 1e-2 * exact.abs().max()


def test_autocast():
    module, aspp = conv_bn_relu().eval(), nn.ASPP(8, 3)
    x = centred(5, 2, 6, 9, 8)
    expected = aspp(module(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = aspp(module(x))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=2e-2 * expected.abs().max().item())


@pytest.mark.parametrize("mode", ["eval", "frozen", "live"])
def test_compiles_without_a_graph_break(mode: str):
    torch.compiler.reset()
    module = torch_nn.Sequential(conv_bn_relu(), nn.AtrousConv2d(8, 8, 3, padding=1), nn.ASPP(8, 3, (1, 2)))
    module.train(mode != "eval")
    module[0].bn.train(mode == "live")
    x = centred(5, 2, 6, 9, 8)
    expected = gradients(copy.deepcopy(module), x)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    leaf = x.clone().requires_grad_()
    out = compiled(leaf)
    (out * centred(9, *out.shape)).sum().backward()
    torch.testing.assert_close(out.detach(), expected[0])
    torch.testing.assert_close(leaf.grad, expected[2][0])
    torch.testing.assert_close({name: p.grad for name, p in module.named_parameters()}, expected[1])


@pytest.mark.parametrize("make", [conv_bn_relu, lambda: nn.ASPP(6, 2), lambda: nn.AtrousConv2d(6, 2, 3)])
def test_copies(make):
    module = make().eval()
    x = centred(5, 2, 6, 9, 8)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), module(x))


def test_plain_convolutions_only():
    assert not fusing.fits_op(torch_nn.Conv2d(4, 4, 3, groups=2))
    assert not fusing.fits_op(torch_nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"))
    assert not fusing.is_branch(torch_nn.Conv2d(4, 4, 3, padding=1, dilation=2))
    assert not fusing.is_branch(torch_nn.Conv2d(4, 4, 3, stride=2, padding=1))
    assert not fusing.is_branch(torch_nn.Conv2d(4, 4, 3, padding=(1, 2), dilation=(1, 2)))
    assert not fusing.is_branch(torch_nn.Conv2d(4, 4, 2, padding="same"))
    assert fusing.is_branch(torch_nn.Conv2d(4, 4, 3, padding="same", dilation=5))
    assert fusing.is_branch(torch_nn.Conv2d(4, 4, 1))
