"""Scores for people and programs: a table, JSON, and a picture of them."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_fast import files
from deeplab_fast.errors import ArgumentError
from deeplab_fast.measures import Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

    from deeplab_fast.evaluation.metrics import ConfusionMatrix

__all__ = ["as_dict", "comparison", "picture", "report_files", "table", "write_comparison", "write_report"]

_SUMMARY = {
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "mean_iou": "mean IoU",
    "frequency_weighted_iou": "frequency weighted IoU",
}
_ON_WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # or the line of a mean would cross a number
_MOST_NUMBERED = 15  # classes up to which the cells of the confusion matrix show their numbers


def _check_classes(scores: Scores, classes: Sequence[str]) -> None:
    if len(classes) != len(scores.iou):
        raise ArgumentError("classes", len(classes), f"{len(scores.iou)}, as in the scores", what="number of names")


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.2f}"


def table(scores: Scores, classes: Sequence[str], after: Scores | None = None) -> Table:
    """IoU and accuracy of each class, and the four means below, in per cent.

    Args:
        scores: to show; classes that the truth does not have show a dash.
        classes: their names, K.
        after: scores after the CRF, to show beside.

    Raises:
        ValueError: if the names are not as many as the classes.
    """
    from rich.table import Table

    _check_classes(scores, classes)
    all_scores = [scores] if after is None else [scores, after]
    suffixes = [""] if after is None else ["", " with CRF"]
    made = Table(box=None, pad_edge=False)
    made.add_column("class")
    for name in ("IoU", "accuracy"):
        for suffix in suffixes:
            made.add_column(name + suffix, justify="right")
    for k, name in enumerate(classes):
        made.add_row(
            name, *[_percent(one.iou[k]) for one in all_scores], *[_percent(o.accuracy[k]) for o in all_scores]
        )
    made.add_section()
    for field, name in _SUMMARY.items():
        values = [_percent(getattr(one, field)) for one in all_scores]
        blank = [""] * len(values)
        name += _without(scores, classes) if field in ("mean_accuracy", "mean_iou") else ""
        made.add_row(name, *([*blank, *values] if "accuracy" in field else [*values, *blank]), style="bold")
    return made


def _without(scores: Scores, classes: Sequence[str]) -> str:
    """What a mean over the classes leaves out, to be written behind its name."""
    return f" without {', '.join(classes[k] for k in scores.uncounted)}" if scores.uncounted else ""


def as_dict(scores: Scores, classes: Sequence[str], matrix: ConfusionMatrix | None = None) -> dict[str, Any]:
    """The scores, 0..1, as what JSON can hold: NaN is None; with `matrix`, its counts as a list of rows.

    Raises:
        ValueError: if the names are not as many as the classes.
    """
    _check_classes(scores, classes)
    made: dict[str, Any] = {field: _number(getattr(scores, field)) for field in _SUMMARY}
    if scores.uncounted:
        made["not_in_means"] = [classes[k] for k in scores.uncounted]
    made["classes"] = [
        {"name": name, "iou": _number(iou), "accuracy": _number(accuracy)}
        for name, iou, accuracy in zip(classes, scores.iou, scores.accuracy, strict=True)
    ]
    if matrix is not None:
        made["confusion"] = matrix.counts.tolist()
    return made


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def picture(scores: Scores, matrix: ConfusionMatrix, classes: Sequence[str], title: str | None = None) -> Figure:
    """A figure: IoU of each class, best first, beside the confusion matrix, each row divided by its sum.

    It grows with the classes, so that names stay readable. Needs matplotlib, but no screen.

    Raises:
        ValueError: if the names are not as many as the classes.
        ImportError: without matplotlib.
    """
    _check_classes(scores, classes)
    if matrix.num_classes != len(classes):
        raise ArgumentError("matrix", matrix.num_classes, f"{len(classes)}, as in the scores", what="number of classes")
    K = len(classes)
    side = max(4.5, 0.3 * K if K <= 40 else 0.16 * K)  # inches
    figure = _figure(side + 4.5 + max(4.0, 0.3 * side), side + 1.5)
    ratio = [max(4.0, 0.3 * side), side + 1.0]
    bars, cells = figure.subplots(1, 2, width_ratios=ratio)
    size = 10 if K <= 25 else 8 if K <= 40 else 7  # points
    _draw_bars(bars, scores, classes, size)
    _draw_confusion(cells, matrix, classes, size)
    if title:
        figure.suptitle(title)
    return figure


def _figure(width: float, height: float) -> Figure:
    """An empty figure, of a size in inches, that needs no screen."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("matplotlib is needed for pictures of scores: pip install matplotlib") from error
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def comparison(before: Scores, after: Scores, classes: Sequence[str], title: str | None = None) -> Figure:
    """A figure: the IoU of each class before and after the CRF, a bar each, those first that gained most.

    Raises:
        ValueError: if the names are not as many as the classes.
        ImportError: without matplotlib.
    """
    for scores in (before, after):
        _check_classes(scores, classes)
    gain = after.iou - before.iou
    order = sorted((k for k in range(len(classes)) if not np.isnan(gain[k])), key=lambda k: -gain[k])
    figure = _figure(7.5, max(2.5, 0.36 * len(order) + 1.4))
    axes = figure.subplots()
    for scores, offset, colour, name in ((before, -0.2, "#b0b7c3", "before"), (after, 0.2, "#4c78a8", "after")):
        values = 100 * scores.iou[order]
        label = f"{name}, mean {_percent(scores.mean_iou)}"
        axes.barh(np.arange(len(order)) + offset, values, height=0.38, color=colour, label=label)
        axes.axvline(100 * scores.mean_iou, color=colour, linewidth=1, linestyle="--")
    for row, k in enumerate(order):
        place = 100 * max(before.iou[k], after.iou[k]) + 1
        axes.text(place, row, f"{100 * gain[k]:+.1f}", va="center", fontsize=9, bbox=_ON_WHITE)
    axes.set_yticks(range(len(order)), [classes[k] for k in order])
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("IoU, %")
    axes.set_ylabel("class")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    if title:
        axes.set_title(title, loc="left")
    return figure


def _draw_bars(axes: Axes, scores: Scores, classes: Sequence[str], size: float) -> None:
    order = sorted(range(len(classes)), key=lambda k: -np.nan_to_num(scores.iou[k], nan=-1.0))
    values = np.nan_to_num(100 * scores.iou[order])
    axes.barh(range(len(order)), values, color="#4c78a8")
    axes.set_yticks(range(len(order)), [classes[k] for k in order], fontsize=size)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 20))
    axes.spines[["top", "right"]].set_visible(False)
    for row, k in enumerate(order):
        text = "absent" if np.isnan(scores.iou[k]) else f"{100 * scores.iou[k]:.1f}"
        axes.text(values[row] + 1, row, text, va="center", fontsize=size - 1, bbox=_ON_WHITE)
    if not np.isnan(scores.mean_iou):
        axes.axvline(100 * scores.mean_iou, color="#e45756", linewidth=1)
    axes.set_title(f"IoU, %   (mean{_without(scores, classes)} {_percent(scores.mean_iou)}, line)")


def _draw_confusion(axes: Axes, matrix: ConfusionMatrix, classes: Sequence[str], size: float) -> None:
    from matplotlib.colors import PowerNorm

    counts = matrix.counts.cpu().numpy().astype(np.float64)
    rows = counts.sum(axis=1, keepdims=True)
    share = np.divide(100 * counts, rows, out=np.full_like(counts, np.nan), where=rows > 0)
    # By the square root: confusions of a few per cent, which are what one looks for, would be white otherwise.
    shown = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    axes.set_facecolor("#d8d8d8")  # rows of classes that the truth does not have
    axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=size)
    axes.set_yticks(range(len(classes)), classes, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    axes.set_title("of each true class's pixels, %")
    axes.figure.colorbar(shown, ax=axes, shrink=0.8, aspect=max(20, len(classes) / 2), pad=0.01)
    if len(classes) > _MOST_NUMBERED:
        return
    for (row, column), value in np.ndenumerate(share):
        if not np.isnan(value):
            colour = "white" if value > 36 else "black"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour, fontsize=size - 2)


def report_files(folder: Path | str, name: str) -> list[Path]:
    """The files that `write_report` writes."""
    return [Path(folder) / f"{name}.json", Path(folder) / f"{name}.png"]


def write_report(
    folder: Path | str,
    name: str,
    scores: Scores,
    matrix: ConfusionMatrix,
    classes: Sequence[str],
    *,
    title: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write `name.json` (see `as_dict`, with the counts) and `name.png` (see `picture`), both or neither.

    Args:
        folder: to write to; made if it is not there.
        name: of the files, without ending.
        scores: of `matrix`.
        matrix: the counts.
        classes: their names, K.
        title: of the picture.
        extra: more entries of the JSON, before the scores.

    Returns:
        The two paths.

    Raises:
        ValueError: if the names are not as many as the classes, or `extra` holds NaN.
        ImportError: without matplotlib.
    """
    text = json.dumps({**(extra or {}), **as_dict(scores, classes, matrix)}, indent=1, allow_nan=False)
    image = io.BytesIO()
    picture(scores, matrix, classes, title).savefig(image, format="png")
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = report_files(folder, name)
    contents = [text.encode() + b"\n", image.getvalue()]
    files.atomic_write_all({path: files.writer_of(content) for path, content in zip(paths, contents, strict=True)})
    return paths


def write_comparison(
    folder: Path | str, before: Scores, after: Scores, classes: Sequence[str], extra: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write `evaluation.json`, the scores before and after the CRF, and `evaluation.svg` (see `comparison`).

    Args:
        folder: to write to; made if it is not there.
        before, after: the scores.
        classes: their names, K.
        extra: more entries of the JSON, before the scores.

    Returns:
        The two paths; both are written, or neither.

    Raises:
        ValueError: if the names are not as many as the classes, or `extra` holds NaN.
        ImportError: without matplotlib.
    """
    entries = {**(extra or {}), "before": as_dict(before, classes), "after": as_dict(after, classes)}
    text = json.dumps(entries, indent=1, allow_nan=False)
    image = io.BytesIO()
    comparison(before, after, classes).savefig(image, format="svg")
    Path(folder).mkdir(parents=True, exist_ok=True)
    contents = {"evaluation.json": text.encode() + b"\n", "evaluation.svg": image.getvalue()}
    writers = {Path(folder) / name: files.writer_of(content) for name, content in contents.items()}
    files.atomic_write_all(writers)
    return list(writers)
