"""`python -m bench.memory`: peak memory of each backend, every one in a process of its own.

What counts is the largest resident size while computing, input included, above the size after all imports.
"""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
import tempfile
from collections import deque
from inspect import isgenerator
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from bench import registry, report, results, session
from bench.case import Case, Target
from deeplab_fast._limits import peak_memory

# What backends import when they first compute, beside the modules that they need: no part of their memory.
IMPORTED = ("deeplab_fast.ops", "deeplab_fast.nn", "deeplab_fast.patching", "deeplab_fast.pydensecrf.densecrf")


def run_alone(name: str, backend_name: str, inputs_file: str) -> None:
    """In the child: print the bytes that one call took above what was resident before."""
    case = next(case for case in registry.all_cases(Target()) if case.name == name)
    backend = case.backends[backend_name]
    for module in (*IMPORTED, *backend.needs):
        importlib.import_module(module)
    if backend.threads is not None:
        torch.set_num_threads(backend.threads)
    before = peak_memory()
    with open(inputs_file, "rb") as file:
        result = backend.run(pickle.load(file))
    if isgenerator(result):
        deque(result, maxlen=0)
    print(peak_memory() - before)


def measure_case(case: Case) -> dict[str, int]:
    """Bytes for each backend."""
    with tempfile.TemporaryDirectory() as folder:
        inputs_file = Path(folder) / "inputs"
        # Made here, as making it may well take more memory than computing with it.
        inputs = case.inputs()
        peaks = {}
        for name, backend in case.backends.items():
            inputs_file.write_bytes(pickle.dumps(backend.own(inputs), protocol=5))
            result = subprocess.run(
                [sys.executable, "-m", "bench.memory", "--alone", case.name, name, str(inputs_file)],
                cwd=results.ROOT, stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            peaks[name] = int(result.stdout)
        return peaks


def main(
    words: Annotated[list[str] | None, typer.Argument(help="Only cases whose name has all these words.")] = None,
    full: Annotated[bool, typer.Option("--full", help="All cases, also the large photos.")] = False,
    op: Annotated[list[str] | None, typer.Option(help="Only cases of this op; may be given more than once.")] = None,
    save: Annotated[str, typer.Option(help="Write bench/results/NAME.json.", metavar="NAME")] = "",
) -> None:
    """Peak memory of each backend above its imports, input included."""
    run = results.Run.new()
    cases, run.left_out = registry.runnable(registry.named(Target(), words or [], op or [], full))
    console = Console(stderr=True)
    for case in cases:
        with console.status(case.name):
            peaks = measure_case(case)
        run.measurements += [session.measurement(case, name, [peak], unit="B") for name, peak in peaks.items()]
    report.finish(run, save)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--alone"]:
        run_alone(*sys.argv[2:])
    else:
        typer.run(main)
