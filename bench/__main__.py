"""`python -m bench`: the quick selection as a table. From the repository's root."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.case import Target
from deeplab_fast.doctor import numbers_depend_on

Words = Annotated[list[str] | None, typer.Argument(help="Only cases whose name has all of these.")]


def main(
    words: Words = None,
    full: Annotated[bool, typer.Option("--full", help="All cases, also the large photos (about an hour).")] = False,
    op: Annotated[list[str] | None, typer.Option(help="Only cases of this op; may be given more than once.")] = None,
    rounds: Annotated[int, typer.Option(min=0, help="Exactly this many rounds a case; 0: by time.")] = 0,
    seconds: Annotated[float, typer.Option(min=0, help="Time for each case; 0: 4, 10 with --full, 1 on a GPU.")] = 0,
    save: Annotated[str, typer.Option(help="Write NAME.json, with every single time.", metavar="NAME")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder of that file (default: bench/results).")] = None,
    listing: Annotated[bool, typer.Option("--list", help="Print the names of the cases and stop.")] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="The cases of a GPU instead of the CPU's.")] = False,
    tiles: Annotated[bool, typer.Option("--tiles", help="On a GPU, also every tile of the kernels' tables.")] = False,
    compile_until: Annotated[
        float, typer.Option(help="Seconds after which cases go without torch.compile; 0: never.")
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tiny, without times: each backend once, results compared.")
    ] = False,
) -> None:
    """Time each op beside its peer: a case's backends take turns in one process."""
    if Path(save).name != save:
        raise typer.BadParameter(f"--save is {save!r}, should be a name without a folder, which --out says")
    if gpu and dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    _check_gpu(gpu and not dry_run)
    from bench import registry, report, results, runner, session

    target = Target(gpu=gpu, tiny=dry_run, tiles=tiles)
    cases = registry.named(target, words or [], op or [], full or listing)
    if not cases:
        raise typer.BadParameter(f"no {'' if full else 'quick '}case has all of these in its name; see --list")
    if listing:
        for case in cases:
            print(f"{'quick' if case.quick else 'full '}  {case.name}")
        return
    run = results.Run.new()
    cases, run.left_out = registry.runnable(cases)
    print(numbers_depend_on())
    budget = runner.GPU if gpu else runner.FULL if full else runner.QUICK
    if seconds:
        budget = dataclasses.replace(budget, seconds=seconds)
    if rounds:
        budget = dataclasses.replace(budget, least=rounds, most=rounds)
    file = (out or results.FOLDER) / f"{save}.json" if save and not dry_run else None
    session.measure_all(cases, run, None if dry_run else budget, compile_until, file)
    report.print_run(run)
    if dry_run:
        print(f"{len(cases)} cases computed, {len(run.failures)} failures")
    sys.exit(1 if run.failures else 0)


def _check_gpu(wanted: bool) -> None:
    if not wanted:
        return
    import torch

    if not torch.cuda.is_available():
        raise typer.BadParameter("--gpu: torch finds none; with --dry-run it needs none")


if __name__ == "__main__":
    typer.run(main)
