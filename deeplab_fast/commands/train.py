"""``deeplab-fast train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deeplab_fast.commands.common import Debug, configuration, is_first_process, reported, warnings_as_notes

Config = Annotated[
    Path, typer.Option("--config", "-c", help="Configuration, a YAML file; see configs/.", show_default=False)
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Replace an entry, as in training.lr=0.001; may be given more than once."),
]


def train_command(
    config: Config,
    set: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from last.pth in the output folder.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    debug: Debug = False,
) -> None:
    """Train a network. Several GPUs or processes: torchrun --nproc-per-node N -m deeplab_fast train -c CONFIG."""
    with reported("train", debug), warnings_as_notes():
        read = configuration(config, set)
        from deeplab_fast import training

        result = training.train(read, resume=resume, quiet=quiet)
        if not is_first_process():
            return
        if result.best_mean_iou is not None:
            typer.echo(f"mean IoU {100 * result.mean_iou:.2f} % at the end, {100 * result.best_mean_iou:.2f} % at best")
        written = [result.last, *([result.best] if result.best else []), read.output / "log.csv"]
        typer.echo("written: " + ", ".join(map(str, written)))
