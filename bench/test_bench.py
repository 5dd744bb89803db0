"""All cases through pytest-benchmark: group "op: size" (and the stage), parameter "backend".

The backends of a case are timed in turn (measure.py), which pytest-benchmark cannot do by itself; so each
benchmark here replays the times that were taken for it, and pytest-benchmark keeps, compares and writes them.
"""

from __future__ import annotations

import functools

import pytest

from .cases import Case
from .measure import WHOLE, Budget, Samples, measure, ratio


class Replay:
    """A clock for pytest-benchmark: between two readings passes the next of the recorded durations."""

    def __init__(self) -> None:
        self.durations: list[float] = []
        self._now, self._running = 0.0, False

    def __call__(self) -> float:
        if self._running and self.durations:
            self._now += self.durations.pop(0)
        self._running = not self._running
        return self._now


clock = Replay()


@functools.lru_cache(maxsize=1)  # the benchmarks of one case follow one another
def measured(case: Case, budget: Budget) -> Samples:
    return measure(case, budget)


@pytest.mark.benchmark(timer=clock)
def test_bench(benchmark, case, stage, backend, budget, report):
    samples = measured(case, budget)
    benchmark.group = case.name if stage == WHOLE else f"{case.name} [{stage}]"
    benchmark.extra_info.update(
        case.details, op=case.op, size=case.size, stage=stage, backend=backend,
        times_faster_median=ratio(samples, stage, backend, case.peer),
        times_faster_best=ratio(samples, stage, backend, case.peer, min),
    )  # fmt: skip
    clock.durations = list(samples[stage, backend])
    benchmark.pedantic(lambda: None, rounds=len(clock.durations))
    report(case, stage, backend, samples)
