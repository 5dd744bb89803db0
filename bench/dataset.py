"""`python -m bench.dataset`: a data set through `deeplab-fast crf` and through a pool of pydensecrf processes.

Whole commands, from their start to their end, with decoding, upsampling and writing, in turn, on the same processors.
Memory is the largest sum over all their processes (proportional set size, so that what they share counts once).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import typer
from PIL import Image
from rich.console import Console

from bench import report, results
from bench.results import WHOLE, Measurement, Run
from tests.support.photos import PHOTOS, photo, scores

PEER, OURS = "a pool of pydensecrf", "deeplab-fast crf"
CLASSES, PRESENT, STRIDE = 21, 5, 8  # as of VOC and a DeepLab: most classes are in no one photo
EVERY = 0.05  # seconds between looks at the memory
MOST_DIFFERENT = 1e-3  # share of the pixels whose label may differ, by rounding in the upsampling


def make_set(folder: Path, images: int, height: int, width: int) -> None:
    """Photos as JPEG, and logits at the network's size in float16: parts of four photos, each shifted otherwise."""
    for name in ("images", "scores"):
        (folder / name).mkdir()
    for number in range(images):
        pixels = np.roll(photo(PHOTOS[number % len(PHOTOS)], height, width), 37 * (number // len(PHOTOS)), axis=1)
        probabilities = scores(pixels, CLASSES, PRESENT, seed=number)
        logits = np.log(probabilities[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE] + 1e-7)
        Image.fromarray(pixels).save(folder / f"images/{number:05}.jpg", quality=92)
        np.savez_compressed(folder / f"scores/{number:05}.npz", logits=logits.astype(np.float16))


def commands(folder: Path, jobs: int) -> dict[str, list[str]]:
    """Who does it, and how; each writes to a folder of its own."""
    given = [str(folder / "images"), str(folder / "scores")]
    pool = str(results.ROOT / "bench" / "pydensecrf_pool.py")
    ours = ["-m", "deeplab_fast", "crf", *given, "-o", str(folder / OURS), "--no-skip-existing", "--jobs", str(jobs)]
    return {
        PEER: [sys.executable, pool, *given, str(folder / PEER), str(jobs)],
        OURS: [sys.executable, *ours, "--preset", "deeplab", "--kind", "logits"],
    }


def timed(command: list[str]) -> tuple[float, int]:
    """Seconds that a command took, and the most memory that it and its processes had, bytes."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=results.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak, ended = [0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, peak, ended))
    watcher.start()
    _, said = process.communicate()
    seconds = time.perf_counter() - start
    ended.set()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {said.decode()}")
    return seconds, peak[0]


def _watch(pid: int, peak: list[int], ended: threading.Event) -> None:
    while not ended.wait(EVERY):
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(pid)
            peak[0] = max(peak[0], sum(map(_memory, [root, *root.children(recursive=True)])))


def _memory(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return process.memory_full_info().pss
    return 0


def different(folder: Path) -> float:
    """Share of the pixels that have another label by one than by the other."""
    shares = []
    for path in sorted((folder / PEER).glob("*.png")):
        one, other = (np.array(Image.open(folder / who / path.name)) for who in (PEER, OURS))
        shares.append((one != other).mean())
    return float(np.mean(shares))


def main(
    images: Annotated[int, typer.Option(min=1, help="In the set.")] = 200,
    size: Annotated[str, typer.Option(help="Of each, width×height.")] = "500x375",
    jobs: Annotated[int, typer.Option(min=1, help="Processes of each, on as many processors.")] = 2,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    save: Annotated[str, typer.Option(help="Write bench/results/NAME.json.", metavar="NAME")] = "",
) -> None:
    """Time an image and peak memory of the command and of a pool of pydensecrf processes."""
    width, height = map(int, size.split("x"))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:jobs])
    run, console = Run.new(), Console(stderr=True)
    seconds: dict[str, list[float]] = {PEER: [], OURS: []}
    peaks: dict[str, list[float]] = {PEER: [], OURS: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with console.status("making the set"):
            make_set(folder, images, height, width)
        for number in range(rounds):
            for who, command in commands(folder, jobs).items():
                with console.status(f"round {number + 1} of {rounds}: {who}"):
                    took, peak = timed(command)
                seconds[who].append(took / images)
                peaks[who].append(peak)
        error = different(folder)
    if error > MOST_DIFFERENT:
        run.failures.append(f"{100 * error:.3f} % of the labels differ")
    what = f"{size}, {CLASSES} classes, {images} images, {jobs} processes"
    sizes = {"width": width, "height": height, "labels": CLASSES, "images": images, "jobs": jobs}
    for unit, samples in (("s", seconds), ("B", peaks)):
        run.measurements += [
            Measurement("data set", what, "cpu", WHOLE, who, PEER, 1, sizes, unit, samples[who], error * (who == OURS))
            for who in samples
            if not run.failures
        ]
    lines = [
        f"{who}: {1 / np.median(taken):.2f} images/s, {np.median(peaks[who]) / 1e6:.0f} MB at most"
        for who, taken in seconds.items()
    ]
    report.finish(run, save, lines)


if __name__ == "__main__":
    typer.run(main)
