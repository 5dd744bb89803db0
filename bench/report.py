"""The table of a benchmark run."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from .cases import Case
from .measure import WHOLE, Samples, ratio


@dataclass(frozen=True)
class Row:
    """One line: times in seconds, and how many times faster than the peer by median and by best."""

    group: str
    stage: str
    backend: str
    rounds: int
    median: float
    best: float
    faster_median: float
    faster_best: float

    @classmethod
    def of(cls, case: Case, stage: str, backend: str, samples: Samples) -> Row:
        times = samples[stage, backend]
        return cls(
            group=case.name,
            stage=stage,
            backend=backend,
            rounds=len(times),
            median=statistics.median(times),
            best=min(times),
            faster_median=ratio(samples, stage, backend, case.peer),
            faster_best=ratio(samples, stage, backend, case.peer, min),
        )


def print_table(rows: list[Row]) -> None:
    table = Table(title="Times in milliseconds; × = times faster than the peer in the same run", title_justify="left")
    for name in ("op: size", "stage", "backend"):
        table.add_column(name, overflow="fold")
    for name in ("rounds", "median", "best", "× median", "× best"):
        table.add_column(name, justify="right", no_wrap=True)
    last = None
    for row in rows:
        if last is not None and row.group != last.group:
            table.add_section()
        first_of_group = last is None or row.group != last.group
        first_of_stage = first_of_group or row.stage != last.stage
        table.add_row(
            row.group if first_of_group else "",
            row.stage if first_of_stage else "",
            row.backend,
            str(row.rounds),
            f"{row.median * 1e3:.1f}",
            f"{row.best * 1e3:.1f}",
            _times(row.faster_median),
            _times(row.faster_best),
            style="bold" if row.stage == WHOLE else None,
        )
        last = row
    console = Console()
    # Redirected output has no width of its own; do not fold it to 80 columns.
    Console(width=max(console.width, 130) if not console.is_terminal else None).print(table)


def _times(factor: float) -> str:
    return "" if math.isnan(factor) else f"{factor:.2f}"
