"""Tables of results. `python -m bench.report FILE…` prints those of files, or two files beside each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench.results import FOLDER, WHOLE, Run, best, committed, median, read, write

UNITS = {"s": ("ms", 1e3), "B": ("MB", 1e-6)}


def print_run(run: Run, title: str = "") -> None:
    """Its measurements, a block a case, and what failed or was left out."""
    for unit, rows in itertools.groupby(run.measurements, lambda m: m.unit):
        _print_measurements(run, list(rows), unit, title)
    for text in run.failures:
        print(f"FAILED {text}")
    for text in run.left_out:
        print(f"left out: {text}")


def finish(run: Run, save: str, lines: Sequence[str] = ()) -> None:
    """End a command: print its run, then lines about it, and write bench/results/{save}.json, if there is a name.

    Raises:
        typer.Exit: with code 1, if anything failed.
    """
    print_run(run)
    for line in lines:
        print(line)
    if save:
        write(FOLDER / f"{save}.json", run)
    if run.failures:
        raise typer.Exit(1)


def describe(run: Run) -> str:
    """Machine and versions in a line; what is not known is not named."""
    machine, software = run.machine, run.software
    parts = [machine["processor"], f"{machine['cores']} cores", machine["gpu"]]
    names = {"torch": "torch", "onednn": "oneDNN", "cuda": "CUDA"}
    parts += [f"{name} {software[key]}" for key, name in names.items() if software.get(key)]
    parts += [f"instruction set {software['deeplab_fast_isa']}"] if software.get("deeplab_fast_isa") else []
    return ", ".join(str(part) for part in [*parts, run.date[:10]] if part)


def _print_measurements(run: Run, rows: list, unit: str, title: str) -> None:
    name, factor = UNITS[unit]
    better = "faster than" if unit == "s" else "less than"
    heading = f"{describe(run)}\nin {name}; × = times {better} the block's first backend, in the same run"
    table = Table(title=f"{title}\n{heading}" if title else heading, title_justify="left")
    for column in ("op: size", "stage", "backend"):
        table.add_column(column, overflow="fold")
    for column in ("rounds", "median", "best", "× median", "× best"):
        table.add_column(column, justify="right", no_wrap=True)
    graded = any(row.quality is not None for row in rows)
    if graded:
        table.add_column("mIoU %", justify="right", no_wrap=True)
    last = (None, None)
    for row in rows:
        new_case, new_stage = row.case != last[0], (row.case, row.stage) != last
        if new_case and last[0] is not None:
            table.add_section()
        table.add_row(
            row.case if new_case else "",
            row.stage if new_stage else "",
            row.backend,
            str(len(row.samples)),
            _figure(factor * row.median),
            _figure(factor * row.best),
            _times(run.times_better(row, median)),
            _times(run.times_better(row, best)),
            *[f"{100 * row.quality:.1f}" if row.quality is not None else ""] * graded,
            style="bold" if row.stage == WHOLE else None,
        )
        last = (row.case, row.stage)
    _console().print(table)


def print_two(one: Run, other: Run) -> None:
    """What both have measured: medians, and how many times better the second run is."""
    table = Table(title=f"1: {describe(one)}\n2: {describe(other)}", title_justify="left")
    for column in ("op: size", "stage", "backend"):
        table.add_column(column, overflow="fold")
    for column in ("1", "2", "1 / 2"):
        table.add_column(column, justify="right", no_wrap=True)
    others = {(m.case, m.device, m.stage, m.backend, m.unit): m for m in other.measurements}
    for row in one.measurements:
        same = others.get((row.case, row.device, row.stage, row.backend, row.unit))
        if same is not None:
            name, factor = UNITS[row.unit]
            figures = [f"{_figure(factor * m.median)} {name}" for m in (row, same)]
            table.add_row(row.case, row.stage, row.backend, *figures, _times(row.median / same.median))
    _console().print(table)


def _console() -> Console:
    console = Console()
    # Redirected output has no width of its own; do not fold it to 80 columns.
    return Console(width=max(console.width, 130) if not console.is_terminal else None)


def _figure(value: float) -> str:
    return f"{value:.3g}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _times(factor: float) -> str:
    return "" if math.isnan(factor) else f"{factor:.2f}"


def main(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Files of results (default: all in bench/results).")
    ] = None,
    beside: Annotated[bool, typer.Option("--beside", help="Two files, figure beside figure.")] = False,
) -> None:
    """Print the tables of files of results."""
    runs = [(path, read(path)) for path in files or committed()]
    if beside:
        if len(runs) != 2:
            raise typer.BadParameter(f"--beside takes two files, got {len(runs)}")
        print_two(runs[0][1], runs[1][1])
        return
    for path, run in runs:
        print_run(run, path.name)


if __name__ == "__main__":
    typer.run(main)
