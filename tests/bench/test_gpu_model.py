"""The model of the GPU kernels: its formulas against what the kernels do on the host, and the command."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from host_kernels import build, filter_on_host, photo_features, run_crf
from photos import photo, scores
from torch import Tensor
from typer.testing import CliRunner

from bench import gpu_convolutions, gpu_kernels, gpu_model, results
from bench.gpu_kernels import Launch, lattice_shape
from deeplab_fast import _densecrf

pytestmark = pytest.mark.skipif(_densecrf is None, reason="the compiled core is not there")

COLUMNS = ("threads", "read", "written", "read_once", "written_once", "flops")
MOST_LAUNCHES = 5000


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(tmp_path_factory.mktemp("counting"), counting=True)


def counted(kernels: ctypes.CDLL, call: Callable[[], object], inputs: Sequence[Tensor]) -> list[dict[str, int]]:
    """What each launch of the call does."""
    table = (ctypes.c_int64 * len(COLUMNS) * MOST_LAUNCHES)()
    kernels.take_counts(table, ctypes.c_int64(0))
    for tensor in inputs:
        kernels.watch(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_int64(tensor.nbytes))
    call()
    count = kernels.take_counts(table, ctypes.c_int64(MOST_LAUNCHES))
    return [dict(zip(COLUMNS, row, strict=True)) for row in table[:count]]


def assert_as_on_paper(counts: list[dict[str, int]], launches: Iterator[Launch]) -> None:
    """The same launches in the same order, and of each kernel about the same amounts.

    A difference that is small beside the whole call may be larger beside the kernel.
    """
    own = [launch for launch in launches if launch.kernel.endswith("_kernel")]  # not those of libraries
    assert [launch.threads for launch in own] == [count["threads"] for count in counts]
    everything = sum(count["read"] + count["written"] for count in counts)
    for kernel in dict.fromkeys(launch.kernel for launch in own):
        of_kernel = [(one, count) for one, count in zip(own, counts, strict=True) if one.kernel == kernel]
        for what, on_paper, found, tolerance in (
            ("moved", lambda one: one.moved, lambda count: count["read"] + count["written"], 0.25),
            ("once", lambda one: one.once, lambda count: count["read_once"] + count["written_once"], 0.3),
            ("flops", lambda one: one.flops, lambda count: count["flops"], 0.15),
        ):
            expected = sum(on_paper(one) for one, _ in of_kernel)
            actual = sum(found(count) for _, count in of_kernel)
            assert expected == pytest.approx(actual, rel=tolerance, abs=0.02 * everything), f"{kernel}: {what}"


POINTS = {
    "photo, bilateral": (lambda: photo_features(60, 50, 20, 10), 21),
    "photo, spatial": (lambda: photo_features(60, 50, 3, 1)[:, :2], 21),
    "few channels": (lambda: photo_features(60, 50, 20, 10), 3),
    "many channels": (lambda: photo_features(40, 50, 20, 10), 40),
    "scattered, six dimensions": (lambda: 3 * torch.rand(1, 6, 3000, generator=torch.Generator().manual_seed(0)), 3),
}


@pytest.mark.parametrize(
    ("way", "model"), [(0, gpu_kernels.permutohedral_filter), (2, gpu_kernels.filter_both_ways)], ids=["one", "both"]
)
@pytest.mark.parametrize("name", POINTS)
def test_filter(name: str, way: int, model: Callable[..., Iterator[Launch]], kernels: ctypes.CDLL):
    make, channels = POINTS[name]
    features = make().flatten(2).contiguous()
    values, out = torch.rand(1, channels, features.shape[2]), torch.empty(1, channels, features.shape[2])
    shape = lattice_shape(features[0].numpy())
    filtered = lambda: filter_on_host(kernels, values, features, way, out=out)  # noqa: E731
    assert_as_on_paper(counted(kernels, filtered, [values, features, out]), model(shape, channels))


@pytest.mark.parametrize(("rows", "labels"), [(torch.float32, 21), (torch.float16, 21), (torch.float32, 5)])
def test_dense_crf(rows: torch.dtype, labels: int, kernels: ctypes.CDLL):
    prob = torch.from_numpy(scores(photo("coffee", 40, 50), labels)).clamp(1e-5, 1)[None]
    features = [photo_features(40, 50, 3, 1)[:, :2].contiguous(), photo_features(40, 50, 20, 10)]
    unary, compat = (-prob.log()).contiguous(), [torch.tensor(3.0), torch.tensor(4.0)]
    inputs = (unary, features, compat, 2, [3, 3])
    counts = counted(kernels, lambda: run_crf(kernels, inputs, rows=rows), [unary, *features, *compat])
    shapes = [lattice_shape(one[0].flatten(1).numpy()) for one in features]
    assert_as_on_paper(counts, gpu_kernels.dense_crf(shapes, labels, 2, rows.itemsize))


# --- Times ---------------------------------------------------------------------------------------------------------


def test_what_limits():
    chip = gpu_model.CHIPS["h100"]
    cases = {
        "memory": Launch("a", 10**7, read=1e9, once=1e9),
        "L2": Launch("a", 10**7, read=1e9),
        "arithmetic": Launch("a", 10**7, flops=1e12),
        "latency": Launch("a", 10**6, chain=1000),
        "launch": Launch("a", 32),
    }
    for limit, launch in cases.items():
        working_set = launch.once
        assert gpu_model.time_of(launch, chip, 1.0, working_set, graph=True).limit == limit
    # What fits into the L2 does not come from memory.
    kept = Launch("a", 10**6, read=1e6, once=1e6)
    assert gpu_model.time_of(kept, chip, 1.0, 1e6, graph=True).limits["memory"] == 0


def test_occupancy():
    chip = gpu_model.CHIPS["a100"]
    assert [gpu_model.occupancy(registers, chip) for registers in (32, 33, 64, 128)] == [1, 0.75, 0.5, 0.25]
    assert gpu_model.occupancy(32, chip, threads=256, shared=100 * 1024) == 256 / 2048


def test_a_program_too_many_takes_another_round():
    product = gpu_convolutions.matrix_product("a", 132 * 128, 128, 512, 9, 9, gpu_convolutions.CUBLAS)
    more = gpu_convolutions.matrix_product("a", 133 * 128, 128, 512, 9, 9, gpu_convolutions.CUBLAS)
    chip = gpu_model.CHIPS["h100"]
    times = [gpu_model.time_of(one, chip, 0.5, 0, graph=True).limits["arithmetic"] for one in (product, more)]
    assert times[1] == pytest.approx(2 * times[0])


def test_taps_inside_a_map():
    assert gpu_convolutions.live(4, [(0, 0)]) == 1
    assert gpu_convolutions.live(4, [(0, 2)]) == 0.5
    assert gpu_convolutions.live(4, [(4, 0)]) == 0


def test_registers_are_those_of_the_compiled_library():
    known = gpu_model.compiled_registers()
    if not known:
        # Without nvcc the CUDA library is not built, and cuobjdump comes with nvcc.
        pytest.skip("there is no cuobjdump, or no CUDA library")
    for chip in gpu_model.CHIPS.values():
        assert set(known) >= {chip.architecture}
        for case in gpu_model.CASES:
            if case.op in ("aspp_sum", "atrous_conv2d"):
                continue
            for launch in gpu_model.lines_of(case.launches()):
                assert not launch.symbol or gpu_model.registers_of(launch, chip), launch.symbol


# --- The command ---------------------------------------------------------------------------------------------------


def test_predicted_beside_measured(tmp_path: Path):
    case = next(case for case in gpu_model.CASES if case.op == "upsample_argmax")
    launches = case.launches()
    expected = sum(time.seconds for *_, time in gpu_model.predict(launches, gpu_model.CHIPS["h100"], graph=True))
    run = results.Run.new()
    for backend, seconds in (("stock", 1.0), ("deeplab_fast", 3 * expected)):
        run.measurements.append(
            results.Measurement(
                case.op, case.size, "cuda", "whole", backend, "stock", None, {}, "s", [seconds] * 3
            )
        )  # fmt: skip
    results.write(tmp_path / "gpu.json", run)
    done = CliRunner().invoke(gpu_model.app, ["upsample_argmax", "--results", str(tmp_path / "gpu.json")])
    assert done.exit_code == 0, done.output
    assert "upsample_argmax_kernel" in done.output
    assert f"{3e3 * expected:.3f}" in done.output
    assert "H100 SXM" in done.output
    assert "A100 SXM" in done.output


@pytest.mark.parametrize("arguments", [["--chip", "h900"], ["no such case"], ["--results", "nowhere.json"]])
def test_what_there_is_none_of(arguments: list[str]):
    done = CliRunner().invoke(gpu_model.app, arguments)
    assert done.exit_code == 2
    assert arguments[-1] in done.output


def test_cases_are_those_of_the_bench():
    from bench.case import Target
    from bench.registry import all_cases

    sizes = {(case.op, case.size) for case in all_cases(Target(gpu=True, tiny=True))}
    named = [case for case in gpu_model.CASES if case.op and "on chip" not in case.size]
    assert len(named) > 5
    assert [case.name for case in named if (case.op, case.size) not in sizes] == []
