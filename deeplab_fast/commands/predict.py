"""``deeplab-fast predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deeplab_fast.commands.common import (
    chosen_device,
    configuration,
    network_of,
    progress_bar,
    reported,
    warnings_as_notes,
)
from deeplab_fast.commands.options import Crf, Debug, Device, Flip, SaveScores, Tile, WeightsKey


def predict_command(
    images: Annotated[list[Path], typer.Argument(help="Photos, and folders of photos.", show_default=False)],
    weights: Annotated[
        Path, typer.Option("--weights", "-w", help="Checkpoint, or published weights.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.", show_default=False)],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Configuration (default: the checkpoint's).")
    ] = None,
    key: WeightsKey = None,
    crf: Crf = False,
    overlay: Annotated[bool, typer.Option("--overlay", help="Also write photo, labels and both together.")] = False,
    save_scores: SaveScores = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Photos of equal shape to predict at once.")] = 1,
    skip_errors: Annotated[
        bool, typer.Option("--skip-errors", help="Go on without photos that cannot be read, and list them.")
    ] = False,
    tile: Tile = None,
    flip: Flip = False,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Label photos: for each a palette PNG, and if wanted an overlay."""
    with reported("predict", debug), warnings_as_notes():
        from deeplab_fast import evaluation
        from deeplab_fast.config import build

        paths = evaluation.collect_images(images)
        read = None if config is None else configuration(config, None)
        loaded = network_of(weights, read, key)
        chosen = chosen_device(device, loaded.config.device if loaded.config else "auto")
        predictor = build.make_predictor(
            loaded.model, loaded.num_classes, loaded.config, chosen, with_crf=crf, tile=tile, flip=flip
        )
        with progress_bar("prediction") as progress:
            result = evaluation.predict(
                predictor,
                paths,
                out,
                overlay=overlay,
                save_scores=save_scores,
                palette=loaded.palette,
                batch_size=batch_size,
                on_error="skip" if skip_errors else "raise",
                progress=progress,
            )
        for path, problem in result.problems:
            typer.echo(f"left out: {path}: {problem}", err=True)
        typer.echo(f"{result.images} of {len(paths)} photos labelled in {result.seconds:.1f} s, written to {out}")
        if save_scores is not None:
            typer.echo(f"scores written to {save_scores}")
        if result.images == 0:
            raise ValueError("no photo could be labelled")
