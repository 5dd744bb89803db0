"""`upsample_argmax` and `upsample_softmax`: accuracy, gradient, ties and NaN, compilation, memory, what they refuse."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from compiled import require_kernels
from conv_samples import UPSAMPLE_SAMPLES, UpsampleSample, assert_accurate, by_name, centred, stock_upsample
from hypothesis import given
from hypothesis import strategies as st
from places import INSTRUCTION_SETS
from samples import LAYOUTS
from torch import Tensor
from upsample_checks import (
    assert_argmax_accurate,
    assert_gradient_accurate,
    assert_softmax_accurate,
    stock_gradient,
)

import deeplab_fast
from deeplab_fast import _native, reference
from deeplab_fast.ops import define

SMALL = UpsampleSample("small", classes=3, size=(4, 3), to=(9, 11))
ARGMAX, SOFTMAX = deeplab_fast.upsample_argmax, deeplab_fast.upsample_softmax
samples = pytest.mark.parametrize("sample", UPSAMPLE_SAMPLES, ids=by_name)


@samples
def test_argmax_accurate(sample: UpsampleSample, backend: str):
    logits, size = sample.inputs()
    assert_argmax_accurate(ARGMAX(logits, size), logits, size)


@samples
def test_softmax_accurate(sample: UpsampleSample, backend: str):
    logits, size = sample.inputs()
    assert_softmax_accurate(SOFTMAX(logits, size), logits, size)


@samples
def test_gradient_accurate(sample: UpsampleSample, backend: str):
    assert_gradient_accurate(*sample.inputs())


@pytest.mark.cuda
@samples
def test_accurate_on_a_gpu(sample: UpsampleSample):
    logits, size = sample.inputs("cuda")
    assert_argmax_accurate(ARGMAX(logits, size), logits, size)
    assert_softmax_accurate(SOFTMAX(logits, size), logits, size)
    assert_gradient_accurate(logits, size)


@given(
    st.builds(
        UpsampleSample,
        name=st.just("random"),
        batch=st.integers(0, 3),
        classes=st.one_of(st.integers(1, 5), st.integers(1, 40)),
        size=st.tuples(st.integers(1, 20), st.integers(1, 40)),
        to=st.tuples(st.integers(1, 40), st.integers(1, 90)),
        dtype=st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64]),
        layout=st.sampled_from(sorted(LAYOUTS)),
    )
)
def test_random_inputs(sample: UpsampleSample):
    logits, size = sample.inputs()
    assert_argmax_accurate(ARGMAX(logits, size), logits, size)
    assert_softmax_accurate(SOFTMAX(logits, size), logits, size)
    assert_gradient_accurate(logits, size)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_accurate_on_every_instruction_set(isa: str):
    environment = {**os.environ, "DEEPLAB_FAST_ISA": isa}
    ask = [sys.executable, "-c", "from deeplab_fast import _densecrf; _densecrf.isa()"]
    if not _native.load() or subprocess.run(ask, env=environment, capture_output=True, check=False).returncode != 0:
        pytest.skip(f"this processor or build has no {isa}")
    command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", __file__]
    chosen = ["-k", "kernels and (accurate or largest)"]
    run = subprocess.run([*command, *chosen], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout


# --- Ties, NaN, infinities -----------------------------------------------------------------------------------------


def test_first_class_wins_among_equals(backend: str):
    logits, size = SMALL.inputs()
    twice = torch.cat([logits, logits, logits[:, :1]], dim=1)
    assert torch.equal(ARGMAX(twice, size), ARGMAX(logits, size))
    assert torch.equal(ARGMAX(torch.zeros(1, 50, 5, 9), 40), torch.zeros(1, 40, 40, dtype=torch.int64))


@pytest.mark.parametrize("size", [(40, 64), (5, 8), (13, 100)])
def test_maps_of_whole_numbers(size: tuple[int, int], backend: str):
    """Label pictures as scores of 0 and 1, where nearly all classes are equal nearly everywhere."""
    labels = torch.randint(0, 20, (2, 5, 8), generator=torch.Generator().manual_seed(0))
    logits = torch.nn.functional.one_hot(labels, 30).permute(0, 3, 1, 2).float()
    chosen = ARGMAX(logits, size)
    assert_argmax_accurate(chosen, logits, size)
    assert chosen.max() < 20
    if size == (40, 64):  # weights are multiples of 1/16: nothing is rounded
        assert torch.equal(chosen, stock_upsample(size)(logits).argmax(dim=1))
        whole = torch.randint(-3, 4, (2, 30, 5, 8), generator=torch.Generator().manual_seed(1)).float()
        assert torch.equal(ARGMAX(whole, size), stock_upsample(size)(whole).argmax(dim=1))
    assert torch.equal(ARGMAX(logits, (5, 8)), labels)


@pytest.mark.parametrize("size", [(40, 64), (5, 8), (3, 100)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(size: tuple[int, int], value: float, backend: str):
    """They count as in interpolate and torch.argmax (a NaN is the largest) or torch.softmax (NaN in all classes)."""
    logits = 8 * centred(1, 2, 30, 5, 8)
    logits[0, 7, 2, 3] = value
    logits[0, 20, 2, 4] = value
    logits[1, 3] = value
    scores = stock_upsample(size)(logits)
    finite = scores.masked_fill(~scores.isfinite(), 0)
    chosen, probabilities = ARGMAX(logits, size), SOFTMAX(logits, size)
    clear = scores.isnan().any(dim=1) | (finite.topk(2, dim=1).values.diff(dim=1)[:, 0] < -1e-3)
    assert clear.float().mean() > 0.9
    assert torch.equal(chosen[clear], scores.argmax(dim=1)[clear])
    torch.testing.assert_close(probabilities, scores.softmax(dim=1), equal_nan=True, rtol=1e-4, atol=1e-5)


def test_pixels_without_a_finite_score(backend: str):
    logits = torch.full((1, 4, 3, 3), -float("inf"))
    scores = stock_upsample(7)(logits)
    assert torch.equal(ARGMAX(logits, 7), scores.argmax(dim=1))
    assert SOFTMAX(logits, 7).isnan().all()


def test_scores_far_apart(backend: str):
    logits = centred(1, 1, 12, 6, 7) * torch.tensor([1e-30, 1, 1e3, 1e30]).repeat(3)[:, None, None]
    assert_argmax_accurate(ARGMAX(logits, (50, 40)), logits, (50, 40))
    torch.testing.assert_close(SOFTMAX(logits, (50, 40)).sum(dim=1), torch.ones(1, 50, 40))


# --- Registration, compilation and gradient ------------------------------------------------------------------------


def test_inputs_are_left_alone(backend: str):
    logits, size = SMALL.inputs()
    before = logits.clone()
    ARGMAX(logits, size)
    SOFTMAX(logits, size)
    assert torch.equal(logits, before)


def test_autocast_changes_nothing(backend: str):
    logits, size = SMALL.inputs()
    expected = ARGMAX(logits, size), SOFTMAX(logits, size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ARGMAX(logits, size), expected[0])
        assert torch.equal(SOFTMAX(logits, size), expected[1])


def test_gradcheck():
    logits, size = SMALL.inputs()
    assert torch.autograd.gradcheck(lambda x: SOFTMAX(x, size), logits.double().requires_grad_())
    assert torch.autograd.gradcheck(lambda x: SOFTMAX(x, (3, 2)), logits.double().requires_grad_())


def test_no_gradient_through_argmax():
    logits, size = SMALL.inputs()
    assert not ARGMAX(logits.requires_grad_(), size).requires_grad


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("out_layout", ["contiguous", "channels_last"])
def test_gradient_of_any_layout(layout: str, out_layout: str, backend: str):
    sample = UpsampleSample("", classes=13, layout=out_layout)
    logits, size = sample.inputs()
    leaf = logits.detach().requires_grad_()
    out = SOFTMAX(leaf, size)
    grad = LAYOUTS[layout](centred(8, *out.shape))
    (result,) = torch.autograd.grad(out, leaf, grad)
    assert_accurate(result, stock_gradient(size), [logits, grad])
    assert result.is_contiguous(memory_format=define.format_of(logits))


def test_gradient_of_another_dtype(backend: str):
    logits, (height, width) = SMALL.inputs()
    out = SOFTMAX(logits.bfloat16(), (height, width))
    grad = centred(8, *out.shape)
    result = torch.ops.deeplab_fast.upsample_softmax_backward(grad, out, *logits.shape[2:])
    assert result.dtype == torch.bfloat16
    assert_accurate(result, stock_gradient((height, width)), [logits.bfloat16(), grad.bfloat16()])


@samples
def test_opcheck_schema_and_fake(sample: UpsampleSample, backend: str):
    logits, _ = sample.inputs()
    size = replace(sample, to=sample.to if isinstance(sample.to, tuple) else (sample.to, sample.to)).to
    ops, tests = torch.ops.deeplab_fast, ("test_schema", "test_faketensor")
    out = SOFTMAX(logits, size)
    torch.library.opcheck(ops.upsample_argmax.default, (logits, *size), test_utils=tests)
    torch.library.opcheck(ops.upsample_softmax.default, (logits, *size), test_utils=tests)
    arguments = (out, out, *logits.shape[2:])
    torch.library.opcheck(ops.upsample_softmax_backward.default, arguments, test_utils=tests)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_opcheck(layout: str):
    logits, size = replace(SMALL, layout=layout).inputs()
    torch.library.opcheck(torch.ops.deeplab_fast.upsample_argmax.default, (logits, *size))
    torch.library.opcheck(torch.ops.deeplab_fast.upsample_softmax.default, (logits.requires_grad_(), *size))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiles_without_a_graph_break(dtype: torch.dtype, layout: str, backend: str):
    torch.compiler.reset()
    logits, size = replace(SMALL, dtype=dtype, layout=layout).inputs()

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        return ARGMAX(x, size), SOFTMAX(x, size)

    results = []
    for function in (torch.compile(both, fullgraph=True, backend="aot_eager"), both):
        leaf = logits.clone().requires_grad_()
        chosen, out = function(leaf)
        out.square().sum().backward()
        assert out.is_contiguous(memory_format=define.format_of(logits))
        results.append((chosen, out.detach(), leaf.grad))
    torch.testing.assert_close(*results, rtol=0, atol=0)


# --- Threads and memory --------------------------------------------------------------------------------------------


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_same_bits_for_any_number_of_threads(threads, layout: str):
    logits, size = UpsampleSample("", classes=21, size=(17, 19), to=(130, 141), layout=layout).inputs()
    results = []
    for count in (1, 2, 5):
        threads(count)
        leaf = logits.clone().requires_grad_()
        out = SOFTMAX(leaf, size)
        out.square().sum().backward()
        results.append((ARGMAX(logits, size), out.detach(), leaf.grad))
    for others in zip(*results, strict=True):
        assert all(torch.equal(others[0], other) for other in others[1:])


MEASURE = """
import sys, torch, deeplab_fast
from torch.nn.functional import interpolate

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name + ":")) * 1024

def stock_argmax(logits, size):
    return interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1)

function = {"stock": stock_argmax, "argmax": deeplab_fast.upsample_argmax, "softmax": deeplab_fast.upsample_softmax}
function = function[sys.argv[1]]
function(torch.randn(1, 3, 6, 8), (48, 64))
logits = torch.randn(1, 182, 60, 80)
open("/proc/self/clear_refs", "w").write("5")  # VmHWM starts again
before = status("VmRSS")
result = function(logits, (480, 640))
print(status("VmHWM") - before, result.nbytes)
"""


def peak_memory(function: str) -> tuple[int, int]:
    """Bytes that a call with 182 classes and 640 x 480 pixels takes at its peak, and those of its result."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the system does not let a process measure its peak memory")
    run = subprocess.run([sys.executable, "-c", MEASURE, function], capture_output=True, text=True, check=True)
    peak, result = map(int, run.stdout.split())
    return peak, result


def test_memory():
    require_kernels()
    stock, _ = peak_memory("stock")
    assert stock > 4 * 182 * 640 * 480  # the measure sees the map of scores
    peak, _ = peak_memory("argmax")
    assert peak <= stock / 10
    peak, result = peak_memory("softmax")
    assert peak - result <= result / 10


# --- Errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [ARGMAX, SOFTMAX, reference.upsample_argmax, reference.upsample_softmax])
@pytest.mark.parametrize(
    ("logits", "size", "error", "message"),
    [
        ([[1.0]], 4, TypeError, r"logits: is a list, should be"),
        (
            torch.zeros(1, 2, 3, 3, dtype=torch.int64),
            4,
            TypeError,
            r"logits: dtype is torch\.int64, should be floating",
        ),
        (torch.zeros(2, 3, 3), 4, ValueError, r"logits: shape is \(2, 3, 3\), should be \(N, C, H, W\)"),
        (torch.zeros(2, 0, 3, 3), 4, ValueError, r"logits: shape is \(2, 0, 3, 3\), should be .* at least 1"),
        (torch.zeros(2, 3, 3, 0), 4, ValueError, r"logits: shape is \(2, 3, 3, 0\), should be .* at least 1"),
        (torch.zeros(1, 2, 3, 3), 0, ValueError, r"size: is 0, should be at least 1"),
        (torch.zeros(1, 2, 3, 3), (4, -1), ValueError, r"size: is -1, should be at least 1"),
        (torch.zeros(1, 2, 3, 3), (4, 4, 4), ValueError, r"size: is \(4, 4, 4\), should be one integer or two"),
        (torch.zeros(1, 2, 3, 3), (4, 2.5), TypeError, r"size: is 2\.5, should be an integer"),
        (torch.zeros(1, 2, 3, 3), True, TypeError, r"size: is True, should be an integer"),
    ],
)
def test_refuses(function, logits, size, error, message):
    with pytest.raises(error, match=message):
        function(logits, size)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("argmax", [torch.zeros(1, 2, 3, 3), torch.zeros(1, 6, 6)]),
        ("argmax", [torch.zeros(1, 2, 3, 3), torch.zeros(2, 6, 6, dtype=torch.int64)]),
        ("argmax", [torch.zeros(1, 2, 3, 3), torch.zeros(1, 6, 12, dtype=torch.int64)[:, :, ::2]]),
        ("argmax", [torch.zeros(1, 2, 3, 3), torch.zeros(1, 0, 6, dtype=torch.int64)]),
        ("argmax", [torch.zeros(1, 2, 3, 3).double(), torch.zeros(1, 6, 6, dtype=torch.int64)]),
        ("argmax", [torch.zeros(2, 3, 3), torch.zeros(1, 6, 6, dtype=torch.int64)]),
        ("softmax", [torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 6, 6)]),
        ("softmax", [torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 6, 6, dtype=torch.int64)]),
        ("softmax", [torch.zeros(1, 2, 3, 3), torch.zeros(2, 2, 6, 6)]),
        ("softmax_backward", [torch.zeros(1, 2, 6, 6), torch.zeros(1, 2, 6, 5), torch.zeros(1, 2, 3, 3)]),
        ("softmax_backward", [torch.zeros(1, 2, 6, 6), torch.zeros(1, 3, 6, 6), torch.zeros(1, 2, 3, 3)]),
        ("softmax_backward", [torch.zeros(1, 2, 6, 6), torch.zeros(1, 2, 6, 6), torch.zeros(1, 1, 3, 3)]),
    ],
)
def test_internal_ops_check_before_they_write(name: str, arguments: list[Tensor]):
    require_kernels()
    with pytest.raises((ValueError, RuntimeError)):  # which of them depends on the version of torch
        getattr(torch.ops.deeplab_fast, f"upsample_{name}_into")(*arguments)
