"""The Triton kernels in Triton's interpreter, on the processor. Run by test_kernels_interpreter.py in a process of its
own, since TRITON_INTERPRET has to be set before Triton is imported.

The interpreter runs programs one after the other and knows no layouts, pipelines or races; it shows wrong arithmetic,
masks and addresses. Its tl.dot is wrong for bfloat16, whose samples are left to the kernels without one.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from conv_samples import ASPP_SAMPLES, ATROUS_SAMPLES, AsppSample, AtrousSample, by_name
from kernel_checks import (
    check_aspp,
    check_aspp_gradients,
    check_atrous,
    check_atrous_gradients,
    check_atrous_gradients_alone,
    check_backward_relu,
)

from deeplab_fast.kernels import aspp_sum
from deeplab_fast.kernels.choices import Tile

assert os.environ.get("TRITON_INTERPRET") == "1", "run test_kernels_interpreter.py instead"


# An operation on a whole tile takes the interpreter about a tenth of a millisecond, so the largest samples are made
# smaller, and tiles large.
SMALLER = {
    "deeplab": {"size": (23, 25)},
    "bfloat16_deeplab": {"size": (23, 25)},
    "deeplab_wide": {"size": (11, 27)},
    "batch_10": {"batch": 3},
    "channels_130": {"channels": 70},
    "channels_300": {"channels": 80},
    "classes_182": {"classes": 70},
    "out_channels_130": {"out_channels": 70},
    "many_channels": {"size": (11, 12)},
    "many_channels_last": {"size": (11, 13)},
    "stem": {"size": (17, 16), "batch": 1},
}
TILE = Tile(pixels=128, columns=64, channels=64, warps=4, stages=1)


def taken(samples: list, without: tuple[torch.dtype, ...] = (torch.float64,)) -> list:
    return [replace(sample, **SMALLER.get(sample.name, {})) for sample in samples if sample.dtype not in without]


WITHOUT_DOT = taken(ASPP_SAMPLES), taken(ATROUS_SAMPLES)
WITH_DOT = tuple(taken(samples, (torch.float64, torch.bfloat16)) for samples in WITHOUT_DOT)


@pytest.fixture(autouse=True)
def large_tiles(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(aspp_sum, "SHIFT_PIXELS", 128)


@pytest.mark.parametrize("sample", WITHOUT_DOT[0], ids=by_name)
def test_aspp_sum(sample: AsppSample):
    check_aspp(sample, "cpu", "gemm")


@pytest.mark.parametrize("sample", WITH_DOT[0], ids=by_name)
def test_aspp_sum_on_chip(sample: AsppSample):
    check_aspp(sample, "cpu", "on_chip", TILE)


def for_gradients(samples: list, besides: tuple[str, ...]) -> list:
    """Without samples in which only something differs that enters no kernel of the gradients."""
    return [s for s in samples if s.layout in ("contiguous", "channels_last") and not s.name.startswith(besides)]


# Of aspp_sum: the number of channels enters only the matrix product that follows, which is torch's.
ASPP_GRADIENTS = for_gradients(WITHOUT_DOT[0], ("channels_1", "channels_3", "channels_7", "channels_9", "no_bias"))
ATROUS_GRADIENTS = for_gradients(WITH_DOT[1], ("only_", "without_bias", "without_residual", "without_relu"))
RELU_GRADIENTS = for_gradients(WITHOUT_DOT[1], ("only_", "without_", "kernel_", "out_channels_", "same", "valid"))


@pytest.mark.parametrize("sample", ASPP_GRADIENTS, ids=by_name)
def test_aspp_sum_gradients(sample: AsppSample):
    check_aspp_gradients(sample, "cpu")


def test_aspp_sum_gradients_an_image_at_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(aspp_sum, "LARGE_PRODUCT", 1)
    check_aspp_gradients(WITHOUT_DOT[0][0], "cpu")


@pytest.mark.parametrize("sample", WITH_DOT[1], ids=by_name)
def test_atrous_conv2d(sample: AtrousSample):
    check_atrous(sample, "cpu", "triton", TILE)


# Where outputs see nothing but padding, the stock convolution of a CPU crashes.
@pytest.mark.parametrize("sample", [s for s in WITHOUT_DOT[1] if "miss" not in s.name], ids=by_name)
def test_atrous_conv2d_after_a_stock_convolution(sample: AtrousSample):
    check_atrous(sample, "cpu", "cudnn")


@pytest.mark.parametrize("sample", ATROUS_GRADIENTS, ids=by_name)
def test_atrous_conv2d_gradients(sample: AtrousSample):
    check_atrous_gradients(sample, "cpu", "triton", TILE)


@pytest.mark.parametrize("path", ["triton", "cudnn"])
def test_atrous_conv2d_gradients_alone(path: str):
    check_atrous_gradients_alone(WITH_DOT[1][0], "cpu", path)


@pytest.mark.parametrize("sample", RELU_GRADIENTS, ids=by_name)
def test_relu_gradient(sample: AtrousSample):
    check_backward_relu(sample, "cpu")
