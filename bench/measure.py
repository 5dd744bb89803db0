"""Timing of one case: its backends in turn, again and again, so that a slow moment hits all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from inspect import isgenerator
from typing import Any

from .cases import Case

WHOLE = "whole"


@dataclass(frozen=True)
class Budget:
    """How long to measure: rounds of all backends until `seconds` a case are over, within these bounds."""

    seconds: float = 4.0
    least: int = 3
    most: int = 15


# A round that takes longer than this needs no warming up: it is measured from the first.
LONG_ROUND = 4.0

Samples = dict[tuple[str, str], list[float]]  # (stage, backend) -> seconds


def measure(case: Case, budget: Budget) -> Samples:
    """Seconds of each stage (and the whole) of each backend, one entry a round.

    Raises AssertionError when a backend's result does not agree with the peer's: a wrong answer has no speed.
    """
    inputs = case.inputs()
    samples: Samples = {(stage, name): [] for stage in (WHOLE, *case.stages) for name in case.backends}
    begin, rounds = time.perf_counter(), 0
    first = _round(case, inputs, check=True)
    if time.perf_counter() - begin < LONG_ROUND:
        begin = time.perf_counter()
    else:
        _append(samples, first)
        rounds = 1
    while rounds < budget.least or (rounds < budget.most and time.perf_counter() - begin < budget.seconds):
        _append(samples, _round(case, inputs))
        rounds += 1
    return samples


def ratio(
    samples: Samples, stage: str, backend: str, peer: str | None, statistic: Callable = statistics.median
) -> float:
    """How many times faster than the peer; NaN where the case has none."""
    if peer is None:
        return float("nan")
    return statistic(samples[stage, peer]) / statistic(samples[stage, backend])


def _round(case: Case, inputs: Any, check: bool = False) -> dict[tuple[str, str], float]:
    seconds: dict[tuple[str, str], float] = {}
    expected = None
    for name, backend in case.backends.items():
        gc.collect()
        gc.disable()
        try:
            stages, result = _time(backend, inputs)
        finally:
            gc.enable()
        if set(stages) != {WHOLE, *case.stages}:
            raise ValueError(f"{case.name}: {name} has stages {set(stages)}, the case names {case.stages}")
        seconds.update({(stage, name): took for stage, took in stages.items()})
        if check and case.agree is not None and name == case.peer:
            expected = result
        elif expected is not None:
            assert case.agree(result, expected), f"{case.name}: {name} disagrees with {case.peer}"
    return seconds


def _time(backend: Callable[[Any], Any], inputs: Any) -> tuple[dict[str, float], Any]:
    stages: dict[str, float] = {}
    begin = last = time.perf_counter()
    result = backend(inputs)
    if isgenerator(result):
        steps = result
        while True:
            try:
                stage = next(steps)
            except StopIteration as stop:
                result = stop.value
                break
            now = time.perf_counter()
            stages[stage], last = now - last, now
        stages[WHOLE] = last - begin  # freeing what the generator held is not part of the call
    else:
        stages[WHOLE] = time.perf_counter() - begin
    return stages, result


def _append(samples: Samples, seconds: dict[tuple[str, str], float]) -> None:
    for key, took in seconds.items():
        samples[key].append(took)
