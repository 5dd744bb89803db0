"""Timing of one case: its backends in turn, again and again, so that a slow moment hits all of them alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from inspect import isgenerator
from typing import Any, cast

import torch

from bench.case import Backend, Case
from bench.results import WHOLE

LONG_ROUND = 4.0  # seconds: a round that takes longer needs no warming up, and is measured from the first
CALLS = 10  # in one CUDA graph

Seconds = dict[str, float]  # of each stage, and of the whole
Call = Callable[[], tuple[Seconds, Any]]  # makes one timed call: the times, and the result


@dataclass(frozen=True)
class Budget:
    """How long to measure: rounds of all backends until `seconds` a case are over, within these bounds."""

    seconds: float
    least: int
    most: int


QUICK, FULL = Budget(seconds=4, least=3, most=15), Budget(seconds=10, least=3, most=15)
GPU = Budget(seconds=1, least=5, most=200)


@dataclass
class Outcome:
    """What came of a case, by backend. One that failed or disagreed has no times: a wrong answer has no speed."""

    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # backend, stage -> seconds, one a round
    errors: dict[str, float] = field(default_factory=dict)  # backend -> how far its result is from the peer's
    qualities: dict[str, float] = field(default_factory=dict)  # backend -> how good its result is, by the case
    failures: dict[str, str] = field(default_factory=dict)  # backend -> why

    def add(self, name: str, seconds: Seconds) -> None:
        stages = self.samples.setdefault(name, {stage: [] for stage in seconds})
        for stage, took in seconds.items():
            stages[stage].append(took)


def measure(case: Case, budget: Budget) -> Outcome:
    """Compare the results of a case's backends, and time those that agree."""
    with _threads_put_back():
        outcome, begin = Outcome(), time.perf_counter()
        calls, first = _first_round(case, CLOCKS, outcome)
        turns = {name: call for name, call in calls.items() if not case.backends[name].once}
        long = sum(first[name][WHOLE] for name in turns) >= LONG_ROUND
        for name, seconds in first.items():
            if long or name not in turns:
                outcome.add(name, seconds)
        rounds = int(long)
        if not long:
            begin = time.perf_counter()
        while turns and (
            rounds < budget.least or (rounds < budget.most and time.perf_counter() - begin < budget.seconds)
        ):
            _round(case, turns, outcome)
            rounds += 1
    return outcome


def compare(case: Case) -> Outcome:
    """Compute once by each backend, whatever its clock, and compare the results."""
    with _threads_put_back():
        outcome = Outcome()
        _first_round(case, dict.fromkeys(CLOCKS, by_wall), outcome)
    return outcome


class _threads_put_back:
    """Backends and inputs set torch's number of threads, which the numpy dense CRF follows."""

    def __enter__(self) -> None:
        self.threads = torch.get_num_threads()

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.threads)


def _first_round(
    case: Case, clocks: dict[str, Callable[..., Call]], outcome: Outcome
) -> tuple[dict[str, Call], dict[str, Seconds]]:
    """The calls of the backends whose results are as they should be, and what the first of each took."""
    inputs, expected = case.inputs(), None
    calls, seconds = {}, {}
    for name, backend in case.backends.items():
        try:
            _set_threads(backend)
            own = backend.own(inputs)
            if backend.compiles:
                backend.run(own)
            call = clocks[backend.clock](backend.run, own)
            took, result = call()
            if set(took) != {WHOLE, *case.stages}:
                raise ValueError(f"its stages are {set(took)}, the case names {case.stages}")
            if expected is None:
                expected = result
            elif case.error is not None:
                error = outcome.errors[name] = case.error(result, expected)
                if not error <= case.allowed:  # or NaN
                    raise ValueError(f"differs from {case.peer} by {error:.1e}, allowed are {case.allowed:.1e}")
            if case.quality is not None:
                outcome.qualities[name] = case.quality(result)
        except Exception as error:  # the other backends are still worth their times
            outcome.failures[name] = f"{type(error).__name__}: {error}"
            continue
        calls[name], seconds[name] = call, took
    return calls, seconds


def _round(case: Case, calls: dict[str, Call], outcome: Outcome) -> None:
    gc.collect()
    gc.disable()
    try:
        for name, call in calls.items():
            _set_threads(case.backends[name])
            outcome.add(name, call()[0])  # the result is freed at once, which is not part of the call
    finally:
        gc.enable()


def _set_threads(backend: Backend) -> None:
    if backend.threads is not None:
        torch.set_num_threads(backend.threads)


# --- Clocks: from a backend's function and its inputs to timed calls -----------------------------------------------


def by_wall(run: Callable[[Any], Any], inputs: Any) -> Call:
    def call() -> tuple[Seconds, Any]:
        stages: Seconds = {}
        begin = last = time.perf_counter()
        result = run(inputs)
        if not isgenerator(result):
            return {WHOLE: time.perf_counter() - begin}, result
        steps = cast("Generator[str, None, Any]", result)
        while True:
            try:
                stage = next(steps)
            except StopIteration as stop:
                # Freeing what the generator held is not part of the call.
                return {WHOLE: last - begin, **stages}, stop.value
            now = time.perf_counter()
            stages[stage], last = now - last, now

    return call


def by_events(run: Callable[[Any], Any], inputs: Any) -> Call:
    """On a GPU, from the launch of the first kernel until the last is done."""

    def call() -> tuple[Seconds, Any]:
        begin, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        result = run(inputs)
        done.record()
        done.synchronize()
        return {WHOLE: begin.elapsed_time(done) / 1e3}, result

    return call


def by_graph(run: Callable[[Any], Any], inputs: Any) -> Call:
    """On a GPU, of one call in a graph of several: what the host takes to launch is left out.

    Inputs that fit in the cache stay there, as they do in a network.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            result = run(inputs)
    replay = by_events(lambda _: graph.replay(), None)

    def call() -> tuple[Seconds, Any]:
        seconds, _ = replay()
        return {WHOLE: seconds[WHOLE] / CALLS}, result

    return call


CLOCKS: dict[str, Callable[[Callable[[Any], Any], Any], Call]] = {
    "wall": by_wall,
    "events": by_events,
    "graph": by_graph,
}
