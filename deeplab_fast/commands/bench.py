"""``deeplab-fast bench``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import typer

CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def bench_command(context: typer.Context) -> None:
    """Run the benchmarks of a source checkout; further arguments go to them."""
    folder = Path(__file__).resolve().parents[2] / "bench"
    if not (folder.is_dir() and (folder.parent / "CMakeLists.txt").is_file()):
        typer.echo(
            "deeplab-fast bench: the benchmarks are in the source checkout, not in the installed package: "
            "get the sources and run `make bench` there",
            err=True,
        )
        raise typer.Exit(1)
    raise typer.Exit(subprocess.call([sys.executable, "-m", "bench", *context.args], cwd=folder.parent))
