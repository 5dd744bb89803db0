"""The command ``deeplab-fast``. Exit codes: 0 done, 1 failed, 2 wrong use. Nothing here imports torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

import deeplab_fast
from deeplab_fast.commands import check, convert, crf, crf_eval, evaluate, predict, train
from deeplab_fast.commands.common import reported

app = typer.Typer(
    name="deeplab-fast",
    help="Fast semantic segmentation: train, evaluate and use DeepLab-v2; refine scores with a fully connected CRF.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point of the command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without "×" must not fail a finished job
    app(prog_name="deeplab-fast")


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"deeplab-fast {deeplab_fast.__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


app.command("crf", cls=crf.OverlayMayTakePath)(crf.crf_command)


@app.command()
def doctor(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Tell what was built, what is used, and why not."""
    with reported("doctor", debug):
        from deeplab_fast import doctor as checks

        checks.show(checks.examine())


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context) -> None:
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


# ------------------------------------------------------------------------------ the segmentation system (commands/)

app.command("train", cls=train.ResumeMayTakeAuto)(train.train_command)
for name, command in {
    "check": check.check_command,
    "eval": evaluate.evaluate_command,
    "predict": predict.predict_command,
    "convert": convert.convert_command,
    "crf-eval": crf_eval.crf_eval_command,
}.items():
    app.command(name)(command)
