"""`python -m bench.memory`: peak memory of each backend, every one in a process of its own.

What counts is the largest resident size while computing, input included, above the size after all imports.
"""

from __future__ import annotations

import importlib
import pickle
import re
import resource
import subprocess
import sys
import tempfile
from collections import deque
from inspect import isgenerator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .cases import Case, all_cases
from .selection import describe_left_out, select

ROOT = Path(__file__).parents[1]


def peak_rss() -> int:
    """Bytes. On Linux from /proc: getrusage counts the parent process from before the exec, too."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run_alone(name: str, backend: str, inputs_file: str) -> None:
    """In the child: print the bytes that one call took above what was resident before."""
    case = next(case for case in all_cases() if case.name == name)
    for module in case.imports:
        importlib.import_module(module)
    before = peak_rss()
    with open(inputs_file, "rb") as file:
        result = case.backends[backend](pickle.load(file))
    if isgenerator(result):
        deque(result, maxlen=0)
    print(peak_rss() - before)


def measure_case(case: Case) -> dict[str, int]:
    """Bytes for each backend."""
    with tempfile.TemporaryDirectory() as folder:
        inputs_file = Path(folder) / "inputs"
        # Made here, as making it may well take more memory than computing with it.
        inputs = case.inputs()
        peaks = {}
        for backend in case.backends:
            # Where each backend has inputs of its own, it gets no others'.
            own = {backend: inputs[backend]} if isinstance(inputs, dict) else inputs
            inputs_file.write_bytes(pickle.dumps(own, protocol=5))
            result = subprocess.run(
                [sys.executable, "-m", "bench.memory", "--alone", case.name, backend, str(inputs_file)],
                cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            peaks[backend] = int(result.stdout)
        return peaks


def main(
    words: Annotated[list[str] | None, typer.Argument(help="Only cases whose name has all these words.")] = None,
    full: Annotated[bool, typer.Option(help="All cases, also the large photos.")] = False,
) -> None:
    """Peak memory of each backend above its imports, input included."""
    cases, left_out = select(words or [], full)
    table = Table(title="Peak memory in MB, input included; × = part of the peer's", title_justify="left")
    for name in ("op: size", "backend"):
        table.add_column(name, overflow="fold")
    for name in ("peak", "×"):
        table.add_column(name, justify="right")
    console = Console()
    for case in cases:
        with console.status(case.name):
            peaks = measure_case(case)
        for backend, peak in peaks.items():
            part = f"{peak / peaks[case.peer]:.2f}" if case.peer else ""
            table.add_row(case.name if backend == next(iter(peaks)) else "", backend, f"{peak / 1e6:.0f}", part)
        table.add_section()
    Console(width=max(console.width, 110) if not console.is_terminal else None).print(table)
    for case in left_out:
        print(describe_left_out(case))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--alone"]:
        run_alone(*sys.argv[2:])
    else:
        typer.run(main)
