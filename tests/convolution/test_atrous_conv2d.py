"""`atrous_conv2d`: accuracy, gradients, compilation, changed weights, what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from conv_samples import ATROUS_SAMPLES, AtrousSample, assert_accurate, by_name, centred, stock_atrous
from hypothesis import assume, given
from hypothesis import strategies as st
from samples import BFLOAT, HALF, LAYOUTS, assert_strides_like
from test_aspp_sum import CHANGES
from torch import Tensor

import deeplab_fast
from deeplab_fast.errors import ArgumentError, ArgumentTypeError
from deeplab_fast.ops import paths

SMALL = AtrousSample("small", channels=5, out_channels=4, size=(6, 5))


def check(sample: AtrousSample, device: str = "cpu") -> None:
    """Forward and backward of one sample against float64."""
    (x, weight, bias, stride, padding, dilation), options = sample.inputs(device)
    tensors = [x, weight, bias, options["scale"], options["residual"]]
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]

    def ours(x, weight, bias, scale, residual):
        return deeplab_fast.atrous_conv2d(
            x, weight, bias, stride, padding, dilation, scale=scale, residual=residual, relu=sample.relu
        )

    stock = stock_atrous(stride, padding, dilation, sample.relu)
    out = ours(*leaves)
    assert out.dtype == x.dtype
    assert_strides_like(out, x)
    with torch.no_grad():
        inference = ours(*tensors)
    assert_accurate(inference, stock, tensors, "result of inference")
    assert_accurate(out.detach(), stock, tensors, "result")
    grad = centred(9, *out.shape).to(out)
    out.backward(grad)
    if x.shape[0] == 0:
        assert all(leaf is None or leaf.grad.abs().sum() == 0 for leaf in leaves)
        return

    # At a result that is all but 0, rounding decides whether the ReLU is open: take our decision for all.
    open_ = None if not sample.relu else out.detach() > 0
    linear = stock_atrous(stride, padding, dilation, False)

    def gradient(which: int):
        def run(grad, *inputs):
            inputs = [None if t is None else t.detach().requires_grad_() for t in inputs]
            grad = grad if open_ is None else torch.where(open_, grad, 0)
            return torch.autograd.grad(linear(*inputs), inputs[which], grad)[0]

        return run

    for which, (name, leaf) in enumerate(zip(("x", "weight", "bias", "scale", "residual"), leaves, strict=True)):
        if leaf is not None:
            assert leaf.grad.dtype == leaf.dtype
            assert_accurate(leaf.grad, gradient(which), [grad, *tensors], f"gradient to {name}")


@pytest.mark.parametrize("sample", ATROUS_SAMPLES, ids=by_name)
def test_accurate(sample: AtrousSample, backend: str):
    check(sample)


@pytest.mark.cuda
@pytest.mark.parametrize("sample", ATROUS_SAMPLES, ids=by_name)
def test_accurate_on_a_gpu(sample: AtrousSample):
    check(sample, "cuda")


@pytest.mark.parametrize("path", [paths.ONEDNN, paths.ONEDNN_FLOAT])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT])
def test_paths_of_other_processors(path: str, layout: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    """What the table chooses where bfloat16 is fast, and backward through oneDNN alone."""
    monkeypatch.setattr("deeplab_fast.ops.cpu.atrous_conv2d.atrous_path", lambda *_: path)
    monkeypatch.setattr("deeplab_fast.ops.cpu.atrous_conv2d.atrous_backward_path", lambda *_: path)
    sample = AtrousSample("", layout=layout, dtype=dtype)
    # There oneDNN raises, and the table never chooses this path.
    if path == paths.ONEDNN and dtype == BFLOAT and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN does not compute in bfloat16 on this processor")
    check(sample)
    check(replace(sample, kernel=(1, 1), padding=0))


def every_second(vector: Tensor) -> Tensor:
    return torch.stack([vector, vector.new_full(vector.shape, math.nan)], dim=1)[:, 0]


@pytest.mark.parametrize("strided", [every_second, lambda v: v[:1].expand_as(v), lambda v: v.as_strided(v.shape, (0,))])
@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT, HALF, torch.float64])
@pytest.mark.parametrize("channels", [5, 40])  # by oneDNN, and where the dtype allows by Winograd's way
def test_vectors_of_any_stride(strided, dtype: torch.dtype, channels: int, backend: str):
    sample = AtrousSample("", channels=channels, size=(17, 18), dtype=dtype, residual=False, relu=False)
    for out_channels in (24, 1):
        (x, weight, bias, *geometry), options = replace(sample, out_channels=out_channels).inputs()
        bias, scale = strided(bias), strided(options["scale"])
        out = deeplab_fast.atrous_conv2d(x, weight, bias, *geometry, scale=scale)
        assert torch.equal(out, deeplab_fast.atrous_conv2d(x, weight, bias.clone(), *geometry, scale=scale.clone()))
        assert_accurate(out, stock_atrous(*geometry, False), [x, weight, bias, scale, None])


def test_strides_along_axes_of_length_1():
    torch.manual_seed(0)
    # Channels_last and contiguous alike, where there is one input channel.
    x, weight = torch.randn(2, 1, 11, 5), torch.randn(27).as_strided((3, 1, 3, 3), (9, 1, 3, 1))
    out = deeplab_fast.atrous_conv2d(x, weight, None, (1, 3), (1, 0))
    assert_accurate(out, stock_atrous((1, 3), (1, 0), 1, False), [x, weight, None, None, None])
    # Strides that no memory format has.
    x = torch.randn(2, 64, 1, 1).as_strided((2, 64, 1, 1), (64, 1, 7, 0))
    weight = torch.randn(1, 64, 25, 1).as_strided((1, 64, 25, 1), (3, 25, 1, 640))
    out = deeplab_fast.atrous_conv2d(x, weight, torch.randn(1), 2, 13)
    assert out.shape == (2, 1, 2, 14)
    for odd in (x, weight):
        odd.requires_grad_()
    deeplab_fast.atrous_conv2d(x, weight, None, 1, (12, 0)).sum().backward()
    torch.testing.assert_close(x.grad, weight.detach()[:, :, 12:13].expand(2, 64, 1, 1))


def test_gradient_to_a_strided_1x1_weight_with_many_threads():
    # oneDNN writes beyond its memory there, and sooner or later the process ends.
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        for channels in (2, 3, 8):
            sample = AtrousSample("", 3, channels, 17, (9, 40), (1, 1), (1, 2), 0, 1, dtype=torch.float32)
            check(sample)
            check(replace(sample, dtype=BFLOAT))
    finally:
        torch.set_num_threads(before)


sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))


@given(
    sample=st.builds(
        AtrousSample,
        name=st.just("random"),
        batch=st.integers(0, 3),
        channels=st.integers(1, 40),
        out_channels=st.integers(1, 40),
        size=sizes,
        kernel=st.sampled_from([(1, 1), (3, 3), (1, 3), (2, 2), (7, 7)]),
        stride=st.integers(1, 3),
        padding=st.integers(0, 6),
        dilation=st.integers(1, 5),
        bias=st.booleans(),
        scale=st.booleans(),
        residual=st.booleans(),
        relu=st.booleans(),
        dtype=st.sampled_from([torch.float32, torch.float32, torch.float64]),
        layout=st.sampled_from(sorted(LAYOUTS)),
    )
)
def test_random_inputs(sample: AtrousSample):
    assume(all(sample.size[a] + 2 * sample.padding > sample.dilation * (sample.kernel[a] - 1) for a in range(2)))
    check(sample)


# --- Gradients, registration, compilation --------------------------------------------------------------------------

DOUBLE = AtrousSample("", channels=3, out_channels=2, size=(5, 4), dtype=torch.float64)


@pytest.mark.parametrize(
    "sample",
    [DOUBLE, replace(DOUBLE, relu=False), replace(DOUBLE, stride=2), replace(DOUBLE, scale=False, bias=False)],
    ids=["all", "linear", "stride", "plain"],
)
@pytest.mark.parametrize("layout", sorted(LAYOUTS.keys() - {"expanded"}))  # gradcheck wants no overlap
def test_gradcheck(sample: AtrousSample, layout: str):
    (x, weight, bias, *geometry), options = replace(sample, layout=layout).inputs()
    tensors = [x, weight, bias, options["scale"], options["residual"]]

    def run(x, weight, bias, scale, residual):
        return deeplab_fast.atrous_conv2d(x, weight, bias, *geometry, scale=scale, residual=residual, relu=sample.relu)

    assert torch.autograd.gradcheck(run, [None if t is None else t.detach().requires_grad_() for t in tensors])


@pytest.mark.parametrize("needs", ["x", "weight", "bias", "scale", "residual"])
def test_only_the_gradient_that_is_needed(needs: str):
    (x, weight, bias, *geometry), options = SMALL.inputs()
    tensors = {"x": x, "weight": weight, "bias": bias, "scale": options["scale"], "residual": options["residual"]}
    tensors[needs].requires_grad_()
    deeplab_fast.atrous_conv2d(x, weight, bias, *geometry, **options).sum().backward()
    assert {name for name, tensor in tensors.items() if tensor.grad is not None} == {needs}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, BFLOAT])
@pytest.mark.parametrize("relu", [False, True])
def test_opcheck(layout: str, dtype: torch.dtype, relu: bool):
    (x, weight, bias, *_), options = replace(SMALL, layout=layout, dtype=dtype).inputs()
    both = [[1, 1], [2, 2], [2, 2]]
    ops = torch.ops.deeplab_fast
    arguments = (x.detach().requires_grad_(), weight, bias, options["scale"], options["residual"], *both, relu)
    torch.library.opcheck(ops.atrous_conv2d.default, arguments)
    grad, out = (centred(seed, *options["residual"].shape).to(dtype) for seed in (8, 9))
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(ops.atrous_conv2d_backward_relu.default, (grad, out), test_utils=tests)
    for needs in ((True, True), (True, False), (False, True)):
        arguments = (grad, x, weight, options["scale"], *both, *needs)
        torch.library.opcheck(ops.atrous_conv2d_backward.default, arguments, test_utils=tests)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiles_without_a_graph_break(layout: str, backend: str):
    torch.compiler.reset()
    (x, weight, bias, *geometry), options = AtrousSample("", layout=layout).inputs()
    compiled = torch.compile(deeplab_fast.atrous_conv2d, fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, deeplab_fast.atrous_conv2d):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        out = function(*leaves, *geometry, **options)
        out.square().sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("dtype", [BFLOAT, HALF])
def test_autocast(dtype: torch.dtype):
    (x, weight, bias, *geometry), options = SMALL.inputs()
    leaves = [t.requires_grad_() for t in (x, weight, bias, options["residual"])]
    with torch.autocast("cpu", dtype=dtype):
        out = deeplab_fast.atrous_conv2d(x, weight, bias, *geometry, **options)
    assert out.dtype == dtype
    out.float().sum().backward()
    assert all(leaf.grad.dtype == torch.float32 for leaf in leaves)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("which", ["weight", "scale"])
@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT])
def test_sees_a_changed_weight(change, which: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    # With this, weights are packed and kept where oneDNN can.
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        monkeypatch.setattr("deeplab_fast.ops.paths.computes_in_bfloat16", lambda: True)
    (x, weight, bias, *geometry), options = replace(SMALL, dtype=dtype).inputs()
    weight = torch.nn.Parameter(weight)
    scale = torch.nn.Parameter(options["scale"][:, None, None, None])
    target = weight if which == "weight" else scale

    def run():
        with torch.no_grad():
            return deeplab_fast.atrous_conv2d(x, weight, bias, *geometry, scale=scale[:, 0, 0, 0])

    first = run()
    change(target)
    second = run()
    assert not torch.equal(first, second)
    stock = stock_atrous(*geometry, relu=False)
    assert_accurate(second, stock, [x, weight.detach(), bias, scale.detach()[:, 0, 0, 0], None])


# --- What it refuses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(5, 6, 5)}, ValueError, r"x: shape is \(5, 6, 5\), should be \(N, C, H, W\)"),
        ({"x": torch.zeros(2, 5, 6, 5, dtype=torch.int8)}, TypeError, "x: dtype is torch.int8"),
        ({"weight": torch.zeros(4, 6, 3, 3)}, ValueError, r"weight: shape is \(4, 6, 3, 3\), should be \(K, 5"),
        ({"weight": torch.zeros(4, 5, 3, 3).double()}, TypeError, "weight: dtype is torch.float64"),
        ({"weight": None}, TypeError, "weight: is a NoneType, should be a tensor"),
        ({"bias": torch.zeros(5)}, ValueError, r"bias: shape is \(5,\), should be \(4,\)"),
        ({"scale": torch.zeros(4, 1)}, ValueError, r"scale: shape is \(4, 1\), should be \(4,\)"),
        ({"residual": torch.zeros(2, 4, 6, 4)}, ValueError, r"residual: .* should be \(2, 4, 6, 5\), that of the out"),
        ({"residual": torch.zeros(2, 4, 6, 5).int()}, TypeError, "residual: dtype"),
        ({"stride": 0}, ValueError, "stride: is 0, should be at least 1"),
        ({"stride": (1, 2, 3)}, ValueError, r"stride: is \(1, 2, 3\), should be one integer or two"),
        ({"stride": 1.0}, TypeError, "stride: is 1.0, should be an integer"),
        ({"dilation": (1, -2)}, ValueError, "dilation: is -2"),
        ({"padding": -1}, ValueError, "padding: is -1, should be at least 0"),
        ({"padding": "full"}, ValueError, "padding: is 'full', should be integers, 'same' or 'valid'"),
        ({"padding": "same", "stride": 2, "residual": None}, ValueError, "padding: 'same' needs stride 1"),
        ({"padding": 0, "dilation": 3}, ValueError, "x: shape is .* too small for weight"),
    ],
)
def test_refuses(change: dict, error: type, message: str):
    (x, weight, bias, stride, padding, dilation), options = SMALL.inputs()
    arguments = {
        "x": x, "weight": weight, "bias": bias, "stride": stride, "padding": padding, "dilation": dilation,
    } | options | change  # fmt: skip
    with pytest.raises(error, match=message) as caught:
        deeplab_fast.atrous_conv2d(**arguments)
    assert isinstance(caught.value, ArgumentError | ArgumentTypeError)
    assert message.startswith(caught.value.name)


def test_refuses_a_tensor_on_another_device():
    (x, weight, bias, *geometry), _ = SMALL.inputs()
    with pytest.raises(ValueError, match="weight: device is meta, should be cpu, that of x"):
        deeplab_fast.atrous_conv2d(x, weight.to("meta"), bias, *geometry)
    with pytest.raises(ValueError, match="residual: device is meta"):
        deeplab_fast.atrous_conv2d(x, weight, bias, *geometry, residual=torch.empty(2, 4, 6, 5, device="meta"))
