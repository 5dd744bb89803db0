"""``deeplab-fast check``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deeplab_fast.commands.common import configuration, note, progress_bar, reported, warnings_as_notes
from deeplab_fast.commands.options import Config, Debug, Set

if TYPE_CHECKING:
    from deeplab_fast.config import DataConfig
    from deeplab_fast.data import SegmentationDataset
    from deeplab_fast.data.examination import Examination

SHOWN = 5  # problems of a kind that the terminal shows; the JSON has all


def check_command(
    config: Config,
    set: Set = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all that was found as JSON.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the pixels of each class; .png, .pdf or .svg.")] = None,
    jobs: Annotated[int | None, typer.Option(min=0, help="Processes that read (default: all processors).")] = None,
    debug: Debug = False,
) -> None:
    """Read the whole data set once, and tell what is wrong with it and what is in it; exit code 1 if anything is wrong.

    Missing and unreadable files, images and labels of different size, labels outside the classes, classes that no
    label holds; pixels of each class, mean and deviation of the images.
    """
    with reported("check", debug), warnings_as_notes():
        read = configuration(config, set)
        from deeplab_fast import files
        from deeplab_fast.config import build
        from deeplab_fast.data.reading import processors
        from deeplab_fast.evaluation import examination_report

        sets = _datasets(read.data)
        inputs = build.inputs_of(read, sets.values(), config)
        for path in (json_file, picture):
            if path is not None:
                files.check_destination(path, inputs)
        if picture is not None:
            examination_report.check_format(picture)
        found = _examined(sets, processors() if jobs is None else jobs)
        for split, examination in found.items():
            _show(split, examination)
        problems = examination_report.problems_of(found, read.data.allow_missing_classes)
        written = examination_report.write(found, problems, json_file, picture)
        if written:
            typer.echo("written: " + ", ".join(map(str, written)))
        for problem in problems:
            typer.echo(f"deeplab-fast check: {problem}", err=True)
        if problems:
            raise typer.Exit(1)


def _datasets(config: DataConfig) -> dict[str, SegmentationDataset]:
    """Both splits, or one where they are the same."""
    from deeplab_fast.config import build

    strict = config.model_copy(update={"on_error": "raise"})
    splits = {"train": config.train, "val": config.val}
    if config.train == config.val:
        note(f"data.train and data.val are the same, {config.train or 'the whole folder'}")
        del splits["val"]
    sets = {split: build.make_dataset(strict, name) for split, name in splits.items()}
    if len(sets) == 2:
        train, val = map(_names_of_photos, sets.values())
        both = [train[path] for path in train.keys() & val.keys()]
        if both:
            note(f"data.train and data.val have {len(both)} samples in common, such as {min(both)}")
    return sets


def _names_of_photos(dataset: SegmentationDataset) -> dict[Path, str]:
    """The samples' names by their files: in two folders there may be two photos of one name."""
    return {entry.image: entry.name for entry in getattr(dataset, "entries", ())}


def _examined(sets: dict[str, SegmentationDataset], jobs: int) -> dict[str, Examination]:
    from deeplab_fast.data.examination import examine

    found = {}
    for split, dataset in sets.items():
        with progress_bar(f"reading data.{split}") as progress:
            found[split] = examine(dataset, workers=jobs, progress=progress)
    return found


def _show(split: str, examination: Examination) -> None:
    """The table of a split, and its problems by kind."""
    from rich.console import Console

    from deeplab_fast.data.problems import KINDS
    from deeplab_fast.evaluation import examination_report

    console = Console(highlight=False)
    console.print(f"[bold]data.{split}[/bold]")
    console.print(examination_report.table(examination))
    for line in examination_report.summary(examination):
        console.print(line, soft_wrap=True, markup=False)
    for kind in KINDS:
        messages = [problem.message for problem in examination.problems if problem.kind == kind]
        if messages:
            console.print(f"{kind}: {len(messages)}", style="bold red")
        for message in messages[:SHOWN]:
            console.print(f"  {message}", soft_wrap=True, markup=False)
        if len(messages) > SHOWN:
            console.print(f"  … and {len(messages) - SHOWN} more")
    console.print()
