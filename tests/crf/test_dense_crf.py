"""`dense_crf`: accuracy, forms of its arguments, compilation, what it refuses."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from samples import CRF_SAMPLES, CRFSample, Kernel, assert_crf_accurate, by_name, positions, random

import deeplab_fast
from deeplab_fast.ops import define

SMALL = CRFSample("small", size=(3, 4), labels=3)


def infer(unary, features, compat, iterations, normalization, **options):
    return deeplab_fast.dense_crf(unary, features, compat, iterations, normalization, **options)


@pytest.mark.parametrize("sample", CRF_SAMPLES, ids=by_name)
def test_accurate(sample: CRFSample, backend: str):
    inputs = sample.inputs()
    assert_crf_accurate(infer(*inputs), *inputs)


@pytest.mark.cuda
@pytest.mark.parametrize("sample", CRF_SAMPLES, ids=by_name)
def test_accurate_on_a_gpu(sample: CRFSample):
    inputs = sample.inputs("cuda")
    assert_crf_accurate(infer(*inputs), *inputs)


def test_inputs_are_left_alone(backend: str):
    unary, features, compat, *rest = SMALL.inputs()
    tensors = [unary, *features, *compat]
    before = [tensor.clone() for tensor in tensors]
    infer(unary, features, compat, *rest)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("compat", [2.0, "vector", "matrix"])
def test_autocast_changes_nothing(compat: float | str, backend: str):
    inputs = CRFSample("", size=(3, 4), kernels=(Kernel(compat=compat),)).inputs()
    expected = infer(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(infer(*inputs), expected)


@pytest.mark.parametrize("labels", [2, 3, 21])
def test_labels_are_treated_alike(labels: int, backend: str):
    """Two labels of one energy keep one probability, though attraction magnifies the least difference of theirs."""
    unary, features = 2 * random(1, 1, labels, 9, 9), positions((9, 9), 1, 2, 3)
    unary[:, 0] = unary[:, 1]
    Q = infer(unary, features, 10.0, 10, "symmetric")
    torch.testing.assert_close(Q[:, 0], Q[:, 1], rtol=1e-6, atol=0)


def test_infinite_energy_forbids_a_label(backend: str):
    unary, *rest = SMALL.inputs()
    unary[:, 1, 1] = float("inf")
    Q = infer(unary, *rest)
    assert (Q[:, 1, 1] == 0).all()
    torch.testing.assert_close(Q.sum(dim=1), torch.ones_like(Q[:, 0]))
    unary[unary.isinf()] = 1e4
    torch.testing.assert_close(infer(unary, *rest), Q)


@pytest.mark.parametrize("collapse", [1e-6, 1e-4, 1e-2])
def test_collapse_is_bounded(collapse: float, backend: str):
    """Merging labels changes no probability by more than about the one below which they are proven to stay."""
    unary = 5 * random(1, 1, 60, 15, 16)
    unary[:, 5:] += 7
    features = positions((15, 16), 1, 2, 5)
    exact = infer(unary, features, 3.0, 10, "symmetric")
    merged = infer(unary, features, 3.0, 10, "symmetric", collapse=collapse)
    assert (merged - exact).abs().max() <= collapse


# --- Forms of arguments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [-2.5, [0.5, -1.0, 2.0], [[0.0, 1, 2], [3, 0, 1], [0, 0, 1]]])
def test_compat_may_be_tensor_or_array(values, backend: str):
    unary, features = SMALL.inputs()[0], positions((3, 4), 2, 2, 3)
    expected = infer(unary, features, torch.tensor(values), 3, 3)
    forms = [torch.tensor(values).double(), np.array(values), np.array(values, np.float32), [values], (values,)]
    if isinstance(values, float):
        forms += [values, np.float64(values), np.float32(values)]
    for compat in forms:
        assert torch.equal(infer(unary, features, compat, 3, 3), expected)
        assert torch.equal(infer(unary, [features], compat, 3, (3,)), expected)


def test_matrix_is_symmetrised(backend: str):
    unary, features = SMALL.inputs()[0], positions((3, 4), 2, 2, 3)
    matrix = torch.tensor([[0.0, 4, 1], [0, 0, 2], [3, 0, 0]])
    expected = infer(unary, features, (matrix + matrix.t()) / 2, 3, 3)
    torch.testing.assert_close(infer(unary, features, matrix, 3, 3), expected)


@pytest.mark.parametrize(("name", "number"), [("none", 0), ("before", 1), ("after", 2), ("symmetric", 3)])
def test_normalization_by_name_and_number(name: str, number: int, backend: str):
    from deeplab_fast.pydensecrf.densecrf import NormalizationType

    unary, features = SMALL.inputs()[0], [positions((3, 4), 2, d, 3) for d in (2, 3)]
    expected = infer(unary, features, [1.0, 2.0], 3, [number, number])
    for form in (name, number, [name, number], NormalizationType(number)):
        assert torch.equal(infer(unary, features, [1.0, 2.0], 3, form), expected)


def test_normalization_is_symmetric_unless_told(backend: str):
    unary, features = SMALL.inputs()[0], positions((3, 4), 2, 2, 3)
    expected = infer(unary, features, 2.0, 3, "symmetric")
    assert torch.equal(deeplab_fast.dense_crf(unary, features, 2.0, 3), expected)


def test_same_call_as_the_reference():
    unary, features = SMALL.inputs()[0], positions((3, 4), 2, 2, 3)
    arguments = dict(unary=unary, features=features, compat=2.0, iterations=3, normalization="after", collapse=0.0)
    result = deeplab_fast.dense_crf(**arguments)
    torch.testing.assert_close(result, deeplab_fast.reference.dense_crf(**arguments))


# --- Registration, compilation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", CRF_SAMPLES, ids=by_name)
def test_opcheck_schema_and_fake(sample: CRFSample, backend: str):
    op = torch.ops.deeplab_fast.dense_crf.default
    torch.library.opcheck(op, sample.inputs(), test_utils=("test_schema", "test_faketensor"))


def test_opcheck(backend: str):
    op = torch.ops.deeplab_fast.dense_crf.default
    torch.library.opcheck(op, SMALL.inputs())
    torch.library.opcheck(op, (*SMALL.inputs(), 0.01))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiles_without_a_graph_break(dtype: torch.dtype, layout: str, backend: str):
    torch.compiler.reset()
    inputs = CRFSample("", size=(3, 4), dtype=dtype, layout=layout).inputs()
    compiled = torch.compile(infer, fullgraph=True, backend="aot_eager")
    Q = compiled(*inputs)
    assert torch.equal(Q, infer(*inputs))
    assert Q.stride() == inputs[0].stride()


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_compiles_with_inductor():
    unary, features = SMALL.inputs()[0], positions((3, 4), 2, 2, 3)

    def refine(prob: torch.Tensor) -> torch.Tensor:
        return deeplab_fast.dense_crf(-prob.log(), [features, features / 2], [3.0, 1.0], 4, "after").argmax(dim=1)

    prob = torch.softmax(-unary, dim=1)
    assert torch.equal(torch.compile(refine, fullgraph=True)(prob), refine(prob))


# --- Errors --------------------------------------------------------------------------------------------------------

GOOD = {"unary": (2, 3, 4, 5), "features": (2, 2, 4, 5), "compat": 3.0, "iterations": 2, "normalization": 3}


def call(**changes) -> torch.Tensor:
    arguments = GOOD | changes
    for name in ("unary", "features"):
        if isinstance(arguments[name], tuple):
            arguments[name] = torch.zeros(arguments[name])
    return deeplab_fast.dense_crf(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unary": (2, 3)}, r"unary: shape is \(2, 3\), should be \(N, K, \*S\)"),
        (
            {"unary": (2, 0, 4, 5)},
            r"unary: shape is \(2, 0, 4, 5\), should be .* with K and every axis of S at least 1",
        ),
        ({"unary": (2, 3, 4, 0)}, r"unary: shape is \(2, 3, 4, 0\), should be .* every axis of S at least 1"),
        ({"features": (1, 2, 4, 5)}, r"features: shape is \(1, 2, 4, 5\), should be \(2, D, 4, 5\)"),
        ({"features": (2, 2, 5, 4)}, r"features: shape is \(2, 2, 5, 4\), should be \(2, D, 4, 5\)"),
        ({"features": (2, 0, 4, 5)}, r"features: .* with D at least 1"),
        ({"features": [torch.zeros(2, 1, 4, 5), torch.zeros(2, 1, 4)]}, r"features\[1\]: shape is \(2, 1, 4\)"),
        ({"compat": torch.zeros(4)}, r"compat: shape is \(4,\), should be \(\), \(3,\) or \(3, 3\) for 3 labels"),
        ({"compat": torch.zeros(3, 4)}, r"compat: shape is \(3, 4\), should be .* for 3 labels"),
        ({"compat": torch.zeros(3, 3, 3)}, r"compat: shape is \(3, 3, 3\), should be .* for 3 labels"),
        ({"compat": [1.0, 2.0, 3.0]}, r"compat: has 3 entries for 1 features, .* a vector should be a tensor"),
        ({"compat": []}, r"compat: has 0 entries for 1 features, should have one for each"),
        ({"normalization": [3, 3]}, r"normalization: has 2 entries for 1 features, should have one for each"),
        ({"normalization": 4}, r"normalization: is 4, should be one of none, before, after, symmetric, or 0 to 3"),
        ({"normalization": -1}, r"normalization: is -1, should be one of none, before"),
        ({"normalization": "both"}, r"normalization: is 'both', should be one of none, before"),
        ({"iterations": -1}, r"iterations: is -1, should be 0 or more"),
        ({"collapse": -0.1}, r"collapse: is -0\.1, should be at least 0 and less than 1"),
        ({"collapse": 1.0}, r"collapse: is 1\.0, should be at least 0 and less than 1"),
        ({"collapse": float("nan")}, r"collapse: is nan, should be at least 0 and less than 1"),
    ],
    ids=str,
)
def test_refuses_values(changes: dict, message: str, backend: str):
    with pytest.raises(ValueError, match=message):
        call(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unary": torch.zeros(2, 3, 4, 5, dtype=torch.int32)}, r"unary: dtype is torch\.int32, should be floating"),
        ({"unary": np.zeros((2, 3, 4, 5))}, r"unary: is a ndarray, should be a tensor"),
        ({"features": torch.zeros(2, 2, 4, 5, dtype=torch.uint8)}, r"features: dtype is torch\.uint8"),
        ({"features": [None]}, r"features: is a NoneType, should be a tensor"),
        ({"compat": torch.zeros((), dtype=torch.int64)}, r"compat: dtype is torch\.int64, should be floating"),
        ({"compat": "potts"}, r"compat: is 'potts', should be a number, a vector or a matrix"),
        ({"iterations": 2.0}, r"iterations: is 2\.0, should be an integer"),
        ({"iterations": True}, r"iterations: is True, should be an integer"),
        ({"iterations": "5"}, r"iterations: is '5', should be an integer"),
    ],
    ids=str,
)
def test_refuses_types(changes: dict, message: str, backend: str):
    with pytest.raises(TypeError, match=message):
        call(**changes)


@pytest.mark.parametrize("name", ["features", "compat"])
def test_refuses_a_mix_of_devices(name: str):
    away = {"features": torch.zeros(2, 2, 4, 5, device="meta"), "compat": torch.zeros(3, device="meta")}[name]
    with pytest.raises(ValueError, match=f"{name}: device is meta, should be cpu, that of unary"):
        call(**{name: away})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_refuses_features_that_are_not_finite(value: float, backend: str):
    features = torch.zeros(2, 2, 4, 5)
    features[1, 1, 3, 0] = value
    with pytest.raises(ValueError, match=r"features: .* NaN or infinite value"):
        call(features=features)


@pytest.mark.parametrize("value", [3e4, -3e4, 1e25])
def test_refuses_keys_beyond_16_bits(value: float, backend: str):
    features = torch.zeros(2, 2, 4, 5)
    features[1, 0, 3, 0] = value
    with pytest.raises(ValueError, match="features: key range overflow"):
        call(features=features)


def test_says_what_was_wrong_where_torch_loses_the_message(monkeypatch: pytest.MonkeyPatch):
    def kernel(*_) -> torch.Tensor:
        raise RuntimeError("dense_crf_cpu(...) API call failed")

    monkeypatch.setitem(define.OPS, "dense_crf", kernel)
    with pytest.raises(RuntimeError, match="API call failed"):
        call()
    with pytest.raises(ValueError, match="features: there are NaN or infinite values"):
        call(features=torch.full((2, 2, 4, 5), float("nan")))
