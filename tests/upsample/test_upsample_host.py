"""The CUDA kernels of upsampling, compiled for and run on the host: all but the launch, without a GPU."""

from __future__ import annotations

import ctypes

import pytest
import torch
from conv_samples import UPSAMPLE_SAMPLES, UpsampleSample, assert_accurate, by_name, centred, stock_upsample
from cuda_headers import compiled_for_the_host
from torch import Tensor
from upsample_checks import assert_argmax_accurate, assert_softmax_accurate, stock_gradient, stock_softmax

from deeplab_fast.ops import define

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
SAMPLES = [sample for sample in UPSAMPLE_SAMPLES if sample.dtype in TYPES and sample.name != "photo"]


class Scores(ctypes.Structure):
    """As in csrc/base/maps.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("size", ctypes.c_int64 * 4),
        ("stride", ctypes.c_int64 * 4),
    )


def scores(maps: Tensor):
    long4 = ctypes.c_int64 * 4
    return ctypes.byref(Scores(maps.data_ptr(), TYPES[maps.dtype], long4(*maps.shape), long4(*maps.stride())))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compiled_for_the_host("upsample_host.cpp", tmp_path_factory.mktemp("cuda"))


def size_of(sample: UpsampleSample) -> tuple[int, int]:
    return sample.to if isinstance(sample.to, tuple) else (sample.to, sample.to)


def empty(like: Tensor, *size: int) -> Tensor:
    """Full of NaN, as new tensors are in tests."""
    return torch.empty(size, dtype=like.dtype, memory_format=define.format_of(like))


def call_argmax(kernels: ctypes.CDLL, logits: Tensor, size: tuple[int, int]) -> Tensor:
    out = torch.full((logits.shape[0], *size), -1)
    kernels.argmax(scores(logits), ctypes.c_int64(size[0]), ctypes.c_int64(size[1]), ctypes.c_void_p(out.data_ptr()))
    return out


def call_softmax(kernels: ctypes.CDLL, logits: Tensor, size: tuple[int, int], channels_last: bool) -> Tensor:
    out = empty(logits, *logits.shape[:2], *size)
    kernels.softmax(scores(logits), scores(out), ctypes.c_bool(channels_last))
    return out


@pytest.mark.parametrize("sample", SAMPLES, ids=by_name)
def test_argmax(sample: UpsampleSample, kernels: ctypes.CDLL):
    logits, size = sample.inputs()[0], size_of(sample)
    assert_argmax_accurate(call_argmax(kernels, logits, size), logits, size)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("sample", SAMPLES, ids=by_name)
def test_softmax(sample: UpsampleSample, channels_last: bool, kernels: ctypes.CDLL):
    logits, size = sample.inputs()[0], size_of(sample)
    assert_softmax_accurate(call_softmax(kernels, logits, size, channels_last), logits, size)


@pytest.mark.parametrize("lanes", [0, 4, 16, 32])
@pytest.mark.parametrize("sample", SAMPLES, ids=by_name)
def test_softmax_backward(sample: UpsampleSample, lanes: int, kernels: ctypes.CDLL):
    logits, size = sample.inputs()[0], size_of(sample)
    if logits.shape[0] == 0:
        return
    out = stock_softmax(size)(logits.float()).to(logits.dtype)
    grad = centred(8, *out.shape).to(logits.dtype)
    to_logits = empty(logits, *logits.shape)
    dots = torch.empty(out.shape[0], *size)
    kernels.softmax_backward(
        scores(grad), scores(out), ctypes.c_void_p(dots.data_ptr()), scores(to_logits), ctypes.c_int(lanes)
    )
    assert_accurate(to_logits, stock_gradient(size), [logits, grad])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(value: float, kernels: ctypes.CDLL):
    logits, size = 8 * centred(1, 2, 40, 5, 8), (40, 64)  # weights without a rounding, so 0 where interpolate has it
    logits[0, [7, 35], 2, 3] = value
    logits[1, [0, 3]] = value
    stock = stock_upsample(size)(logits)
    assert torch.equal(call_argmax(kernels, logits, size), stock.argmax(dim=1))
    for channels_last in (False, True):
        result = call_softmax(kernels, logits, size, channels_last)
        torch.testing.assert_close(result, stock.softmax(dim=1), equal_nan=True, rtol=1e-4, atol=1e-5)
