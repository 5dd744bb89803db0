"""GPU times of the convolution ops beside stock PyTorch, in CUDA graphs; needs torch and Triton, and nothing else.

    python bench/gpu_cases.py                 # all cases; a table, and a JSON file in bench/results
    python bench/gpu_cases.py --tiles         # also every tile of the table in deeplab_fast.kernels.choices
    python bench/gpu_cases.py --dry-run       # no GPU: all backends once, tiny, in Triton's interpreter; no times

Times are of one call in a graph of ten, median of many replays: what the host takes to launch is left out, and inputs
that fit in the cache stay there, as they do in a network. Every result is compared with the first backend's, the stock
one, before it is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

if "--dry-run" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch
from torch import Tensor
from torch.nn.functional import conv2d, relu

import deeplab_fast
from deeplab_fast.kernels import aspp_sum, atrous_conv2d
from deeplab_fast.kernels.choices import TILES

Run = Callable[[], list[Tensor]]
RATES = [6, 12, 18, 24]
CALLS = 10  # in one graph
LAST = torch.channels_last


@dataclass(frozen=True)
class Settings:
    device: str
    dtype: torch.dtype
    tiles: bool
    shrink: int  # channels and sizes are divided by this
    compile_until: float  # time.perf_counter() after which torch.compile is left out


@dataclass(frozen=True)
class Row:
    case: str
    stage: str
    backend: str
    microseconds: float
    faster: float  # times faster than the stage's first backend


# --- Cases ---------------------------------------------------------------------------------------------------------
#
# A case yields, a stage of it at a time, its name and the backends, the stock one first.

Stages = Iterator[tuple[str, dict[str, Run]]]


def aspp_case(classes: int, settings: Settings) -> Stages:
    side, channels = 65 // settings.shrink, 2048 // settings.shrink**2
    x = random(settings, 1, channels, side, side)
    weights = [random(settings, classes, channels, 3, 3) / channels**0.5 for _ in RATES]
    bias = random(settings, classes)
    packed = aspp_sum.pack(weights, x.dtype)
    grad = random(settings, 1, classes, side, side)

    def four_convolutions(x: Tensor, *weights: Tensor) -> Tensor:
        first, *others = (conv2d(x, w, padding=r, dilation=r) for w, r in zip(weights, RATES, strict=True))
        return sum(others, first) + bias[:, None, None]

    def own(x: Tensor, *weights: Tensor) -> Tensor:
        return deeplab_fast.aspp_sum(x, weights, bias, RATES)

    forward: dict[str, Run] = {
        "four convolutions": lambda: [four_convolutions(x, *weights)],
        "op": lambda: [own(x, *weights)],
    }
    for path in ("gemm", "on_chip"):
        forward[path] = lambda path=path: [aspp_sum.forward(x, weights, bias, RATES, packed=packed, path=path)]
    for name, tile in tiles(settings):
        forward[f"on_chip {name}"] = lambda tile=tile: [
            aspp_sum.forward(x, weights, bias, RATES, packed=packed, path="on_chip", tile=tile)
        ]
    if time.perf_counter() < settings.compile_until:
        compiled = torch.compile(four_convolutions)
        forward["torch.compile"] = lambda: [compiled(x, *weights)]
    yield "forward", forward

    def stock_backward() -> list[Tensor]:
        parts = [
            torch.ops.aten.convolution_backward(
                grad, x, w, None, [1, 1], [r, r], [r, r], False, [0, 0], 1, [True, True, False]
            )
            for w, r in zip(weights, RATES, strict=True)
        ]
        return [parts[0][0] + parts[1][0] + parts[2][0] + parts[3][0], *(part[1] for part in parts)]

    def own_backward() -> list[Tensor]:
        to_x = aspp_sum.backward_x(grad, weights, RATES, packed=packed)
        return [to_x, *aspp_sum.backward_weights(grad, x, weights, RATES)]

    yield "backward", {"four convolutions": stock_backward, "kernels": own_backward}
    yield (
        "forward and backward",
        {
            "four convolutions": step(four_convolutions, grad, x, *weights),
            "op": step(own, grad, x, *weights),
        },
    )


def atrous_case(channels: int, columns: int, kernel: int, rate: int, with_residual: bool, settings: Settings) -> Stages:
    side, channels, columns = (max(n // settings.shrink, 8) for n in (65, channels, columns))
    x, residual = random(settings, 1, channels, side, side), random(settings, 1, columns, side, side)
    residual = residual if with_residual else None
    weight = random(settings, columns, channels, kernel, kernel) / (channels * kernel**2) ** 0.5
    scale, bias = (random(settings, columns).float() for _ in range(2))
    padding = rate * (kernel // 2)
    numbers = [1, 1], [padding, padding], [rate, rate]
    packed = atrous_conv2d.pack(weight, x.dtype)
    grad = random(settings, 1, columns, side, side)
    mean, variance = torch.zeros_like(bias), torch.ones_like(bias)

    def stock(x: Tensor, weight: Tensor) -> Tensor:
        out = conv2d(x, weight, None, *numbers)
        out = torch.nn.functional.batch_norm(out, mean, variance, scale, bias, eps=0.0)
        return relu(out if residual is None else out + residual)

    def own(x: Tensor, weight: Tensor) -> Tensor:
        return deeplab_fast.atrous_conv2d(x, weight, bias, *numbers, scale=scale, residual=residual, relu=True)

    def kernel_path(path: str, tile=None) -> Run:
        return lambda: [
            atrous_conv2d.forward(x, weight, bias, scale, residual, *numbers, True, packed=packed, path=path, tile=tile)
        ]

    forward = {"eager": lambda: [stock(x, weight)], "op": lambda: [own(x, weight)]}
    forward |= {path: kernel_path(path) for path in ("triton", "cudnn")}
    forward |= {f"triton {name}": kernel_path("triton", tile) for name, tile in tiles(settings)}
    if time.perf_counter() < settings.compile_until:
        compiled = torch.compile(stock)
        forward["torch.compile"] = lambda: [compiled(x, weight)]
    yield "forward", forward

    def gradient(path: str, need_x: bool) -> Run:
        return lambda: atrous_conv2d.backward(
            grad, x, weight, None, *numbers, need_x, not need_x, path_x=path, path_weight=path
        )

    def stock_relu() -> list[Tensor]:
        masked = torch.where(x > 0, x, 0)
        return [masked, masked.sum((0, 2, 3), dtype=torch.float32)]

    for stage, need_x in (("gradient to x", True), ("gradient to weight", False)):
        yield stage, {path: gradient(path, need_x) for path in ("cudnn", "triton")}
    yield (
        "ReLU backward",
        {
            "eager": stock_relu,
            "kernel": lambda: list(atrous_conv2d.backward_relu(x, x)),
        },
    )
    yield "forward and backward", {"eager": step(stock, grad, x, weight), "op": step(own, grad, x, weight)}


def cases(settings: Settings) -> Iterator[tuple[str, Stages]]:
    for classes in (21, 182):
        yield f"aspp_sum: 65x65, 2048 -> {classes}", aspp_case(classes, settings)
    for channels, columns, kernel, rate, residual in (
        (256, 256, 3, 2, False),
        (512, 512, 3, 4, False),
        (1024, 256, 1, 1, False),
        (256, 1024, 1, 1, True),
        (512, 2048, 1, 1, True),
    ):
        name = f"atrous_conv2d: 65x65, {channels} -> {columns}, {kernel}x{kernel}, rate {rate}"
        name += ", BN, residual, ReLU" if residual else ", BN, ReLU"
        yield name, atrous_case(channels, columns, kernel, rate, residual, settings)


def random(settings: Settings, *shape: int) -> Tensor:
    made = torch.randn(shape, device=settings.device).to(settings.dtype)
    return made.contiguous(memory_format=LAST) if made.ndim == 4 else made


def tiles(settings: Settings) -> list:
    return [(f"{t.pixels}x{t.columns}", t) for t in TILES["16bit"]] if settings.tiles else []


def step(function: Callable[..., Tensor], grad: Tensor, *leaves: Tensor) -> Run:
    """A training step's share: the forward pass, and the gradients to all leaves."""
    leaves = tuple(leaf.detach().clone(memory_format=torch.preserve_format).requires_grad_() for leaf in leaves)
    return lambda: list(torch.autograd.grad(function(*leaves), leaves, grad))


# --- Checking and timing -------------------------------------------------------------------------------------------


def check(results: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    """Raise AssertionError unless results are as close to the stock ones as roundings of `dtype` allow."""
    for result, wanted in zip(results, expected, strict=True):
        error = (result.double() - wanted.double()).norm() / wanted.double().norm()
        allowed = 8 * torch.finfo(dtype).eps
        assert error <= allowed, f"differs from the first backend by {error:.1e}, allowed are {allowed:.1e}"


def time_in_graph(run: Run, seconds: float) -> float:
    """Microseconds of one call: median over replays of a graph of CALLS calls."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            run()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 10 or time.perf_counter() < end:
        begin, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        done.record()
        done.synchronize()
        times.append(1000 * begin.elapsed_time(done) / CALLS)
    return statistics.median(times)


def measure(case: str, stage: str, backends: dict[str, Run], settings: Settings, seconds: float) -> tuple[list, list]:
    """Rows, and a line for each backend that failed."""
    rows, failures, expected, stock = [], [], None, float("nan")
    for name, run in backends.items():
        try:
            results = run()
            expected = expected or results
            check(results, expected, settings.dtype)
            took = float("nan") if settings.device == "cpu" else time_in_graph(run, seconds)
        except Exception as error:  # the other backends are still worth their times
            failures.append(f"{case}, {stage}, {name}: {type(error).__name__}: {error}")
            print(f"FAILED {failures[-1]}", file=sys.stderr, flush=True)
            continue
        stock = took if not rows else stock
        rows.append(Row(case, stage, name, took, stock / took))
        figures = "agrees" if settings.device == "cpu" else f"{took:9.1f} us  x{stock / took:5.2f}"
        print(f"{case:68} {stage:22} {name:18} {figures}", flush=True)
    return rows, failures


def save(folder: Path, rows: list[Row], failures: list[str]) -> None:
    chip = torch.cuda.get_device_name().lower().replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    found = {"chip": chip, "torch": torch.__version__, "rows": [asdict(row) for row in rows], "failures": failures}
    (folder / f"gpu_{date.today()}_{chip}.json").write_text(json.dumps(found, indent=1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", action="store_true", help="also every tile")
    parser.add_argument(
        "--compile-until", type=float, default=600, metavar="SECONDS",
        help="after this, cases go without torch.compile, which takes a while for each (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="on the processor, tiny, without times")
    parser.add_argument("--seconds", type=float, default=0.2, help="for each backend (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON file")
    arguments = parser.parse_args()
    if not arguments.dry_run and not torch.cuda.is_available():
        parser.error("no GPU that torch can use; --dry-run needs none")

    settings = Settings("cuda", torch.bfloat16, arguments.tiles, 1, time.perf_counter() + arguments.compile_until)
    if arguments.dry_run:
        settings = Settings("cpu", torch.float32, arguments.tiles, 8, 0)
    torch.manual_seed(0)
    rows, failures = [], []
    for case, stages in cases(settings):
        for stage, backends in stages:
            new_rows, new_failures = measure(case, stage, backends, settings, arguments.seconds)
            rows += new_rows
            failures += new_failures
        if not arguments.dry_run:  # after every case: a run that is cut short leaves what it has
            save(arguments.out, rows, failures)
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
