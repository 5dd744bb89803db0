"""`python -m bench.processes`: the dense CRF in several processes of one thread each, as data sets are refined.

Every process refines the same photo again and again, beside the others; pydensecrf and this library in turn. What
counts is the time of a call while all processors are busy: caches and memory are shared then.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from bench import report
from bench.results import WHOLE, Measurement, Run
from deeplab_fast.crf import PRESETS
from tests.support.photos import photo, unary

PEER, OURS = "pydensecrf", "deeplab-fast"
WIDTH, HEIGHT = 500, 375
MOST_DIFFERENT = 1e-4  # share of the pixels whose label may differ


def maker(backend: str) -> Callable[[int, int, int], Any]:
    """The constructor of a CRF of one thread."""
    if backend == PEER:
        from pydensecrf.densecrf import DenseCRF2D

        return DenseCRF2D
    from deeplab_fast import pydensecrf

    pydensecrf.set_num_threads(1)
    return pydensecrf.densecrf.DenseCRF2D


def refine(make: Callable[[int, int, int], Any], preset: str, image: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """The whole call: both kernels, the unary, all iterations."""
    params = PRESETS[preset]
    crf = make(WIDTH, HEIGHT, len(energy))
    crf.addPairwiseGaussian(params.pos_xy_std, params.pos_w)
    crf.addPairwiseBilateral(params.bi_xy_std, params.bi_rgb_std, image, params.bi_w)
    crf.setUnaryEnergy(energy)
    return np.asarray(crf.inference(params.iterations))


def work(backend: str, preset: str, labels: int, seconds: float, together: Any, out: Any) -> None:
    """One process: warms up, waits for the others, and puts the seconds of its calls and its labels."""
    make, image = maker(backend), photo("coffee", HEIGHT, WIDTH).copy()
    energy = unary(image, labels, labels)
    chosen = refine(make, preset, image, energy).argmax(axis=0)
    together.wait()
    times: list[float] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(times) < 3:
        start = time.perf_counter()
        refine(make, preset, image, energy)
        times.append(time.perf_counter() - start)
    out.put((times, chosen))


def measure(backend: str, preset: str, labels: int, processes: int, seconds: float) -> tuple[list[float], np.ndarray]:
    """Seconds of the calls of all processes, and the labels."""
    context = multiprocessing.get_context("spawn")
    together, out = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=work, args=(backend, preset, labels, seconds, together, out)) for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    answers = [out.get() for _ in workers]
    for worker in workers:
        worker.join()
    return [one for times, _ in answers for one in times], answers[0][1]


def main(
    labels: Annotated[str, typer.Option(help="Numbers of labels, with commas.")] = "2,21",
    presets: Annotated[str, typer.Option(help="Presets, with commas.")] = "psa,irn,afa,deeplab",
    processes: Annotated[int, typer.Option(min=1, help="At once.")] = os.cpu_count() or 1,
    seconds: Annotated[float, typer.Option(help="How long each backend runs in a round.")] = 2.0,
    rounds: Annotated[int, typer.Option(min=1, help="How often all backends run, in turn.")] = 3,
    save: Annotated[str, typer.Option(help="Write bench/results/NAME.json.", metavar="NAME")] = "",
) -> None:
    """Time of a call in each of several processes of one thread."""
    run, console = Run.new(), Console(stderr=True)
    for count, preset in itertools.product(map(int, labels.split(",")), presets.split(",")):
        size = f"{WIDTH}x{HEIGHT}, {count} labels, {preset}, {processes} processes"
        sizes = {"width": WIDTH, "height": HEIGHT, "labels": count, "preset": preset, "processes": processes}
        samples: dict[str, list[float]] = {PEER: [], OURS: []}
        chosen = {}
        for _ in range(rounds):
            for backend in samples:
                with console.status(f"{size}: {backend}"):
                    times, chosen[backend] = measure(backend, preset, count, processes, seconds)
                samples[backend] += times
        error = float((chosen[PEER] != chosen[OURS]).mean())
        if error > MOST_DIFFERENT:
            run.failures.append(f"{size}: {100 * error:.3f} % of the labels differ")
            continue
        run.measurements += [
            Measurement("dense_crf", size, "cpu", WHOLE, backend, PEER, 1, sizes, "s", times, error * (backend == OURS))
            for backend, times in samples.items()
        ]
    report.finish(run, save)


if __name__ == "__main__":
    typer.run(main)
