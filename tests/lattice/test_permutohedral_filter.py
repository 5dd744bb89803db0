"""`permutohedral_filter` and `Lattice`: accuracy, gradient, compilation, what they refuse."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from compiled import require_kernels
from samples import FILTER_SAMPLES, FilterSample, assert_filter_accurate, by_name, positions, random
from torch._subclasses.fake_tensor import FakeTensorMode

import deeplab_fast
from deeplab_fast import _core
from deeplab_fast.ops import define, lattice

SMALL = FilterSample("small", batch=2, channels=2, size=(3, 4), dimensions=3)


@pytest.mark.parametrize("sample", FILTER_SAMPLES, ids=by_name)
def test_accurate(sample: FilterSample, backend: str):
    values, features = sample.inputs()
    assert_filter_accurate(deeplab_fast.permutohedral_filter(values, features), values, features)


@pytest.mark.cuda
@pytest.mark.parametrize("sample", FILTER_SAMPLES, ids=by_name)
def test_accurate_on_a_gpu(sample: FilterSample):
    values, features = sample.inputs("cuda")
    assert_filter_accurate(deeplab_fast.permutohedral_filter(values, features), values, features)


def test_inputs_are_left_alone(backend: str):
    values, features = SMALL.inputs()
    before = values.clone(), features.clone()
    deeplab_fast.permutohedral_filter(values, features)
    assert torch.equal(values, before[0])
    assert torch.equal(features, before[1])


@pytest.mark.parametrize("dimensions", [1, 2, 3, 5, 6, 8])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_spreads_as_in_the_reference(dimensions: int, value: float):
    features = 4 * random(0, 1, dimensions, 40)
    op, reference = torch.ops.deeplab_fast.permutohedral_filter, deeplab_fast.reference.permutohedral_filter
    for point in range(0, 40, 3):
        values = random(1, 1, 3, 40)
        values[0, 1, point] = value
        for reverse in (False, True):
            expected = reference(values, features, reverse)
            torch.testing.assert_close(op(values, features, reverse), expected, equal_nan=True)
            assert not expected[0, 0].isnan().any()
    lattice_filtered = deeplab_fast.Lattice(features).filter(values, reverse=True)
    torch.testing.assert_close(lattice_filtered, expected, equal_nan=True)


def test_autocast_changes_nothing(backend: str):
    values, features = SMALL.inputs()
    expected = deeplab_fast.permutohedral_filter(values, features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(deeplab_fast.permutohedral_filter(values, features), expected)


# --- Registration, compilation and gradient ------------------------------------------------------------------------


@pytest.mark.parametrize("sample", FILTER_SAMPLES, ids=by_name)
def test_opcheck_schema_and_fake(sample: FilterSample, backend: str):
    op = torch.ops.deeplab_fast.permutohedral_filter.default
    torch.library.opcheck(op, sample.inputs(), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_opcheck(layout: str, backend: str):
    values, features = FilterSample("", layout=layout).inputs()
    values = values.requires_grad_()
    torch.library.opcheck(torch.ops.deeplab_fast.permutohedral_filter.default, (values, features))
    torch.library.opcheck(torch.ops.deeplab_fast.permutohedral_filter.default, (values, features, True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiles_without_a_graph_break(dtype: torch.dtype, layout: str, backend: str):
    torch.compiler.reset()
    values, features = FilterSample("", dtype=dtype, layout=layout).inputs()
    compiled = torch.compile(deeplab_fast.permutohedral_filter, fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, deeplab_fast.permutohedral_filter):
        leaf = values.clone().requires_grad_()
        out = function(leaf, features)
        out.square().sum().backward()
        assert out.stride() == values.stride()
        results.append((out.detach(), leaf.grad))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_compiles_with_inductor():
    values, features = FilterSample("", layout="channels_last").inputs()
    compiled = torch.compile(lambda v, f: 2 * deeplab_fast.permutohedral_filter(v + 1, f / 2), fullgraph=True)
    expected = 2 * deeplab_fast.permutohedral_filter(values + 1, features / 2)
    torch.testing.assert_close(compiled(values, features), expected)


def test_gradient_to_values():
    values, features = SMALL.inputs()
    values = values.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: deeplab_fast.permutohedral_filter(v, features), values)
    assert torch.autograd.gradgradcheck(
        lambda v: deeplab_fast.permutohedral_filter(v, features), values, fast_mode=True
    )


@pytest.mark.parametrize("sample", FILTER_SAMPLES, ids=by_name)
def test_gradient_is_the_adjoint(sample: FilterSample, backend: str):
    values, features = sample.inputs()
    values = values.detach().requires_grad_()
    grad = random(9, *values.shape).to(values.dtype)
    deeplab_fast.permutohedral_filter(values, features).backward(grad)
    expected = deeplab_fast.reference.permutohedral_filter(grad.double(), features.float(), reverse=True)
    assert values.grad.dtype == values.dtype
    if values.numel() > 0 and features.dtype != torch.float64:
        error = (values.grad.double() - expected).abs().max()
        assert error <= 8 * torch.finfo(values.dtype).eps * expected.abs().max()


# --- Errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "features", "error", "message"),
    [
        ((2, 3, 4, 5), (1, 2, 4, 5), ValueError, r"features: shape is \(1, 2, 4, 5\), should be \(2, D, 4, 5\)"),
        ((2, 3, 4, 5), (2, 2, 5, 4), ValueError, r"features: shape is \(2, 2, 5, 4\), should be \(2, D, 4, 5\)"),
        ((2, 3, 4, 5), (2, 2, 20), ValueError, r"features: shape is \(2, 2, 20\), should be \(2, D, 4, 5\)"),
        ((2, 3, 4, 5), (2, 0, 4, 5), ValueError, r"features: shape .* with D at least 1"),
        ((2, 0, 4, 5), (2, 2, 4, 5), ValueError, r"values: shape is \(2, 0, 4, 5\), should be .* C .* at least 1"),
        ((2, 3, 0, 5), (2, 2, 0, 5), ValueError, r"values: shape is \(2, 3, 0, 5\), .* every axis of S at least 1"),
        ((2, 3), (2, 2), ValueError, r"values: shape is \(2, 3\), should be \(N, C, \*S\)"),
    ],
)
def test_refuses_shapes(values, features, error, message, backend: str):
    with pytest.raises(error, match=message):
        deeplab_fast.permutohedral_filter(torch.zeros(values), torch.zeros(features))


@pytest.mark.parametrize("name", ["values", "features"])
@pytest.mark.parametrize(("wrong", "message"), [("int64", "dtype is torch.int64"), ("list", "is a list")])
def test_refuses_other_types(name: str, wrong: str, message: str):
    arguments = dict(zip(("values", "features"), SMALL.inputs(), strict=True))
    arguments[name] = arguments[name].long() if wrong == "int64" else arguments[name].tolist()
    with pytest.raises(TypeError, match=f"{name}: {message}, should be"):
        deeplab_fast.permutohedral_filter(**arguments)


def test_refuses_a_mix_of_devices():
    with pytest.raises(ValueError, match="features: device is meta, should be cpu, that of values"):
        deeplab_fast.permutohedral_filter(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4, device="meta"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_refuses_features_that_are_not_finite(value: float, dtype: torch.dtype, backend: str):
    values, features = SMALL.inputs()
    features[1, 2, 0, 3] = value
    with pytest.raises(ValueError, match=r"features: .* NaN or infinite value"):
        deeplab_fast.permutohedral_filter(values.to(dtype), features.to(dtype))
    with pytest.raises(ValueError, match=r"features: .* NaN or infinite value"):
        deeplab_fast.Lattice(features.to(dtype))


@pytest.mark.parametrize("value", [3e4, -3e4, 1e25])
def test_refuses_keys_beyond_16_bits(value: float, backend: str):
    values, features = SMALL.inputs()
    features[1, 0, 0, 3] = value
    for call in (lambda: deeplab_fast.permutohedral_filter(values, features), lambda: deeplab_fast.Lattice(features)):
        with pytest.raises(ValueError, match="features: key range overflow"):
            call()


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_kernel_and_reference_refuse_the_same_keys(dimensions: int, monkeypatch: pytest.MonkeyPatch):
    """The last feature in range and the first one out of it, found by bisection, are the same."""
    require_kernels()

    def raises(value: float) -> bool:
        features = torch.zeros(1, dimensions, 5)
        features[..., -1, 2] = value
        try:
            deeplab_fast.permutohedral_filter(torch.ones(1, 1, 5), features)
        except ValueError:
            return True
        return False

    low, high = 0.0, 1e5
    while torch.tensor((low + high) / 2).item() not in (low, high):
        middle = torch.tensor((low + high) / 2).item()
        low, high = (low, middle) if raises(middle) else (middle, high)
    monkeypatch.setattr(define, "kernels_wanted", lambda: False)
    assert low > 1000
    assert raises(high)
    assert not raises(low)


def test_says_what_was_wrong_where_torch_loses_the_message(monkeypatch: pytest.MonkeyPatch):
    """Before torch 2.13 an exception of a compiled kernel is a RuntimeError with a text of torch's."""

    def kernel(values: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("permutohedral_filter_cpu(...) API call failed")

    monkeypatch.setitem(define.OPS, "permutohedral_filter", kernel)
    values, features = SMALL.inputs()
    with pytest.raises(RuntimeError, match="API call failed"):
        deeplab_fast.permutohedral_filter(values, features)
    with pytest.raises(ValueError, match="features: key range overflow"):
        deeplab_fast.permutohedral_filter(values, 1e6 * features)


# --- Lattice -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", FILTER_SAMPLES, ids=by_name)
def test_lattice_filters_as_the_op(sample: FilterSample, backend: str):
    values, features = sample.inputs()
    built = deeplab_fast.Lattice(features.to(torch.float32))
    for _ in range(2):
        assert_filter_accurate(built.filter(values), values, features.to(torch.float32))


def test_lattice_of_one_image(backend: str):
    values, features = FilterSample("", batch=1).inputs()
    expected = deeplab_fast.permutohedral_filter(values, features)[0]
    one = deeplab_fast.Lattice(features[0], batched=False)
    torch.testing.assert_close(one.filter(values[0]), expected)
    flat = deeplab_fast.Lattice(features[0].flatten(1))
    torch.testing.assert_close(flat.filter(values[0].flatten(1)), expected.flatten(1))
    assert one.vertex_count == flat.vertex_count == deeplab_fast.Lattice(features).vertex_count


def test_lattice_counts_vertices(backend: str):
    features = positions((13, 11), 3, 5, 5)
    counts = [deeplab_fast.Lattice(image, batched=False).vertex_count for image in features]
    both = deeplab_fast.Lattice(features)
    assert both.vertex_count == sum(counts)
    assert repr(both) == f"Lattice(batch of 3, size (13, 11), {sum(counts)} vertices, device cpu)"


def test_lattice_gradient(backend: str):
    values, features = SMALL.inputs()
    built = deeplab_fast.Lattice(features)
    assert torch.autograd.gradcheck(built.filter, values.double().requires_grad_(), fast_mode=True)
    assert torch.autograd.gradgradcheck(built.filter, values.double().requires_grad_(), fast_mode=True)
    leaf = values.clone().requires_grad_()
    built.filter(leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, built.filter(torch.ones_like(values), reverse=True))


def test_lattice_moves_between_devices(backend: str):
    values, features = SMALL.inputs()
    built = deeplab_fast.Lattice(features)
    assert built.to("cpu") is built
    away = built.to("meta")
    assert away.device == torch.device("meta")
    assert away.vertex_count == built.vertex_count
    with pytest.raises(ValueError, match="values: device is cpu, should be meta, that of the lattice"):
        away.filter(values)


@pytest.mark.cuda
@pytest.mark.parametrize("sample", FILTER_SAMPLES, ids=by_name)
def test_lattice_moves_to_a_gpu(sample: FilterSample):
    values, features = sample.inputs()
    moved = deeplab_fast.Lattice(features.float()).to("cuda")
    assert_filter_accurate(moved.filter(values.cuda()), values.cuda(), features.float().cuda())


def test_lattice_takes_what_the_compiled_core_cannot():
    """Its copy for float64 values is the compiled lattice, not one built anew."""
    values, features = SMALL.inputs()
    built = deeplab_fast.Lattice(features)
    exact = deeplab_fast.reference.permutohedral_filter(values.double(), features)
    torch.testing.assert_close(built.filter(values.double()), exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(5,), (2, 0, 3), (2, 3, 0), (0, 4)])
def test_lattice_refuses_shapes(shape, backend: str):
    with pytest.raises(ValueError, match=r"features: shape is .*, should be"):
        deeplab_fast.Lattice(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 2, 3), (1, 2, 3, 4), (2, 2, 4, 3), (2, 0, 3, 4)])
def test_lattice_refuses_values(shape, backend: str):
    built = deeplab_fast.Lattice(SMALL.inputs()[1])
    with pytest.raises(ValueError, match=r"values: shape is .*, should be \(2, C, 3, 4\) with C at least 1"):
        built.filter(torch.zeros(shape))


def test_lattice_refuses_types(backend: str):
    with pytest.raises(TypeError, match=r"features: dtype is torch\.int64, should be floating"):
        deeplab_fast.Lattice(torch.zeros(2, 3, 4, dtype=torch.int64))
    built = deeplab_fast.Lattice(SMALL.inputs()[1])
    with pytest.raises(TypeError, match=r"values: dtype is torch\.uint8, should be floating"):
        built.filter(torch.zeros(2, 1, 3, 4, dtype=torch.uint8))


def test_lattice_without_the_compiled_module(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "deeplab_fast._densecrf", None)
    monkeypatch.delattr(deeplab_fast, "_densecrf", raising=False)
    assert _core.compiled() is None
    values, features = SMALL.inputs()
    expected = deeplab_fast.reference.permutohedral_filter(values, features)
    torch.testing.assert_close(deeplab_fast.Lattice(features).filter(values), expected)


def test_lattice_on_a_gpu_calls_the_op_once_for_the_batch(monkeypatch: pytest.MonkeyPatch):
    """On fake tensors: the op is called with all images, also backwards, and no lattice is built for it."""
    calls = []

    def op(values: torch.Tensor, features: torch.Tensor, reverse: bool) -> torch.Tensor:
        calls.append((tuple(values.shape), tuple(features.shape), reverse))
        return torch.empty_like(values)

    monkeypatch.setitem(define.OPS, "permutohedral_filter", op)
    monkeypatch.setattr(lattice, "kernel_takes", lambda *_: True)
    with FakeTensorMode(), torch.device("cuda"):
        values, features = torch.rand(3, 4, 9, 9), torch.rand(3, 2, 9, 9)
        built = deeplab_fast.Lattice(features)
        outputs = [built.filter(values, reverse) for reverse in (False, True)]
    assert [(out.shape, out.device.type) for out in outputs] == [(values.shape, "cuda")] * 2
    assert calls == [((3, 4, 9, 9), (3, 2, 9, 9), reverse) for reverse in (False, True)]
    assert "_images" not in vars(built)
