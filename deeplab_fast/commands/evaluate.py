"""``deeplab-fast eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deeplab_fast.commands.common import (
    WrongUse,
    chosen_device,
    configuration,
    is_first_process,
    network_of,
    progress_bar,
    reported,
    warnings_as_notes,
)
from deeplab_fast.commands.options import Config, Crf, Debug, Device, Flip, SaveScores, Set, Tile, WeightsKey

if TYPE_CHECKING:
    from deeplab_fast.config import Config as Entries
    from deeplab_fast.evaluation import EvaluationResult

PLAIN, WITH_CRF = "eval", "eval-crf"  # names of the reports

WeightsFile = Annotated[
    Path | None,
    typer.Option("--weights", "-w", help="Checkpoint or published weights (default: best.pth, or last.pth)."),
]


def evaluate_command(
    config: Config,
    weights: WeightsFile = None,
    key: WeightsKey = None,
    crf: Crf = False,
    set: Set = None,
    split: Annotated[str | None, typer.Option(help="Split to evaluate (default: data.val).")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the reports (default: output).")] = None,
    save_png: Annotated[
        Path | None, typer.Option(help="Folder for the labels as palette PNGs, as the VOC server wants them.")
    ] = None,
    save_scores: SaveScores = None,
    save_logits: Annotated[
        Path | None, typer.Option(help="The same as NAME.npy, which is larger.", show_default=False)
    ] = None,
    tile: Tile = None,
    flip: Flip = False,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Score a network on a labelled set; with --crf before and after the CRF, in one pass."""
    with reported("eval", debug), warnings_as_notes():
        read = configuration(config, set)
        import matplotlib  # noqa: F401  # draws the report: whether it is there is not for the end of a long run

        from deeplab_fast import evaluation, files
        from deeplab_fast.config import build
        from deeplab_fast.training.processes import processes

        chosen = chosen_device(device, read.device)
        dataset = build.make_dataset(read.data, read.data.val if split is None else split)
        weights = weights or trained(read)
        inputs = build.inputs_of(read, [dataset], config, weights)
        folders = [folder for folder in (save_png, save_scores, save_logits) if folder is not None]
        for folder in folders:
            files.check_folder(folder, inputs)  # each file in them is checked before it starts
        for name in (PLAIN, *[WITH_CRF] * crf):
            for path in evaluation.report.report_files(out or read.output, name):
                files.check_destination(path, inputs, new_folder=True)
        loaded = network_of(weights, read, key)
        if loaded.num_classes != dataset.num_classes:
            raise WrongUse(f"the weights have {loaded.num_classes} classes, the set has {dataset.num_classes}")
        with processes(chosen) as group, progress_bar("evaluation") as progress:
            predictor = build.make_predictor(
                loaded.model, dataset.num_classes, read, chosen, with_crf=crf, tile=tile, flip=flip
            )
            result = evaluation.evaluate(
                predictor,
                dataset,
                batch_size=read.evaluation.batch_size,
                workers=read.evaluation.workers,
                save_png=save_png,
                save_scores=save_scores,
                save_logits=save_logits,
                progress=progress,
                rank=group.rank,
                world=group.world,
                on_problem=read.data.on_error,
                count_background=read.evaluation.count_background,
            )
        if is_first_process():
            _report(result, list(dataset.classes), out or read.output, folders)


def trained(config: Entries) -> Path:
    """The weights that a training by this configuration left."""
    from deeplab_fast.training.trainer import BEST, LAST

    for name in (BEST, LAST):
        if (config.output / name).is_file():
            return config.output / name
    raise WrongUse(f"--weights is missing, and {config.output} has neither {BEST} nor {LAST}")


def _report(result: EvaluationResult, classes: list[str], folder: Path, others: list[Path]) -> None:
    from rich.console import Console

    from deeplab_fast.evaluation import report

    before = result.matrix.scores()
    after = None if result.matrix_crf is None else result.matrix_crf.scores()
    Console().print(report.table(before, classes, after))
    extra = {"images": result.images, "seconds": round(result.seconds, 3), "problems": result.problems}
    written = report.write_report(folder, PLAIN, before, result.matrix, classes, title="without CRF", extra=extra)
    if after is not None and result.matrix_crf is not None:
        written += report.write_report(
            folder, WITH_CRF, after, result.matrix_crf, classes, title="with CRF", extra=extra
        )
    typer.echo(f"{result.images} images in {result.seconds:.1f} s, {result.images / result.seconds:.2f} a second")
    for problem in result.problems:
        typer.echo(f"left out: {problem}", err=True)
    typer.echo("written: " + ", ".join(map(str, [*written, *others])))
