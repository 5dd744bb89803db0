"""Patched models copied, pickled, compiled, replicated: each works on its own parameters."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from conv_samples import centred
from models_in_the_wild import SUMMED, BasicBlock, CaffeBottleneck, ConcatenatedASPP, deeplab
from test_patch import MODELS, freeze, outputs_and_gradients, used
from torch import Tensor, nn

import deeplab_fast


def doubled(model: nn.Module) -> nn.Module:
    """`model`, with other parameters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


def by_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def by_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    ("name", "copied"),
    [*((name, copied) for name in MODELS for copied in (copy.deepcopy, by_pickle)), ("resnet", by_save)],
)
def test_copies_work_on_their_own_parameters(name: str, copied):
    model = used(MODELS[name]()).eval()
    sites = len(deeplab_fast.patch(model).replaced)
    x = centred(1, 1, 3, 33, 33)
    expected = model(x)
    twin = copied(model)
    assert torch.equal(twin(x), expected)
    assert len(deeplab_fast.patch(twin).already_patched) == sites
    doubled(twin)
    assert torch.equal(model(x), expected)
    after = twin(x)
    assert not torch.allclose(after, expected)
    deeplab_fast.unpatch(twin)
    torch.testing.assert_close(after, twin(x), rtol=1e-4, atol=1e-4 * after.abs().max().item())
    assert [type(one) for one in twin.modules()] == [type(one) for one in MODELS[name]().modules()]
    assert len(deeplab_fast.patch(model).already_patched) == sites


def test_a_shallow_copy():
    model = deeplab().eval()
    deeplab_fast.patch(model)
    x = centred(1, 1, 3, 33, 33)
    assert torch.equal(copy.copy(model.aspp)(centred(2, 1, 32, 5, 5)), model.aspp(centred(2, 1, 32, 5, 5)))
    assert torch.equal(copy.copy(model)(x), model(x))


@pytest.mark.parametrize("mode", ["eval", "frozen", "train"])
def test_compiles_without_a_graph_break(mode: str):
    torch.compiler.reset()
    model = used(nn.Sequential(CaffeBottleneck(8, 16, 1, 2, downsample=True), SUMMED[0](16, 3)))
    assert len(deeplab_fast.patch(model).replaced) == 5
    freeze(model) if mode == "frozen" else model.train(mode == "train")
    x = centred(1, 2, 8, 17, 15)
    expected = outputs_and_gradients(copy.deepcopy(model), x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    leaf = x.clone().requires_grad_()
    out = compiled(leaf)
    (out * centred(9, *out.shape)).sum().backward()
    torch.testing.assert_close(out.detach(), expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(leaf.grad, expected[2], rtol=1e-4, atol=1e-4)


def test_compiled_models_see_a_batch_norm_thaw():
    torch.compiler.reset()
    model = used(BasicBlock(8, 8)).eval()
    assert len(deeplab_fast.patch(model).replaced) == 2
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = centred(1, 2, 8, 17, 15)
    compiled(x)
    before = model.bn1.num_batches_tracked.item()
    model.train()
    compiled(x)
    assert model.bn1.num_batches_tracked.item() == before + 1


def test_exports():
    model = used(deeplab()).eval()
    deeplab_fast.patch(model)
    x = centred(1, 1, 3, 33, 33)
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), model(x))


def test_compiled_and_then_patched():
    torch.compiler.reset()
    model = used(BasicBlock(8, 8)).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = centred(1, 2, 8, 17, 15)
    expected = compiled(x)
    assert len(deeplab_fast.patch(compiled).replaced) == 2
    torch.testing.assert_close(compiled(x), expected)


def replica_of(module: nn.Module) -> nn.Module:
    """As `nn.DataParallel` makes them for another device: same `__dict__`, other tensors in it, no parameters."""
    replica = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        replica._modules[name] = None if child is None else replica_of(child)
    for name, parameter in module._parameters.items():
        if parameter is None:
            replica._parameters[name] = None
        else:
            setattr(replica, name, 2 * parameter)
    for name, buffer in module._buffers.items():
        replica._buffers[name] = buffer.clone()
    return replica


@pytest.mark.parametrize("aspp", SUMMED)
def test_replicas_compute_with_their_own_tensors(aspp: type[nn.Module]):
    model = used(deeplab(aspp)).eval()
    deeplab_fast.patch(model)
    x = centred(1, 1, 3, 33, 33)
    out = replica_of(model)(x)
    out.sum().backward()
    assert model.layer2.reduce.conv.weight.grad is not None
    torch.testing.assert_close(out, doubled(model)(x))


@pytest.mark.cuda
def test_data_parallel():
    model = used(deeplab()).eval().cuda()
    deeplab_fast.patch(model)
    x = centred(1, 4, 3, 33, 33).cuda()
    torch.testing.assert_close(nn.DataParallel(model)(x), model(x), rtol=1e-4, atol=1e-4)


def test_wrapped_models():
    """What wraps a model, and models that hold one twice under two names."""

    class Wrapper(nn.Module):
        def __init__(self, model: nn.Module):
            super().__init__()
            self.module = self.alias = model

        def forward(self, *arguments, **keywords) -> Tensor:
            return self.module(*arguments, **keywords)

    model = Wrapper(deeplab()).eval()
    x = centred(1, 1, 3, 33, 33)
    expected = model(x)
    report = deeplab_fast.patch(model)
    assert len(report.replaced) == 13
    assert not report.left_alone
    torch.testing.assert_close(model(x), expected)


def test_scales_of_a_patched_model():
    model = deeplab_fast.nn.MSC(used(deeplab())).eval()
    x = centred(1, 1, 3, 65, 65)
    expected = model(x)
    assert len(deeplab_fast.patch(model).replaced) == 13
    torch.testing.assert_close(model(x), expected)


def test_modules_of_this_package_are_not_patched():
    model = nn.Sequential(deeplab_fast.nn.ConvBnReLU(8, 8, 3), deeplab_fast.nn.ASPP(8, 2), ConcatenatedASPP(2, 2))
    assert {entry.path.split(".")[0] for entry in deeplab_fast.patch(model)} == {"2"}
