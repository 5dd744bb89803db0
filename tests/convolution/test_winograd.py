"""The Winograd convolution: accuracy, exactness where float32 is exact, every layout, any number of threads.

It is an internal op of two calls: `winograd_pack_cpu` and `winograd_conv2d_cpu`.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from compiled import require_kernels
from conv_samples import assert_accurate, by_name, centred, stock_atrous
from hypothesis import given
from hypothesis import strategies as st
from places import INSTRUCTION_SETS, with_path
from samples import LAYOUTS
from torch import Tensor

import deeplab_fast.ops  # noqa: F401  defines them

require_kernels()

_internal = torch.ops.deeplab_fast


@dataclass(frozen=True)
class WinogradSample:
    """One convolution of 3 x 3, stride 1 and "same" padding."""

    name: str = ""
    batch: int = 2
    channels: int = 16
    out_channels: int = 24
    size: tuple[int, int] = (13, 11)
    rate: tuple[int, int] = (2, 2)
    bias: bool = True
    scale: bool = True
    residual: bool = True
    relu: bool = True
    layout: str = "channels_last"

    def inputs(self) -> list[Tensor | None]:
        """x, weight, bias, scale and residual, uniform in -1..1."""
        layout, k = LAYOUTS[self.layout], self.out_channels
        return [
            layout(centred(1, self.batch, self.channels, *self.size)),
            centred(2, k, self.channels, 3, 3),
            centred(3, k) if self.bias else None,
            centred(4, k) if self.scale else None,
            layout(centred(5, self.batch, k, *self.size)) if self.residual else None,
        ]

    def exact_inputs(self) -> list[Tensor | None]:
        """The same as integers, the weight divisible by 4: no rounding anywhere, so nothing may differ."""
        return [None if t is None else (t * 4).round() * (4 if i == 1 else 1) for i, t in enumerate(self.inputs())]

    def stock(self):
        return stock_atrous(1, self.rate, self.rate, self.relu)


def convolve(sample: WinogradSample, inputs: list[Tensor | None]) -> Tensor:
    x, weight, bias, scale, residual = inputs
    out = LAYOUTS["contiguous" if sample.layout == "expanded" else sample.layout](
        torch.full((x.shape[0], weight.shape[0], *x.shape[2:]), torch.nan)
    )
    packed = _internal.winograd_pack_cpu(weight, scale)
    _internal.winograd_conv2d_cpu(x, packed, bias, residual, sample.relu, *sample.rate, out)
    return out


def assert_exact(sample: WinogradSample) -> None:
    inputs = sample.exact_inputs()
    expected = sample.stock()(*[None if t is None else t.double() for t in inputs])
    assert torch.equal(convolve(sample, inputs).double(), expected)


PARTS = {"bias": False, "scale": False, "residual": False, "relu": False}

EXACT_SAMPLES = [
    WinogradSample("plain"),
    WinogradSample("bare", **PARTS),
    *(WinogradSample(f"only_{part}", **{**PARTS, part: True}) for part in PARTS),
    *(WinogradSample(f"without_{part}", **{part: False}) for part in PARTS),
    *(WinogradSample(layout, layout=layout, batch=3) for layout in LAYOUTS),
    *(WinogradSample(f"channels_{c}", channels=c) for c in (1, 3, 7, 9, 40, 255, 256, 257, 600)),
    *(WinogradSample(f"out_channels_{k}", out_channels=k) for k in (1, 2, 7, 15, 16, 17, 33, 130)),
    *(WinogradSample(f"rate_{rate[0]}_{rate[1]}", rate=rate) for rate in ((1, 1), (3, 3), (1, 4), (5, 2), (12, 12))),
    WinogradSample("huge_rate", rate=(2**31 - 1, 2**31 - 1)),
    WinogradSample("one_pixel", size=(1, 1)),
    WinogradSample("one_row", size=(1, 30)),
    WinogradSample("one_column", size=(30, 1)),
    WinogradSample("even", size=(16, 20)),
    WinogradSample("many_blocks", size=(65, 65), batch=1),
    WinogradSample("empty_batch", batch=0),
]


@pytest.mark.parametrize("sample", EXACT_SAMPLES, ids=by_name)
def test_exact_in_integers(sample: WinogradSample):
    assert_exact(sample)


SIZES = st.integers(1, 24)


@given(
    batch=st.integers(1, 3), channels=st.integers(1, 40), out_channels=st.integers(1, 40), size=st.tuples(SIZES, SIZES),
    rate=st.tuples(st.integers(1, 9), st.integers(1, 9)), layout=st.sampled_from(list(LAYOUTS)), bias=st.booleans(),
    scale=st.booleans(), residual=st.booleans(), relu=st.booleans(),
)  # fmt: skip
def test_exact_in_integers_whatever_the_shape(**fields):
    assert_exact(WinogradSample(**fields))


# At rates near the size of the map most taps lie outside: the sums of a direct convolution are shorter then, and these
# are not for such maps.
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize(
    "sample",
    [
        WinogradSample("16", size=(33, 33)),
        WinogradSample("64", channels=64, rate=(1, 1), size=(33, 29)),
        WinogradSample("256", channels=256, size=(21, 21)),
        WinogradSample("512", channels=512, rate=(4, 4), size=(33, 33), batch=1),
        WinogradSample("1024", channels=1024, rate=(3, 3), size=(17, 17), batch=1),
        WinogradSample("largest_rate", channels=64, rate=(4, 4), size=(9, 9)),
        WinogradSample("bare", channels=64, size=(17, 20), **PARTS),
    ],
    ids=by_name,
)
def test_accurate(sample: WinogradSample, positive: bool):
    inputs = [t if t is None or not positive else t.abs() for t in sample.inputs()]
    assert_accurate(convolve(sample, inputs), sample.stock(), inputs)


def test_same_bits_for_any_number_of_threads():
    sample = WinogradSample(channels=300, size=(40, 37))
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            results.append(convolve(sample, sample.inputs()))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_instruction_sets(name: str):
    code = "from test_winograd import *\nfor sample in EXACT_SAMPLES:\n    assert_exact(sample)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, env={**with_path(), "DEEPLAB_FAST_ISA": name},
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    if "does not have it" in run.stderr:  # every set is built, and processors differ
        pytest.skip(f"this processor has no {name}")
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "strided"])
def test_strides_of_the_weight(layout: str):
    sample = WinogradSample()
    inputs = sample.inputs()
    expected = convolve(sample, inputs)
    assert torch.equal(convolve(sample, [inputs[0], LAYOUTS[layout](inputs[1]), *inputs[2:]]), expected)
    swapped = inputs[1].transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(convolve(sample, [inputs[0], swapped, *inputs[2:]]), expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_residual_in_place(layout: str):
    sample = WinogradSample(layout=layout)
    inputs = sample.inputs()
    expected = convolve(sample, inputs)
    x, weight, bias, scale, residual = inputs
    packed = _internal.winograd_pack_cpu(weight, scale)
    _internal.winograd_conv2d_cpu(x, packed, bias, residual, sample.relu, *sample.rate, residual)
    assert torch.equal(residual, expected)


def test_nothing_is_done_to_an_empty_map():
    packed = _internal.winograd_pack_cpu(torch.zeros(24, 16, 3, 3), None)
    _internal.winograd_conv2d_cpu(torch.zeros(2, 16, 0, 5), packed, None, None, True, 2, 2, torch.zeros(2, 24, 0, 5))


def test_inputs_are_left_alone():
    sample = WinogradSample()
    inputs = sample.inputs()
    before = [t.clone() for t in inputs]
    convolve(sample, inputs)
    assert all(torch.equal(*pair) for pair in zip(inputs, before, strict=True))


def test_nan_reaches_what_it_should():
    sample = WinogradSample(size=(20, 20))
    inputs = sample.inputs()
    inputs[0][0, 3, 8, 9] = torch.nan
    out, expected = convolve(sample, inputs), sample.stock()(*inputs)
    assert out.isnan()[expected.isnan()].all()
    assert not out[:, :, :, 14:].isnan().any()
    assert not out[1].isnan().any()


# --- What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 16, 5)}, "x: should be"),
        ({"x": torch.zeros(2, 16, 5, 6, dtype=torch.bfloat16)}, "x: dtype"),
        ({"x": torch.zeros(2, 16, 5, 6, dtype=torch.float64)}, "x: dtype"),
        ({"x": torch.zeros(2, 16, 5, 7)}, "x: batch, height and width"),
        ({"x": torch.zeros(2, 15, 5, 6)}, "packed"),
        ({"x": torch.zeros(2, 0, 5, 6), "packed": torch.zeros(0)}, "x: channels"),
        ({"packed": torch.zeros(7)}, "packed"),
        ({"packed": torch.zeros(1, 7)}, "packed"),
        ({"packed": torch.zeros(16 * 16 * 32, dtype=torch.int32)}, "packed"),
        ({"bias": torch.zeros(23)}, "bias"),
        ({"bias": torch.zeros(24, dtype=torch.float64)}, "bias"),
        ({"bias": torch.zeros(48)[::2]}, "bias"),
        ({"residual": torch.zeros(2, 24, 5, 5)}, "residual: batch, height and width"),
        ({"residual": torch.zeros(2, 23, 5, 6)}, "residual: channels"),
        ({"residual": torch.zeros(2, 24, 5, 6, dtype=torch.bfloat16)}, "residual: dtype"),
        ({"rate_h": 0}, "rate_h"),
        ({"rate_w": 2**31}, "rate_w"),
        ({"out": torch.zeros(2, 24, 5, 6, dtype=torch.bfloat16)}, "out: dtype"),
        ({"out": torch.zeros(1, 24, 5, 6)}, "x: batch, height and width"),
    ],
)
def test_refuses(change: dict, message: str):
    arguments = {
        "x": torch.zeros(2, 16, 5, 6), "packed": _internal.winograd_pack_cpu(torch.zeros(24, 16, 3, 3), None),
        "bias": None, "residual": None, "relu": False, "rate_h": 1, "rate_w": 1, "out": torch.zeros(2, 24, 5, 6),
    }  # fmt: skip
    with pytest.raises((RuntimeError, ValueError), match=message):
        _internal.winograd_conv2d_cpu(**{**arguments, **change})


@pytest.mark.parametrize(
    ("weight", "scale", "message"),
    [
        (torch.zeros(4, 4, 1, 1), None, "weight"),
        (torch.zeros(4, 4, 3), None, "weight"),
        (torch.zeros(0, 4, 3, 3), None, "weight"),
        (torch.zeros(4, 0, 3, 3), None, "weight"),
        (torch.zeros(4, 4, 3, 3, dtype=torch.bfloat16), None, "weight: dtype"),
        (torch.zeros(4, 4, 3, 3), torch.zeros(3), "scale"),
        (torch.zeros(4, 4, 3, 3), torch.zeros(4, dtype=torch.float64), "scale"),
    ],
)
def test_pack_refuses(weight: Tensor, scale: Tensor | None, message: str):
    with pytest.raises((RuntimeError, ValueError), match=message):
        _internal.winograd_pack_cpu(weight, scale)
