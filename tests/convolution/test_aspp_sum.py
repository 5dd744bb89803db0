"""`aspp_sum`: accuracy on every path, gradients, compilation, packed weights, what it refuses."""

from __future__ import annotations

import pytest
import torch
from compiled import require_kernels
from conv_samples import ASPP_SAMPLES, AsppSample, assert_accurate, by_name, centred, stock_aspp
from hypothesis import given
from hypothesis import strategies as st
from samples import BFLOAT, HALF, LAYOUTS, assert_strides_like

import deeplab_fast
from deeplab_fast.ops import paths

SMALL = AsppSample("small", channels=5, classes=3, size=(6, 5), rates=(1, 3))
BIG_INPUT = 4e5  # elements times classes, above which stock's 16-bit convolution takes too long for a test


@pytest.fixture(params=["taps", "gemm", "reference"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each path in turn, whatever the table would choose."""
    if request.param != paths.REFERENCE:
        require_kernels()
    chosen = paths.aspp_path

    def choose(x: torch.Tensor) -> str:
        impossible = x.dtype == torch.float64 or (x.dtype == HALF and request.param == paths.GEMM)
        return chosen(x) if impossible else request.param

    monkeypatch.setattr("deeplab_fast.ops.cpu.aspp_sum.aspp_path", choose)
    return request.param


def check(sample: AsppSample, device: str = "cpu") -> None:
    """Forward and backward of one sample against float64."""
    x, weights, bias, rates = sample.inputs(device)
    leaves = [t.detach().requires_grad_() for t in (x, *weights)]
    own_bias = None if bias is None else bias.detach().requires_grad_()
    out = deeplab_fast.aspp_sum(leaves[0], leaves[1:], own_bias, rates)
    assert out.dtype == x.dtype
    assert_strides_like(out, x)
    stock = stock_aspp(rates)
    assert_accurate(out.detach(), stock, [x, bias, *weights], "result")
    if x.shape[0] == 0:
        out.sum().backward()
        assert all(leaf.grad.abs().sum() == 0 for leaf in leaves)
        return

    grad = centred(9, *out.shape).to(out)
    out.backward(grad)

    def gradient(which: int):
        def run(grad, x, bias, *weights):
            inputs = [t.detach().requires_grad_() for t in (x, *weights)]
            own = None if bias is None else bias.detach().requires_grad_()
            result = stock(inputs[0], own, *inputs[1:])
            return torch.autograd.grad(result, own if which < 0 else inputs[which], grad)[0]

        return run

    inputs = [grad, x, bias, *weights]
    for which, leaf in enumerate(leaves):
        assert leaf.grad.dtype == leaf.dtype
        assert_accurate(leaf.grad, gradient(which), inputs, f"gradient {which}")
    if own_bias is not None:
        assert_accurate(own_bias.grad, gradient(-1), inputs, "gradient to bias")


def is_quick(sample: AsppSample) -> bool:
    work = sample.batch * sample.channels * sample.size[0] * sample.size[1] * sample.classes
    return sample.dtype not in (HALF, BFLOAT) or work < BIG_INPUT or sample.name == "bfloat16_deeplab"


@pytest.mark.parametrize("sample", [s for s in ASPP_SAMPLES if is_quick(s)], ids=by_name)
def test_accurate(sample: AsppSample, path: str):
    check(sample)


@pytest.mark.cuda
@pytest.mark.parametrize("sample", ASPP_SAMPLES, ids=by_name)
def test_accurate_on_a_gpu(sample: AsppSample):
    check(sample, "cuda")


# Of the others, torch's own products make sums that depend on the number of threads.
@pytest.mark.parametrize("path", [paths.TAPS], indirect=True)
@pytest.mark.parametrize("threads", [1, 3])
def test_bitwise_the_same_for_any_number_of_threads(threads: int, path: str):
    x, weights, bias, rates = AsppSample("", channels=70, size=(23, 17), classes=21, rates=(3, 6, 9, 12)).inputs()
    leaf = x.clone().requires_grad_()
    own = [w.clone().requires_grad_() for w in weights]
    results = []
    before = torch.get_num_threads()
    for count in (2, threads):
        torch.set_num_threads(count)
        try:
            out = deeplab_fast.aspp_sum(leaf, own, bias, rates)
            results.append([out, *torch.autograd.grad(out, [leaf, *own], torch.ones_like(out))])
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))


@given(
    sample=st.builds(
        AsppSample,
        name=st.just("random"),
        batch=st.integers(0, 3),
        channels=st.integers(1, 40),
        classes=st.integers(1, 30),
        size=sizes,
        rates=st.lists(st.integers(1, 14), min_size=1, max_size=5).map(tuple),
        kernel=st.sampled_from([(1, 1), (3, 3), (1, 3), (5, 1), (5, 3)]),
        bias=st.booleans(),
        dtype=st.sampled_from([torch.float32, torch.float32, torch.float64, BFLOAT]),
        layout=st.sampled_from(sorted(LAYOUTS)),
    )
)
def test_random_inputs(sample: AsppSample):
    check(sample)


# --- Gradients, registration, compilation --------------------------------------------------------------------------


@pytest.mark.parametrize("layout", sorted(LAYOUTS.keys() - {"expanded"}))  # gradcheck wants no overlap
def test_gradcheck(layout: str):
    sample = AsppSample("", channels=3, classes=2, size=(5, 4), rates=(1, 3), dtype=torch.float64, layout=layout)
    x, weights, bias, rates = sample.inputs()

    def run(x, bias, *weights):
        return deeplab_fast.aspp_sum(x, weights, bias, rates)

    assert torch.autograd.gradcheck(run, [t.detach().requires_grad_() for t in (x, bias, *weights)])


@pytest.mark.parametrize("needs", ["x", "weights", "one weight", "bias"])
def test_only_the_gradients_that_are_needed(needs: str):
    x, weights, bias, rates = SMALL.inputs()
    leaves = {"x": [x], "weights": weights, "one weight": [weights[1]], "bias": [bias]}[needs]
    for leaf in leaves:
        leaf.requires_grad_()
    deeplab_fast.aspp_sum(x, weights, bias, rates).sum().backward()
    for tensor in (x, bias, *weights):
        assert (tensor.grad is not None) == any(tensor is leaf for leaf in leaves)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, BFLOAT])
def test_opcheck(layout: str, dtype: torch.dtype, path: str):
    x, weights, bias, rates = AsppSample("", channels=4, size=(5, 4), rates=(1, 3), dtype=dtype, layout=layout).inputs()
    grad = centred(9, 2, 5, 5, 4).to(dtype)
    ops = torch.ops.deeplab_fast
    torch.library.opcheck(ops.aspp_sum.default, (x.detach().requires_grad_(), weights, bias, rates))
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(ops.aspp_sum_backward_x.default, (grad, weights, rates), test_utils=tests)
    torch.library.opcheck(ops.aspp_sum_backward_weights.default, (grad, x, weights, rates), test_utils=tests)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiles_without_a_graph_break(layout: str, path: str):
    torch.compiler.reset()
    x, weights, bias, rates = AsppSample("", layout=layout).inputs()
    compiled = torch.compile(deeplab_fast.aspp_sum, fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, deeplab_fast.aspp_sum):
        leaves = [t.clone().requires_grad_() for t in (x, bias, *weights)]
        out = function(leaves[0], leaves[2:], leaves[1], rates)
        out.square().sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("dtype", [BFLOAT, HALF])
def test_autocast(dtype: torch.dtype):
    x, weights, bias, rates = SMALL.inputs()
    leaves = [t.requires_grad_() for t in (x, bias, *weights)]
    with torch.autocast("cpu", dtype=dtype):
        out = deeplab_fast.aspp_sum(x, weights, bias, rates)
    assert out.dtype == dtype
    out.float().sum().backward()
    assert all(leaf.grad.dtype == torch.float32 for leaf in leaves)
    exact = stock_aspp(rates)(*(t.detach().double() for t in (x, bias, *weights)))
    assert (out.detach().double() - exact).abs().max() < 20 * torch.finfo(dtype).eps


# --- Packed weights ------------------------------------------------------------------------------------------------


def change_in_place(weight: torch.nn.Parameter) -> None:
    with torch.no_grad():
        weight.mul_(1.5)


def change_data(weight: torch.nn.Parameter) -> None:
    weight.data[0, 0, 0, 0] += 1


def change_by_optimizer(weight: torch.nn.Parameter) -> None:
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.1).step()


def change_by_loading(weight: torch.nn.Parameter) -> None:
    module = torch.nn.ParameterList([weight])
    module.load_state_dict({"0": torch.ones_like(weight)})


def change_storage(weight: torch.nn.Parameter) -> None:
    weight.data = torch.full_like(weight, 0.5)


CHANGES = [change_in_place, change_data, change_by_optimizer, change_by_loading, change_storage]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_sees_a_changed_weight(change, mode, path: str):
    x, weights, bias, rates = SMALL.inputs()
    weights = [torch.nn.Parameter(weight) for weight in weights]
    with mode():
        first = deeplab_fast.aspp_sum(x, weights, bias, rates)
        assert torch.equal(first, deeplab_fast.aspp_sum(x, weights, bias, rates))
    change(weights[1])
    with mode():
        second = deeplab_fast.aspp_sum(x, weights, bias, rates)
    assert not torch.equal(first, second)
    torch.testing.assert_close(second, stock_aspp(rates)(x, bias, *(w.detach() for w in weights)))


def test_sees_a_changed_weight_of_inference_mode(path: str):
    with torch.inference_mode():
        x, weights, bias, rates = SMALL.inputs()
        first = deeplab_fast.aspp_sum(x, weights, bias, rates)
        weights[0] *= 2
        second = deeplab_fast.aspp_sum(x, weights, bias, rates)
        assert not torch.equal(first, second)
        torch.testing.assert_close(second, stock_aspp(rates)(x, bias, *weights))


def test_keeps_nothing_of_weights_that_are_gone(path: str):
    from deeplab_fast.ops import packing

    before = len(packing._kept)
    x, weights, bias, rates = SMALL.inputs()
    with torch.no_grad():
        deeplab_fast.aspp_sum(x, weights, bias, rates)
    if path == paths.TAPS:
        assert len(packing._kept) == before + 1
    del weights
    assert len(packing._kept) == before


def test_packed_weights_serve_every_size(path: str):
    from deeplab_fast.ops import packing

    _, weights, bias, rates = SMALL.inputs()
    with torch.no_grad():
        deeplab_fast.aspp_sum(torch.rand(1, 5, 4, 4), weights, bias, rates)
        kept = len(packing._kept)
        for size in ((7, 9), (1, 1), (20, 3)):
            x = torch.rand(2, 5, *size)
            result = deeplab_fast.aspp_sum(x, weights, bias, rates)
            torch.testing.assert_close(result, stock_aspp(rates)(x, bias, *weights))
    assert len(packing._kept) == kept


# --- What it refuses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": 3}, TypeError, "x: is a int"),
        ({"x": torch.zeros(2, 5, 6)}, ValueError, r"x: shape is \(2, 5, 6\), should be \(N, C, H, W\)"),
        ({"x": torch.zeros(2, 5, 0, 6)}, ValueError, r"x: shape is \(2, 5, 0, 6\)"),
        ({"x": torch.zeros(2, 5, 6, 5, dtype=torch.int32)}, TypeError, "x: dtype is torch.int32"),
        ({"x": torch.zeros(2, 4, 6, 5)}, ValueError, r"weights\[0\]: shape is \(3, 5, 3, 3\), should be \(K, 4, kh"),
        ({"x": torch.zeros(2, 5, 6, 5).double()}, TypeError, r"weights\[0\]: dtype is torch.float32, should be"),
        ({"x": torch.zeros(2, 5, 6, 5, device="meta")}, ValueError, r"weights\[0\]: device is cpu, should be meta"),
        ({"weights": []}, TypeError, "weights: is a list, should be a sequence of tensors"),
        ({"weights": torch.zeros(2, 3, 5, 3, 3)}, TypeError, "weights: is a Tensor"),
        ({"weights": [torch.zeros(3, 5, 3, 3)] * 3}, ValueError, "rates: is .*one rate for each of the 3 weights"),
        ({"weights": [torch.zeros(3, 5, 3, 3), torch.zeros(4, 5, 3, 3)]}, ValueError, r"weights\[1\]: has 4 output"),
        ({"weights": [torch.zeros(3, 5, 2, 3)] * 2}, ValueError, r"weights\[0\]: .*should be odd"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias: shape is \(4,\), should be \(3,\)"),
        ({"bias": torch.zeros(3, dtype=torch.int64)}, TypeError, "bias: dtype"),
        ({"rates": (0, 1)}, ValueError, "rates: is 0, should be at least 1"),
        ({"rates": (1.5, 1)}, TypeError, "rates: is 1.5, should be an integer"),
        ({"rates": 3}, ValueError, "rates: is 3"),
        ({"rates": (True, 1)}, TypeError, "rates: is True"),
    ],
)
def test_refuses(change: dict, error: type, message: str):
    x, weights, bias, rates = SMALL.inputs()
    arguments = {"x": x, "weights": weights, "bias": bias, "rates": rates} | change
    with pytest.raises(error, match=message):
        deeplab_fast.aspp_sum(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        lambda x, w, out: (x, w[0].flatten(), None, [3, 3], [1, 1], out),  # not what pack returns
        lambda x, w, out: (x, torch.zeros(3), None, [2, 3], [1, 1], out),  # even kernel
        lambda x, w, out: (x, torch.zeros(3), None, [3, 3], [0, 1], out),  # rate 0
        lambda x, w, out: (x, torch.zeros(3), None, [3, 3], [2**40, 1], out),
        lambda x, w, out: (x, torch.zeros(3), None, [], [], out),
        lambda x, w, out: (x[0], torch.zeros(3), None, [3, 3], [1, 1], out),
        lambda x, w, out: (x.double(), torch.zeros(3), None, [3, 3], [1, 1], out),
        lambda x, w, out: (x, torch.zeros(3), None, [3, 3], [1, 1], out[..., :2]),
        lambda x, w, out: (x, torch.zeros(3), torch.zeros(7), [3, 3], [1, 1], out),
    ],
)
def test_the_compiled_kernel_checks_before_it_touches_memory(arguments):
    x, weights, _, _ = SMALL.inputs()
    out = torch.empty(2, 3, 6, 5)
    with pytest.raises((RuntimeError, ValueError)):
        torch.ops.deeplab_fast.aspp_sum_cpu(*arguments(x, weights, out))
