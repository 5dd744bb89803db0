"""The Triton kernels on a GPU: every path and tile over all samples, CUDA graphs, and results that repeat exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conv_samples import ASPP_SAMPLES, ATROUS_SAMPLES, AsppSample, AtrousSample, by_name
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from kernel_checks import (
    check_aspp,
    check_aspp_gradients,
    check_atrous,
    check_atrous_gradients,
    check_atrous_gradients_alone,
    check_backward_relu,
    geometry_of,
)

from deeplab_fast._conv_arguments import Epilogue, Geometry
from deeplab_fast.kernels import aspp_sum, atrous_conv2d, choices
from deeplab_fast.kernels.choices import TILES, Tile

pytestmark = pytest.mark.cuda

ASPP = [sample for sample in ASPP_SAMPLES if sample.dtype != torch.float64]
ATROUS = [sample for sample in ATROUS_SAMPLES if sample.dtype != torch.float64]
BFLOAT = torch.bfloat16

# Large enough for many tiles in every direction, and for the pipeline to run full.
LARGE_ASPP = AsppSample("large", channels=512, classes=182, size=(65, 65), rates=(6, 12, 18, 24), dtype=BFLOAT)
LARGE_ATROUS = AtrousSample(
    "large", channels=256, out_channels=512, size=(65, 65), padding=4, dilation=4, dtype=BFLOAT, layout="channels_last"
)


@pytest.fixture(params=[True, False], ids=["tf32", "ieee"])
def tf32(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways to multiply float32; what stock PyTorch does follows, and with it what is accurate."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", request.param)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", request.param)
    return request.param


def skip_repeated(sample: AsppSample | AtrousSample, tf32: bool) -> None:
    """The two settings make no difference to 16-bit samples: the second time would be the same test."""
    if sample.dtype != torch.float32 and not tf32:
        pytest.skip("only float32 is multiplied in two ways")


@pytest.mark.parametrize("path", ["gemm", "on_chip"])
@pytest.mark.parametrize("sample", ASPP, ids=by_name)
def test_aspp_sum(sample: AsppSample, path: str, tf32: bool):
    skip_repeated(sample, tf32)
    check_aspp(sample, "cuda", path)


@pytest.mark.parametrize("sample", ASPP, ids=by_name)
def test_aspp_sum_gradients(sample: AsppSample, tf32: bool):
    skip_repeated(sample, tf32)
    check_aspp_gradients(sample, "cuda")


@pytest.mark.parametrize("path", ["triton", "cudnn"])
@pytest.mark.parametrize("sample", ATROUS, ids=by_name)
def test_atrous_conv2d(sample: AtrousSample, path: str, tf32: bool):
    skip_repeated(sample, tf32)
    check_atrous(sample, "cuda", path)


@pytest.mark.parametrize("path", ["triton", "cudnn"])
@pytest.mark.parametrize("sample", ATROUS, ids=by_name)
def test_atrous_conv2d_gradients(sample: AtrousSample, path: str, tf32: bool):
    skip_repeated(sample, tf32)
    check_atrous_gradients(sample, "cuda", path)


@pytest.mark.parametrize("path", ["triton", "cudnn"])
def test_atrous_conv2d_gradients_alone(path: str):
    check_atrous_gradients_alone(ATROUS[0], "cuda", path)


@pytest.mark.parametrize("sample", ATROUS, ids=by_name)
def test_relu_gradient(sample: AtrousSample):
    check_backward_relu(sample, "cuda")


@pytest.mark.parametrize("tile", TILES["16bit"], ids=lambda tile: f"{tile.pixels}x{tile.columns}")
def test_every_tile(tile: Tile):
    check_atrous(LARGE_ATROUS, "cuda", "triton", tile)
    check_atrous_gradients(LARGE_ATROUS, "cuda", "triton", tile)
    check_aspp(LARGE_ASPP, "cuda", "on_chip", tile)


def test_large_aspp_gradients_in_parts(monkeypatch: pytest.MonkeyPatch):
    """With less memory for the product: one image at a time."""
    check_aspp_gradients(LARGE_ASPP, "cuda")
    monkeypatch.setattr(aspp_sum, "LARGE_PRODUCT", 1)
    check_aspp_gradients(LARGE_ASPP, "cuda")


# --- Graphs and repetition -----------------------------------------------------------------------------------------


def aspp_steps() -> list[Callable[[], list[Tensor]]]:
    x, weights, bias, rates = LARGE_ASPP.inputs("cuda")
    grad = torch.ones_like(aspp_sum.forward(x, weights, bias, rates))
    return [
        lambda: [aspp_sum.forward(x, weights, bias, rates, path="gemm")],
        lambda: [aspp_sum.forward(x, weights, bias, rates, path="on_chip")],
        lambda: [aspp_sum.backward_x(grad, weights, rates)],
        lambda: aspp_sum.backward_weights(grad, x, weights, rates),
    ]


def atrous_steps() -> list[Callable[[], list[Tensor]]]:
    (x, weight, bias, *_), extra = LARGE_ATROUS.inputs("cuda")
    geometry, epilogue = geometry_of(LARGE_ATROUS, "cuda"), Epilogue(bias, **extra)
    out = atrous_conv2d.forward(x, weight, geometry, epilogue)
    paths = {"path_x": "triton", "path_weight": "triton"}
    return [
        lambda: [atrous_conv2d.forward(x, weight, geometry, epilogue, path="triton")],
        lambda: [atrous_conv2d.forward(x, weight, geometry, epilogue, path="cudnn")],
        lambda: list(atrous_conv2d.backward_relu(out, out)),
        lambda: atrous_conv2d.backward(out, x, weight, epilogue.scale, geometry, True, True, **paths),
    ]


@pytest.mark.parametrize("steps", [aspp_steps, atrous_steps])
def test_cuda_graph(steps: Callable[[], list[Callable[[], list[Tensor]]]]):
    """A captured graph gives what a call gives, bit by bit, from memory that held something else."""
    for step in steps():
        expected = [t.clone() for t in step()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = step()
        for _ in range(2):
            for result in results:
                result.fill_(float("nan"))
            graph.replay()
            for result, wanted in zip(results, expected, strict=True):
                assert torch.equal(result, wanted)


@pytest.mark.parametrize("steps", [aspp_steps, atrous_steps])
def test_results_repeat_exactly(steps: Callable[[], list[Callable[[], list[Tensor]]]]):
    for step in steps():
        first = [t.clone() for t in step()]
        for _ in range(5):
            for result, wanted in zip(step(), first, strict=True):
                assert torch.equal(result, wanted)


def test_offsets_beyond_32_bits():
    """x has more than 2**31 elements; the last image is compared with itself alone."""
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GiB of GPU memory")
    x = torch.empty(9, 256, 1024, 1024, dtype=BFLOAT, device="cuda", memory_format=torch.channels_last)
    x[-1].normal_()
    weight = torch.randn(16, 256, 3, 3, dtype=BFLOAT, device="cuda")
    rest = Geometry([1, 1], [2, 2], [2, 2]), Epilogue()
    out = atrous_conv2d.forward(x, weight, *rest, path="triton")
    alone = atrous_conv2d.forward(x[-1:], weight, *rest, path="triton")
    assert torch.equal(out[-1:], alone)


def test_processors():
    x = torch.empty(1, device="cuda")
    assert choices.processors_of(x) == torch.cuda.get_device_properties(0).multi_processor_count
