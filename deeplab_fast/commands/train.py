"""``deeplab-fast train``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from deeplab_fast.commands.common import configuration, is_first_process, reported, warnings_as_notes
from deeplab_fast.commands.options import Config, Debug, Set


class ResumeMayTakeAuto(TyperCommand):
    """Lets ``--resume`` stand alone or be followed by ``auto``, which the option parser cannot express."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        joined: list[str] = []
        for word in args:
            if word == "auto" and joined and joined[-1] == "--resume":
                joined.pop()
                word = "--resume=auto"
            joined.append(word)
        return super().parse_args(ctx, ["--resume-auto" if word == "--resume=auto" else word for word in joined])


def train_command(
    config: Config,
    set: Set = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on from last.pth in the output folder; --resume auto: where there is one, else start."
        ),
    ] = False,
    resume_auto: Annotated[bool, typer.Option("--resume-auto", hidden=True)] = False,
    allow_missing_classes: Annotated[
        bool, typer.Option("--allow-missing-classes", help="Train although a class occurs in no label.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    debug: Debug = False,
) -> None:
    """Train a network. Several GPUs or processes: torchrun --nproc-per-node N -m deeplab_fast train -c CONFIG."""
    with reported("train", debug), warnings_as_notes():
        allowed = ["data.allow_missing_classes=true"] if allow_missing_classes else []
        read = configuration(config, [*(set or []), *allowed])
        from deeplab_fast import training

        try:
            result = training.train(read, resume="auto" if resume_auto else resume, quiet=quiet)
        except training.TrainingTerminated as error:
            if is_first_process():
                typer.echo(f"deeplab-fast train: ended by SIGTERM {error}", err=True)
            raise typer.Exit(error.code) from None
        if not is_first_process():
            return
        if result.mean_iou is not None and result.best_mean_iou is not None:
            typer.echo(f"mean IoU {100 * result.mean_iou:.2f} % at the end, {100 * result.best_mean_iou:.2f} % at best")
        written = [result.last, *([result.best] if result.best else []), read.output / "log.csv"]
        typer.echo("written: " + ", ".join(map(str, written)))
