"""tests/fuzz/fuzz.py, shortened; and that it notices what it is there for."""

from __future__ import annotations

import os
import signal
from random import Random

import fuzz
import fuzz_cases
import pytest

SEED = 25  # draws one that is wrong, and before the last one that ends the process


def is_wrong(number: float) -> bool:
    return number > 0.8


def is_fatal(number: float) -> bool:
    return number < 0.2


def draw_number(draw: Random) -> dict:
    return {"number": draw.random()}


def check_number(case: dict) -> None:
    assert not is_wrong(case["number"]), f"{case['number']} is too large"
    if is_fatal(case["number"]):
        os.kill(os.getpid(), signal.SIGSEGV)


OPS = {"number": (draw_number, check_number)}


def test_knows_every_op():
    assert list(fuzz_cases.OPS) == list(fuzz.OPS)


@pytest.mark.parametrize("op", fuzz.OPS)
def test_no_case_is_wrong(op: str):
    """In this process: one that ends it fails the test as well."""
    draw, check = fuzz_cases.OPS[op]
    for number in range(100):
        case = draw(Random(f"{op} 0 {number}"))
        try:
            check(case)
        except Exception as error:
            raise AssertionError(f"tests/fuzz/fuzz.py --op {op} --seed 0 --case {number}: {case}") from error


def test_goes_on_after_a_crash(capsys: pytest.CaptureFixture):
    numbers = [Random(f"number {SEED} {number}").random() for number in range(4)]
    (wrong,), (fatal,) = ([n for n, drawn in enumerate(numbers) if where(drawn)] for where in (is_wrong, is_fatal))
    assert fatal < 3
    outcome = fuzz.fuzz("number", range(4), seed=SEED, module="test_fuzz")
    assert (outcome.right, outcome.crashed) == (2, [(fatal, "the process ended with -11")])
    assert [number for number, _ in outcome.wrong] == [wrong]
    assert f"number --seed {SEED} --case {wrong}: AssertionError: 0." in capsys.readouterr().err
