"""`python -m bench`: the quick selection as a table. From the repository's root."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer

from deeplab_fast.doctor import numbers_depend_on

from .cases import all_cases
from .selection import select

HERE = Path(__file__).parent


def main(
    words: Annotated[list[str] | None, typer.Argument(help="Only cases whose name has all of these.")] = None,
    full: Annotated[bool, typer.Option(help="All cases, also the large photos (about an hour).")] = False,
    rounds: Annotated[int, typer.Option(help="Exactly this many rounds a case; 0: by time.")] = 0,
    save: Annotated[str, typer.Option(help="Write bench/results/NAME.json, with every single time.")] = "",
    listing: Annotated[bool, typer.Option("--list", help="Print the names of the cases and stop.")] = False,
) -> None:
    """Time each op beside its peer: a case's backends take turns in one process."""
    if listing:
        for case in all_cases():
            print(f"{'quick' if case.quick else 'full '}  {case.name}")
        return
    words = words or []
    if not any(select(words, full)):
        raise typer.BadParameter(f"no {'' if full else 'quick '}case has all of these in its name; see --list")
    arguments = [str(HERE), "-q", "-p", "no:cacheprovider", "--benchmark-quiet"]
    arguments += [f"--case={word}" for word in words]
    if full:
        arguments.append("--full")
    if rounds:
        arguments.append(f"--rounds={rounds}")
    if save:
        results = HERE / "results"
        results.mkdir(exist_ok=True)
        arguments.append(f"--benchmark-json={results / save}.json")
    print(numbers_depend_on())
    sys.exit(pytest.main(arguments))


if __name__ == "__main__":
    typer.run(main)
