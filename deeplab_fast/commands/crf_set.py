"""A data set through the dense CRF: what the command does, writes and says."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from deeplab_fast.commands.common import note, option_errors, progress_bar

# numpy, Pillow and rich's tables are imported where they are used: --help and --version answer at once.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deeplab_fast.crf import CRFParameters, DatasetResult
    from deeplab_fast.crf.dataset import Shard
    from deeplab_fast.crf.inputs import Reading

GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for."""

    images: Path
    scores: Path | None
    out: Path
    params: CRFParameters
    how: Reading
    overlay: bool = False
    save_probabilities: bool = False
    threads: int | None = None
    palette: NDArray[np.uint8] | None = None
    root: Path | None = None
    jobs: int | None = None
    memory: float | None = None
    skip_existing: bool | None = None
    skip_missing: bool = False
    shard: str | None = None
    labels: Path | None = None
    compare: bool = False


def is_set(images: Path, scores: Path | None) -> bool:
    """Whether paths stand for a data set, not for a photo and its scores."""
    from deeplab_fast.crf import dataset

    missing = not images.exists() and scores is not None and scores.is_dir()  # a folder, with a slip in its name
    return missing or dataset.is_several(images)


def refine(request: Request) -> None:
    """Refine a data set; exit code 1 if an image failed."""
    from deeplab_fast import crf, pydensecrf

    if request.labels is not None:
        import matplotlib  # noqa: F401  # draws the report: whether it is there is not for the end of a long run
    if request.jobs == 0 and request.threads is not None:
        pydensecrf.set_num_threads(request.threads)
    how = request.how
    shard = _shard(request.shard)
    done = total = 0
    with progress_bar("refined", "images") as show:

        def progress(now: int, of: int) -> None:
            nonlocal done, total
            done, total = now, of
            show(now, of)

        try:
            result = crf.refine_dataset(
                request.images,
                request.scores,
                request.out,
                params=request.params,
                root=request.root,
                labels=request.labels,
                kind=how.kind,
                layout=how.layout,
                key=how.key,
                classes=how.classes,
                keys=how.keys,
                background=how.background,
                gt_prob=how.gt_prob,
                unsure=how.unsure,
                values=how.values,
                save_probabilities=request.save_probabilities,
                overlay=request.overlay,
                palette=request.palette,
                skip_existing=request.skip_existing is not False,
                skip_missing=request.skip_missing,
                compare=report_folder(request.out, shard) / "compare.html" if request.compare else None,
                shard=shard,
                jobs=_jobs() if request.jobs is None else request.jobs,
                threads=request.threads or 1,
                memory=None if request.memory is None else request.memory * GB,
                progress=progress,
                note=note,
            )
        except BaseException as error:
            if not isinstance(error, Exception):  # Ctrl-C or SIGTERM
                note(f"stopped at {done} of {total} images; the same command goes on with the others")
            raise
    _report(request, result, shard)
    if result.failed:
        raise typer.Exit(1)


def _shard(option: str | None) -> Shard:
    """The part that `--shard` names, or else the job system."""
    from deeplab_fast.crf import dataset

    with option_errors("--shard"):
        shard = dataset.from_environment() if option is None else dataset.Shard.parse(option)
    if shard.count > 1:
        source = f" ({shard.source})" if shard.source else ""
        note(f"shard {shard}{source}: the images whose names belong to it")
    return shard


def _jobs() -> int:
    """As many as there are processors for this process, of those that torchrun started on this machine."""
    from deeplab_fast import _limits

    neighbours = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, _limits.processors() // (int(neighbours) if neighbours.isdecimal() and int(neighbours) else 1))


def report_folder(out: Path, shard: Shard) -> Path:
    """Where the report on a run lies; each part of a set has its own."""
    return out / ("report" if shard.count == 1 else f"report-{shard.number}-of-{shard.count}")


def _report(request: Request, result: DatasetResult, shard: Shard) -> None:
    from deeplab_fast.crf.dataset import failed_path

    rate = f", {result.images / result.seconds:.2f} a second" if result.images else ""
    parts = [f"{result.images} images refined in {result.seconds:.1f} s{rate}"]
    parts += [f"{result.skipped} were there"] * bool(result.skipped)
    parts += [f"{result.missing} left out, without counterpart"] * bool(result.missing)
    typer.echo("; ".join(parts))
    if result.changed:
        typer.echo(
            f"{100 * sum(result.changed.values()) / len(result.changed):.1f} % of an image's pixels changed, on average"
        )
    if result.peak_memory:
        typer.echo(f"memory: at most {result.peak_memory / 1e6:.0f} MB in a process, {result.jobs or 1} at once")
    written = [request.out, *_evaluation(result, report_folder(request.out, shard))]
    if request.compare and result.changed:
        written.append(report_folder(request.out, shard) / "compare.html")
    typer.echo("written: " + ", ".join(map(str, written)))
    if result.failed:
        name, reason = next(iter(result.failed.items()))
        path = failed_path(request.out, shard)
        typer.echo(f"{len(result.failed)} failed, all listed in {path}; {name}: {reason}", err=True)


def _evaluation(result: DatasetResult, folder: Path) -> list[Path]:
    """Print and write the scores before and after, if there are any; the files."""
    before, after = result.before, result.after
    if before is None or after is None:
        return []
    from rich.console import Console

    from deeplab_fast.evaluation import report

    classes = [str(k) for k in range(len(before.iou))]
    Console().print(report.table(before, classes, after))
    extra = {"images": len(result.changed), "failed": sorted(result.failed)}
    return report.write_comparison(folder, before, after, classes, extra)
