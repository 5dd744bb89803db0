"""What GPU kernels should take, from what they do: `python -m bench.gpu_model` prints predicted beside measured times.

Of every launch (`bench.gpu_kernels`, `bench.gpu_convolutions`) the slowest of five limits counts: memory, the L2 cache,
arithmetic, the accesses of a thread that wait for each other, and the launch. A chip's figures are its datasheet's, or
assumed where it is silent; so a prediction is a floor to be near, and a kernel far from it is one to be looked at.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bench import gpu_convolutions, gpu_kernels, results
from bench.gpu_kernels import LatticeShape, Launch, lattice_shape, together

THREADS = 256  # of a block: kThreads in csrc/cuda/common.cuh
UNKNOWN = 64  # registers, where they are not known


@dataclass(frozen=True)
class Chip:
    """Rates a second; `l2_rate`, `latency` and `launch` are assumed from what others have measured."""

    name: str
    architecture: str  # of the machine code that runs on it
    processors: int  # multiprocessors
    memory: float  # bytes a second
    l2_size: float
    l2_rate: float
    float32: float  # operations a second
    matrix: float  # of 16-bit products
    latency: float = 250e-9  # of one access that the L1 has not, seconds
    launch: float = 2.5e-6  # seconds from one launch to the next
    graph: float = 1.3e-6  # the same in a CUDA graph

    threads = 2048  # of a multiprocessor
    registers = 65536
    shared = 164 * 1024  # bytes; Hopper has 228


CHIPS = {
    "h100": Chip("H100 SXM", "sm_90a", 132, 3.35e12, 50e6, 5.5e12, 67e12, 990e12),
    "a100": Chip("A100 SXM 80 GB", "sm_80", 108, 2.04e12, 40e6, 4.5e12, 19.5e12, 312e12),
}


# --- One launch ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Time:
    """Seconds by each limit, of all launches of a line."""

    limits: dict[str, float]

    @property
    def limit(self) -> str:
        return max(self.limits, key=lambda name: self.limits[name])

    @property
    def seconds(self) -> float:
        return max(self.limits.values())


def occupancy(registers: int, chip: Chip, threads: int = THREADS, shared: int = 0) -> float:
    """Part of a multiprocessor's threads that are there at once."""
    each = math.ceil(max(registers, 16) / 8) * 8 * threads  # registers are given out in eights
    blocks = min(chip.registers // each, chip.threads // threads)
    if shared:
        blocks = min(blocks, chip.shared // shared)
    return blocks * threads / chip.threads


def time_of(launch: Launch, chip: Chip, resident: float, working_set: float, graph: bool) -> Time:
    """Of one line. `resident`: the occupancy; `working_set`: bytes of all that the op goes through again and again."""
    each = 1 / max(launch.launches, 1)
    waves = launch.threads * each / (chip.processors * chip.threads * resident)
    # Programs fill all multiprocessors a number of times, the last time in part.
    rounds = math.ceil(launch.programs / chip.processors) * chip.processors / launch.programs if launch.programs else 1
    # What fits into half of the L2 is there from the launch before; the other half is for what streams by.
    from_memory = launch.once if working_set > chip.l2_size / 2 else 0.0
    rate = chip.matrix if launch.matrix else chip.float32
    return Time(
        {
            "memory": from_memory / chip.memory,
            "L2": launch.moved / chip.l2_rate,
            "arithmetic": rounds * launch.flops / rate,
            "latency": launch.launches * max(1.0, waves) * launch.chain * chip.latency if launch.threads else 0.0,
            "launch": launch.launches * (chip.graph if graph else chip.launch),
        }
    )


@lru_cache
def compiled_registers() -> dict[str, dict[str, int]]:
    """Registers of the compiled library's kernels: architecture -> (mangled) symbol -> count; {} without cuobjdump."""
    from deeplab_fast import _native

    found = find_spec("triton")  # whose package has one
    places = [Path(found.origin).parent / "backends/nvidia/bin/cuobjdump"] if found and found.origin else []
    tool = next((str(place) for place in places if place.exists()), None) or shutil.which("cuobjdump")
    library = _native.LIBRARIES["cuda"]
    if tool is None or not library.exists():
        return {}
    text = subprocess.run([tool, "--dump-resource-usage", library], capture_output=True, text=True, check=True).stdout
    registers: dict[str, dict[str, int]] = {}
    for architecture, code in re.findall(r"^arch = (\S+)$(.*?)(?=^arch = |\Z)", text, re.DOTALL | re.MULTILINE):
        of_kernels = registers.setdefault(architecture, {})
        for symbol, count in re.findall(r"Function (\S+):\s+REG:(\d+)", code):
            of_kernels[symbol] = int(count)
    return registers


def registers_of(launch: Launch, chip: Chip) -> int | None:
    if not launch.symbol:  # of a library, or of Triton, which gives out what the tile needs
        return None
    known = compiled_registers().get(chip.architecture, {})
    return next((count for symbol, count in known.items() if launch.symbol in symbol), None)


# --- Cases ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelCase:
    """`op` and `size` are those of the bench's case, whose results are put beside; "" for none."""

    name: str
    launches: Callable[[], Sequence[Launch]]
    op: str = ""
    size: str = ""


def _photo_features(std: float, colour: float | None, width: int = 500, height: int = 375) -> np.ndarray:
    from tests.support.photos import photo

    y, x = np.mgrid[:height, :width].astype(np.float32)
    position = [x / std, y / std]
    image = photo("coffee", height, width).astype(np.float32)
    colours = [] if colour is None else [image[..., c] / colour for c in range(3)]
    return np.stack([plane.reshape(-1) for plane in (*position, *colours)])


def _room_features(points: int = 196608) -> np.ndarray:
    """Points (x, y, z, r, g, b) of the inside of a room, in units of standard deviations: 5 cm and 10 grey levels."""
    generator = np.random.default_rng(0)
    place, wall = generator.random((points, 3)), generator.integers(0, 6, points)
    place[np.arange(points), wall // 2] = wall % 2
    metres = place * [5, 4, 3]
    colours = 128 + 40 * np.sin(metres @ generator.normal(size=(3, 3))) + generator.normal(size=(points, 3)) * 4
    order = np.lexsort((metres[:, 0], metres[:, 1], metres[:, 2]))
    return np.concatenate([metres / 0.05, colours / 10], axis=1)[order].T.astype(np.float32)


def _crf(preset: str) -> list[LatticeShape]:
    from deeplab_fast.crf import parameters

    chosen = parameters(preset)
    colour = chosen.bi_rgb_std
    assert isinstance(colour, int | float)  # one for all channels, in every preset here
    spatial, bilateral = _photo_features(chosen.pos_xy_std, None), _photo_features(chosen.bi_xy_std, colour)
    return [lattice_shape(spatial), lattice_shape(bilateral)]


def _crf_case(preset: str, size: int = 4) -> ModelCase:
    dtype = {4: "float32", 2: "float16"}[size]
    return ModelCase(
        f"dense_crf 500x375, 21 labels, {preset}, {dtype}",
        lambda: list(gpu_kernels.dense_crf(_crf(preset), 21, 10, size)),
        op="dense_crf", size=f"500x375 coffee, 21 labels, {preset}, {dtype}",
    )  # fmt: skip


def _upsample_case(op: str) -> ModelCase:
    return ModelCase(
        f"{op} 21 classes, 65x65 to 513x513",
        lambda: list(gpu_kernels.upsample(op, 21, (65, 65), (513, 513))),
        op=op, size="21 classes, to 513x513",
    )  # fmt: skip


CASES = [
    ModelCase(
        "permutohedral_filter 196608 points of a room, 6 dimensions, 3 channels",
        lambda: list(gpu_kernels.permutohedral_filter(lattice_shape(_room_features()), 3)),
    ),
    ModelCase(
        "permutohedral_filter 500x375, bilateral 67, 3, 21 channels",
        lambda: list(gpu_kernels.permutohedral_filter(lattice_shape(_photo_features(67, 3)), 21)),
        op="permutohedral_filter", size="forward, 500x375, bilateral 67, 3, 21 channels",
    ),
    _crf_case("deeplab"),
    _crf_case("psa"),
    _crf_case("deeplab", size=2),
    _upsample_case("upsample_argmax"),
    _upsample_case("upsample_softmax"),
    *(
        ModelCase(f"{case.op} {case.size}", case.launches, op=case.op, size=case.size)
        for case in gpu_convolutions.CASES
    ),
]  # fmt: skip


# --- The command ---------------------------------------------------------------------------------------------------


def lines_of(launches: Sequence[Launch]) -> list[Launch]:
    """A line a kernel, in the order in which they first come."""
    by_kernel: dict[str, list[Launch]] = {}
    for launch in launches:
        by_kernel.setdefault(launch.kernel, []).append(launch)
    return [together(same) for same in by_kernel.values()]


def predict(launches: Sequence[Launch], chip: Chip, graph: bool) -> list[tuple[Launch, float, Time]]:
    """Of each kernel its launches together, the occupancy, and the time."""
    working_set = max(launch.once for launch in launches)
    predicted = []
    for line in lines_of(launches):
        of_kernel = [launch for launch in launches if launch.kernel == line.kernel]
        resident = occupancy(registers_of(line, chip) or UNKNOWN, chip, line.block, line.shared)
        times = [time_of(launch, chip, resident, working_set, graph) for launch in of_kernel]
        # Of launches with different limits, what each one takes.
        seconds = {name: sum(time.seconds for time in times if time.limit == name) for name in times[0].limits}
        slowest = max(seconds, key=lambda name: seconds[name])
        predicted.append((line, resident, Time({name: 0.0 for name in seconds} | {slowest: sum(seconds.values())})))
    return predicted


def measured(case: ModelCase, runs: Sequence[results.Run], graph: bool) -> float | None:
    """Seconds, the median of our backend on a GPU, by whichever clock leaves out, or has, the launches."""
    for run in runs:
        for one in run.measurements:
            if (one.op, one.size, one.device, one.stage) != (case.op, case.size, "cuda", "whole") or one.unit != "s":
                continue
            if (
                one.backend.startswith("deeplab_fast")
                and "CPU" not in one.backend
                and ("graph" in one.backend) == graph
            ):
                return one.median
    return None


def table_of_kernels(case: ModelCase, launches: Sequence[Launch], chip: Chip, graph: bool) -> Table:
    table = Table(title=f"{case.name}, {chip.name}", title_justify="left")
    for heading in ("kernel", "launches", "threads", "read MB", "written MB", "memory MB", "MFLOP", "registers",
                    "resident", "µs", "limit"):  # fmt: skip
        table.add_column(heading, justify="left" if heading in ("kernel", "limit") else "right")
    for line, resident, time in predict(launches, chip, graph):
        amounts = (f"{amount / 1e6:.2f}" for amount in (line.read, line.written, line.once, line.flops))
        registers = registers_of(line, chip)
        table.add_row(
            line.kernel, str(line.launches), str(line.threads), *amounts, str(registers or ""),
            f"{resident:.0%}" if line.threads else "", f"{time.seconds * 1e6:.1f}", time.limit,
        )  # fmt: skip
    return table


def table_of_cases(
    cases: Sequence[tuple[ModelCase, Sequence[Launch]]], chips: Sequence[Chip], runs: Sequence[results.Run]
) -> Table:
    table = Table(title="Predicted beside measured, ms", title_justify="left")
    table.add_column("case")
    for chip in chips:
        for heading in (f"{chip.name}: launched", "in a graph", "limit"):
            table.add_column(heading, justify="right")
    for heading in ("measured", "in a graph", "× predicted"):
        table.add_column(heading, justify="right")
    for case, launches in cases:
        cells: list[str] = []
        for chip in chips:
            launched, in_graph = (predict(launches, chip, graph) for graph in (False, True))
            limits: dict[str, float] = {}
            for _, _, time in in_graph:
                limits[time.limit] = limits.get(time.limit, 0.0) + time.seconds
            cells += [f"{sum(time.seconds for *_, time in one) * 1e3:.3f}" for one in (launched, in_graph)]
            cells.append(max(limits, key=lambda name: limits[name]))
        found = [measured(case, runs, graph) for graph in (False, True)]
        cells += ["-" if one is None else f"{one * 1e3:.3f}" for one in found]
        known = next(((one, graph) for one, graph in zip(found[::-1], (True, False), strict=True) if one), None)
        if known:
            expected = sum(time.seconds for *_, time in predict(launches, chips[0], known[1]))
            cells.append(f"{known[0] / expected:.2f}")
        table.add_row(case.name, *cells)
    return table


app = typer.Typer(add_completion=False)


@app.command()
def main(
    words: Annotated[list[str] | None, typer.Argument(help="only cases whose name has all of these")] = None,
    results_file: Annotated[
        list[Path] | None, typer.Option("--results", exists=True, dir_okay=False, help="of runs on a GPU; several")
    ] = None,
    chip: Annotated[str, typer.Option(help=f"of the tables of kernels: {', '.join(CHIPS)}")] = "h100",
    kernels: Annotated[bool, typer.Option(help="a table of kernels for each case")] = True,
) -> None:
    """What the GPU kernels should take, from what they do, beside what they took."""
    if chip not in CHIPS:
        raise typer.BadParameter(f"{chip}, should be one of {', '.join(CHIPS)}", param_hint="--chip")
    console = Console(width=200) if not Console().is_terminal else Console()
    runs = [results.read(path) for path in results_file or []]
    chosen = [case for case in CASES if all(word in case.name for word in words or [])]
    if not chosen:
        raise typer.BadParameter(f"no case has all of {words}", param_hint="WORDS")
    made = [(case, case.launches()) for case in chosen]
    for case, launches in made if kernels else []:
        console.print(table_of_kernels(case, launches, CHIPS[chip], graph=True))
    console.print(table_of_cases(made, [CHIPS[chip], *(one for name, one in CHIPS.items() if name != chip)], runs))


if __name__ == "__main__":
    app()
