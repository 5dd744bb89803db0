"""The command ``deeplab-fast``. Exit codes: 0 done, 1 failed, 2 wrong use. Nothing here imports torch."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import deeplab_fast
from deeplab_fast.commands import bench, check, convert, crf, crf_eval, doctor, evaluate, predict, train

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


app.command("crf")(crf.crf_command)
app.command("doctor")(doctor.doctor_command)
app.command("bench", context_settings=bench.CONTEXT_SETTINGS)(bench.bench_command)
app.command("train", cls=train.ResumeMayTakeAuto)(train.train_command)
app.command("check")(check.check_command)
app.command("eval")(evaluate.evaluate_command)
app.command("predict")(predict.predict_command)
app.command("convert")(convert.convert_command)
app.command("crf-eval")(crf_eval.crf_eval_command)
