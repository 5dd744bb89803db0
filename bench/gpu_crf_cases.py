"""GPU times of the dense CRF beside pydensecrf and our own CPU path on the same machine; needs torch only.

    python bench/gpu_crf_cases.py             # all cases; a table, and a JSON file in bench/results
    python bench/gpu_crf_cases.py --dry-run   # no GPU: every case once on the processor, tiny; no times

A time is that of a whole call, the lattices' build included, until the GPU is done: median of many calls. `graph` is
the same call replayed in a CUDA graph. Every result is compared with the CPU path's before it is timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

import deeplab_fast
from deeplab_fast import nn
from deeplab_fast.crf import PRESETS
from deeplab_fast.nn.crf_inputs import bilateral_features, spatial_features

HEIGHT, WIDTH, ITERATIONS = 375, 500, 10


@dataclass(frozen=True)
class Row:
    case: str
    backend: str
    milliseconds: float  # of one image
    faster: float  # times faster than the case's first backend
    error: float  # largest difference of a probability to the CPU path's


def scene(size: tuple[int, int], labels: int, batch: int) -> tuple[Tensor, Tensor]:
    """Images as of a camera, uint8 (N, 3, H, W): smooth shapes, edges, noise; and unary energies (N, K, H, W)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(batch, 3, 9, 12, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic")
    fine = torch.nn.functional.interpolate(torch.randn(batch, 3, 60, 80, generator=generator), size, mode="bilinear")
    image = (
        120 + 50 * smooth + 25 * fine.sign() * fine.abs().sqrt() + 3 * torch.randn(smooth.shape, generator=generator)
    )
    scores = torch.randn(batch, labels, size[0] // 8 + 1, size[1] // 8 + 1, generator=generator)
    prob = torch.softmax(4 * torch.nn.functional.interpolate(scores, size, mode="bilinear"), dim=1)
    return image.clamp(0, 255).byte(), -prob.clamp(1e-5, 1).log()


@dataclass(frozen=True)
class Problem:
    """What one call of `dense_crf` gets."""

    name: str
    labels: int = 21
    batch: int = 1
    preset: str = "deeplab"
    size: tuple[int, int] = (HEIGHT, WIDTH)

    def inputs(self, device: str, dtype: torch.dtype) -> tuple[Tensor, list[Tensor], list[float], int]:
        image, unary = scene(self.size, self.labels, self.batch)
        params = PRESETS[self.preset]
        features = [
            spatial_features(image, params.pos_xy_std),
            bilateral_features(image, params.bi_xy_std, params.bi_rgb_std),
        ]
        weights = [float(params.pos_w), float(params.bi_w)]
        return unary.to(device, dtype), [f.to(device) for f in features], weights, ITERATIONS


PROBLEMS = [
    Problem("500x375, 21 labels, deeplab"),
    Problem("500x375, 21 labels, psa", preset="psa"),
    Problem("500x375, 21 labels, irn", preset="irn"),
    Problem("500x375, 21 labels, deeplab, batch of 16", batch=16),
    Problem("500x375, 182 labels, deeplab", labels=182),
]


def seconds_of(run: Callable[[], object], wait: Callable[[], None], seconds: float) -> float:
    run()
    wait()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 200):
        begin = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def in_graph(run: Callable[[], Tensor]) -> Callable[[], None]:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def pydensecrf_seconds(problem: Problem) -> float | None:
    """One image on one thread, as it always runs; None where it is not installed."""
    try:
        import pydensecrf.densecrf as dcrf
    except ImportError:
        return None
    image, unary = scene(problem.size, problem.labels, 1)
    params = PRESETS[problem.preset]
    pixels = image[0].permute(1, 2, 0).contiguous().numpy()
    begin = time.perf_counter()
    crf = dcrf.DenseCRF2D(problem.size[1], problem.size[0], problem.labels)
    crf.setUnaryEnergy(unary[0].flatten(1).contiguous().numpy())
    crf.addPairwiseGaussian(sxy=params.pos_xy_std, compat=params.pos_w)
    crf.addPairwiseBilateral(sxy=params.bi_xy_std, srgb=params.bi_rgb_std, rgbim=pixels, compat=params.bi_w)
    crf.inference(ITERATIONS)
    return time.perf_counter() - begin


def crf_rows(problem: Problem, device: str, seconds: float) -> list[Row]:
    on_cpu = problem.inputs("cpu", torch.float32)
    found: list[tuple[str, float, float]] = []
    peer = pydensecrf_seconds(problem) if problem.batch == 1 else None
    if peer is not None:
        found.append(("pydensecrf", peer, float("nan")))
    cpu = seconds_of(lambda: deeplab_fast.dense_crf(*on_cpu), lambda: None, min(seconds, 1))
    found.append((f"deeplab_fast, CPU, {torch.get_num_threads()} threads", cpu / problem.batch, 0.0))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        inputs = problem.inputs(device, dtype)
        name = str(dtype).removeprefix("torch.")

        def run(inputs: tuple = inputs) -> Tensor:
            return deeplab_fast.dense_crf(*inputs)

        expected = deeplab_fast.dense_crf(on_cpu[0].to(dtype).float(), *on_cpu[1:])
        error = (run().float().cpu() - expected).abs().max().item()
        wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        found.append((f"deeplab_fast, {device}, {name}", seconds_of(run, wait, seconds) / problem.batch, error))
        if device == "cuda":
            replay = in_graph(run)
            found.append((f"deeplab_fast, graph, {name}", seconds_of(replay, wait, seconds) / problem.batch, error))
    first = found[0][1]
    return [Row(problem.name, name, 1e3 * took, first / took, error) for name, took, error in found]


def gradient_rows(device: str, seconds: float, size: tuple[int, int], batch: int) -> list[Row]:
    """The loss and the layer, forward and backward: the same call on the CPU and the GPU."""
    image, unary = scene(size, 21, batch)
    prob = (-unary).exp()
    loss = nn.DenseCRFLoss(1e-9, 15, 100, 0.5)
    layer = nn.DenseCRF(iterations=5, learnable=True, num_classes=21)

    def step(where: str, which: str) -> None:
        leaf = prob.to(where).requires_grad_()
        out = loss(image.to(where), leaf) if which == "loss" else layer.to(where)(image.to(where), leaf)[:, 0].sum()
        out.backward()

    rows = []
    for which in ("loss", "layer, 5 iterations"):
        name = f"DenseCRF {which}, {batch} images {size[1]}x{size[0]}, 21 classes, forward + backward"
        kind = which.split(",")[0]
        cpu = seconds_of(lambda kind=kind: step("cpu", kind), lambda: None, min(seconds, 1))
        wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        there = seconds_of(lambda kind=kind: step(device, kind), wait, seconds)
        rows.append(Row(name, "deeplab_fast, CPU", 1e3 * cpu / batch, 1.0, 0.0))
        rows.append(Row(name, f"deeplab_fast, {device}", 1e3 * there / batch, cpu / there, float("nan")))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="on the processor, tiny, without times")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each backend (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON file")
    arguments = parser.parse_args()
    if not arguments.dry_run and not torch.cuda.is_available():
        parser.error("no GPU that torch can use; --dry-run needs none")
    device, rows, failures = "cpu" if arguments.dry_run else "cuda", [], []
    problems = [Problem("tiny", size=(30, 40)), Problem("tiny batch", batch=3, size=(20, 24))]
    tasks: list[Callable[[], list[Row]]] = [
        lambda problem=problem: crf_rows(problem, device, arguments.seconds)
        for problem in (problems if arguments.dry_run else PROBLEMS)
    ]
    size, batch = ((20, 24), 2) if arguments.dry_run else ((321, 321), 8)
    tasks.append(lambda: gradient_rows(device, arguments.seconds, size, batch))
    for task in tasks:
        try:
            new = task()
        except Exception as error:  # the other cases are still worth their times
            failures.append(f"{type(error).__name__}: {error}")
            print(f"FAILED {failures[-1]}", flush=True)
            continue
        rows += new
        for row in new:
            figures = "" if arguments.dry_run else f"{row.milliseconds:9.3f} ms  x{row.faster:7.1f}"
            print(f"{row.case:70} {row.backend:32} {figures}  largest error {row.error:.1e}", flush=True)
        if not arguments.dry_run:  # after every case: a run that is cut short leaves what it has
            save(arguments.out, rows, failures)
    return 1 if failures else 0


def save(folder: Path, rows: list[Row], failures: list[str]) -> None:
    chip = torch.cuda.get_device_name().lower().replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    found = {"chip": chip, "torch": torch.__version__, "rows": [asdict(row) for row in rows], "failures": failures}
    (folder / f"gpu_crf_{date.today()}_{chip}.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    raise SystemExit(main())
