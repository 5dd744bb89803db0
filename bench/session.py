"""Measures many cases, one after the other, into one run of results."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console

from bench import results, runner
from bench.case import Case
from bench.results import Measurement, Run
from bench.runner import WHOLE, Budget, Outcome


def measure_all(
    cases: list[Case], run: Run, budget: Budget | None, compile_until: float = 0, file: Path | None = None
) -> None:
    """Add the cases' measurements and failures to `run`; without a budget, results are compared only.

    compile_until: seconds after which cases go without backends that compile first, 0 for never. file: where `run` is
    written after every case, so that a run that is cut short leaves what it has.
    """
    console, begin = Console(stderr=True), time.perf_counter()
    for number, case in enumerate(cases, 1):
        if budget is None or (compile_until and time.perf_counter() - begin > compile_until):
            compiling = {name for name, backend in case.backends.items() if backend.compiles}
            run.left_out += [f"{case.name}, {name}: compiling takes too long" for name in compiling]
            case = case.without(compiling)
        text = f"{number} of {len(cases)}: {case.name}"
        if not console.is_terminal:
            print(text, file=sys.stderr, flush=True)
        with console.status(text):
            try:
                outcome = runner.compare(case) if budget is None else runner.measure(case, budget)
            except Exception as error:  # the other cases are still worth their times
                run.failures.append(f"{case.name}: {type(error).__name__}: {error}")
                continue
        _add(run, case, outcome)
        if file:
            results.write(file, run)


def _add(run: Run, case: Case, outcome: Outcome) -> None:
    run.failures += [f"{case.name}, {name}: {why}" for name, why in outcome.failures.items()]
    for stage in (WHOLE, *case.stages):
        run.measurements += [
            measurement(
                case,
                name,
                stages[stage],
                stage=stage,
                error=outcome.errors.get(name),
                quality=outcome.qualities.get(name),
            )
            for name, stages in outcome.samples.items()
        ]


def measurement(
    case: Case,
    backend: str,
    samples: list[float],
    stage: str = WHOLE,
    unit: str = "s",
    error: float | None = None,
    quality: float | None = None,
) -> Measurement:
    return Measurement(
        op=case.op,
        size=case.size,
        device=case.device,
        stage=stage,
        backend=backend,
        peer=case.peer,
        threads=case.backends[backend].threads,
        sizes=dict(case.sizes),
        unit=unit,
        samples=samples,
        error=error,
        quality=quality,
    )
