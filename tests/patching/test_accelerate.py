"""`accelerate`: results, dtypes, memory format, weights that change afterwards."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from conv_samples import centred
from models_in_the_wild import deeplab
from test_patch import used
from torch import Tensor, nn

import deeplab_fast
from deeplab_fast.ops import paths
from deeplab_fast.patching import accelerating

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


class Notes(nn.Module):
    """Notes what it gets: dtype of x, whether in channels_last, dtype of the mask."""

    def __init__(self):
        super().__init__()
        self.seen, self.conv = [], nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor, name: str = "", mask: Tensor | None = None) -> dict:
        last = x.is_contiguous(memory_format=torch.channels_last)
        self.seen.append((x.dtype, last, None if mask is None else mask.dtype))
        return {"scores": [self.conv(x)], "labels": self.conv(x).argmax(1), "name": name}


def allowed(dtype: torch.dtype, expected: Tensor) -> float:
    return (0.05 if dtype == torch.bfloat16 else 1e-5) * expected.abs().max().item()


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_results(dtype: torch.dtype):
    model = used(deeplab()).eval()
    x = centred(1, 2, 3, 33, 35)
    expected = model(x)
    fast = deeplab_fast.accelerate(model, dtype)
    assert fast is model
    out = fast(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, rtol=0, atol=allowed(dtype, expected))


def test_the_model_is_ready_for_inference():
    model = deeplab_fast.accelerate(deeplab(), torch.bfloat16)
    assert not any(module.training for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    assert not model(torch.zeros(1, 3, 33, 33)).requires_grad
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            assert value.dtype == (torch.float32 if ".bn." in name else torch.bfloat16)
        if value.ndim == 4:
            assert value.is_contiguous(memory_format=torch.channels_last)
    assert len(model.deeplab_fast_report.replaced) == 13
    assert list(model.state_dict()) == list(deeplab().state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_and_results_are_converted(dtype: torch.dtype):
    model = deeplab_fast.accelerate(Notes(), dtype)
    model.seen.clear()
    out = model(centred(1, 2, 3, 5, 4), "a", mask=torch.ones(2, dtype=torch.bool))
    model(centred(1, 2, 3, 5, 4).double(), mask=torch.ones(2))
    assert model.seen == [(dtype, True, torch.bool), (dtype, True, dtype)]
    assert out["scores"][0].dtype == torch.float32
    assert out["labels"].dtype == torch.int64
    assert out["name"] == "a"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", ["in place", "data", "load_state_dict"])
def test_changed_weights_are_seen(change: str, dtype: torch.dtype):
    model = deeplab_fast.accelerate(used(deeplab()), dtype)
    x = centred(1, 1, 3, 33, 33)
    model(x)
    plain = deeplab().eval()
    plain.load_state_dict(model.state_dict())
    for one in (model, plain):
        if change == "in place":
            one.aspp.c1.weight.requires_grad_(False).mul_(8)
        elif change == "data":
            one.layer2.conv3x3.bn.weight.data.mul_(8)
        else:
            torch.manual_seed(7)
            state = used(deeplab(classes=4)).state_dict()
            one.load_state_dict({name: 1.5 * value if "conv" in name else value for name, value in state.items()})
    expected = plain(x)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=allowed(dtype, expected))


def test_twice():
    model = used(deeplab()).eval()
    x = centred(1, 1, 3, 33, 33)
    expected = model(x)
    for _ in range(2):
        deeplab_fast.accelerate(model, torch.bfloat16, example=x)
    assert len(model._forward_hooks) == len(model._forward_pre_hooks) == 1
    assert len(model.deeplab_fast_report.replaced) == 13
    assert model(x).dtype == torch.float32
    torch.testing.assert_close(model(x), expected, rtol=0, atol=allowed(torch.bfloat16, expected))


def test_unpatch():
    model = used(deeplab()).eval()
    x = centred(1, 1, 3, 33, 33)
    expected = model(x)
    model.register_forward_hook(lambda *_: None)
    deeplab_fast.accelerate(model, torch.float32)
    deeplab_fast.unpatch(model)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=allowed(torch.float32, expected))
    assert not hasattr(model, "deeplab_fast_report")
    assert [len(model._forward_hooks), len(model._forward_pre_hooks)] == [1, 0]
    assert not model._forward_pre_hooks_with_kwargs
    assert [type(module) for module in model.modules()] == [type(module) for module in deeplab().modules()]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(copied):
    model = deeplab_fast.accelerate(used(deeplab()), torch.bfloat16)
    x = centred(1, 1, 3, 33, 33)
    twin = copied(model)
    assert torch.equal(twin(x), model(x))
    deeplab_fast.unpatch(twin)
    assert twin(x.bfloat16()).dtype == torch.bfloat16
    assert model(x).dtype == torch.float32


def test_compiles_without_a_graph_break():
    torch.compiler.reset()
    model = deeplab_fast.accelerate(used(deeplab()), torch.float32)
    x = centred(1, 1, 3, 33, 33)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


def test_a_model_in_16_bits_stays_in_them():
    model = deeplab_fast.accelerate(deeplab().bfloat16())
    assert model(centred(1, 1, 3, 33, 33).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_dtype_of_the_processor(has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(accelerating, "computes_in_bfloat16", lambda device: has_bfloat16)
    model = deeplab_fast.accelerate(deeplab())
    assert model.aspp.c0.weight.dtype == (torch.bfloat16 if has_bfloat16 else torch.float32)


def test_emulated_bfloat16_does_not_count(monkeypatch: pytest.MonkeyPatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(paths.platform, "machine", lambda: "x86_64")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert not accelerating.computes_in_bfloat16(cpu)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert accelerating.computes_in_bfloat16(cpu)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert not accelerating.computes_in_bfloat16(cpu)
    assert not accelerating.computes_in_bfloat16(torch.device("meta"))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.float32])
def test_on_a_gpu(dtype: torch.dtype | None):
    model = used(deeplab()).eval().cuda()
    x = centred(1, 2, 3, 33, 33).cuda()
    expected = model(x)
    out = deeplab_fast.accelerate(model, dtype)(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, rtol=0, atol=0.05 * expected.abs().max().item())


def test_refuses():
    with pytest.raises(TypeError, match=r"model: is a str, should be a torch\.nn\.Module"):
        deeplab_fast.accelerate("model")
    for dtype in (torch.int8, "bfloat16"):
        with pytest.raises(TypeError, match=r"dtype: is .*int8.*, should be one of|dtype: is 'bfloat16', should be"):
            deeplab_fast.accelerate(deeplab(), dtype)
    with pytest.raises(ValueError, match="example: the model does not take it"):
        deeplab_fast.accelerate(deeplab(), example=torch.zeros(1, 4, 9, 9))
