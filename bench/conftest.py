"""Options, selection of cases and the table of the benchmarks."""

from __future__ import annotations

import math

import pytest

from .cases import Case
from .measure import WHOLE, Budget, Samples
from .report import Row, print_table
from .selection import describe_left_out, select

ROWS = pytest.StashKey[list[Row]]()
LEFT_OUT = pytest.StashKey[list[Case]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench", "benchmarks of deeplab_fast")
    group.addoption("--full", action="store_true", help="all cases, not only the quick ones (much longer)")
    group.addoption("--case", action="append", default=[], help="only cases with this in their name; may be repeated")
    group.addoption("--rounds", type=int, default=0, help="exactly this many rounds a case")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS], config.stash[LEFT_OUT] = [], []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    config = metafunc.config
    # The defaults are for `pytest .`, which reads this file too late for its options.
    words, full = config.getoption("--case", default=[]), config.getoption("--full", default=False)
    cases, config.stash[LEFT_OUT] = select(words, full)
    combinations = [
        pytest.param(case, stage, backend, id=f"{case.name}-{stage}-{backend}")
        for case in cases
        for stage in (WHOLE, *case.stages)
        for backend in case.backends
    ]
    metafunc.parametrize(("case", "stage", "backend"), combinations)


@pytest.fixture
def budget(request: pytest.FixtureRequest) -> Budget:
    rounds = request.config.getoption("--rounds", default=0)
    if rounds:
        return Budget(seconds=math.inf, least=rounds, most=rounds)
    return Budget(seconds=10 if request.config.getoption("--full", default=False) else 4)


@pytest.fixture
def report(request: pytest.FixtureRequest):
    def add(case: Case, stage: str, backend: str, samples: Samples) -> None:
        request.config.stash[ROWS].append(Row.of(case, stage, backend, samples))

    return add


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if config.stash[ROWS]:
        terminalreporter.ensure_newline()
        print_table(config.stash[ROWS])
    for case in config.stash[LEFT_OUT]:
        terminalreporter.line(describe_left_out(case))
