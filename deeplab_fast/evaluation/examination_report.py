"""What a dataset holds, for people and programs: a table, JSON, and a picture of it."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_fast.data.examination import Examination
from deeplab_fast.errors import ArgumentError, one_of
from deeplab_fast.files import atomic_write_all, writer_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

__all__ = ["as_dict", "check_format", "picture", "problems_of", "summary", "table", "write"]

FORMATS = (".png", ".pdf", ".svg")  # of pictures
SHOWN = 10  # names that a line lists at most


def table(examination: Examination) -> Table:
    """Pixels and images of each class, and their share of all known pixels and of all usable images."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False)
    made.add_column("class")
    for name in ("pixels", "%", "images", "%"):
        made.add_column(name, justify="right")
    known, usable = max(1, int(examination.pixels.sum())), max(1, examination.usable)
    for name, pixels, images in zip(examination.classes, examination.pixels, examination.images, strict=True):
        style = "bold red" if name in examination.missing else "dim" if pixels == 0 else None
        shares = f"{100 * pixels / known:.3f}", f"{100 * images / usable:.1f}"
        made.add_row(name, f"{pixels:,}", shares[0], f"{images:,}", shares[1], style=style)
    made.add_section()
    made.add_row("ignored", f"{examination.ignored:,}", "", "", "", style="dim")
    return made


def summary(examination: Examination) -> list[str]:
    """Lines on the samples, the images' sizes and colours, and values that are no classes."""
    without = f", {examination.unlabelled} of them without labels" if examination.unlabelled else ""
    lines = [f"{examination.usable} of {examination.samples} samples can be used{without}"]
    if examination.smallest is not None and examination.largest is not None:
        sizes = [f"{width} x {height}" for width, height in (examination.smallest, examination.largest)]
        lines.append("images: " + (sizes[0] if sizes[0] == sizes[1] else f"{sizes[0]} to {sizes[1]}") + " pixels")
        numbers = (" ".join(f"{value:.3f}" for value in one) for one in (examination.mean, examination.deviation))
        lines.append("mean of red, green, blue in 0..255: {}; deviation: {}".format(*numbers))
    if examination.outside:
        counts = (f"{value} ({pixels:,} pixels)" for value, pixels in examination.outside.items())
        lines.append("values that are no classes: " + _listed(list(counts)))
    return lines


def problems_of(found: Mapping[str, Examination], allow_missing: bool = False) -> list[str]:
    """A line for each kind of problem of each split; none if a training can begin.

    Args:
        found: by split, "train" and "val".
        allow_missing: a class that no label of "train" holds is no problem.
    """
    lines = []
    for split, examination in found.items():
        kinds = Counter(problem.kind for problem in examination.problems)
        lines += [f"data.{split}: {kind}: {count} of {examination.samples}" for kind, count in kinds.items()]
        if split == "train" and examination.missing and not allow_missing:
            lines.append(f"data.train: no label holds {_listed(examination.missing)}")
        elif examination.pixels[0] and not examination.pixels[1:].any() and not allow_missing:
            lines.append(f"data.{split}: labels hold nothing but {examination.classes[0]}, class 0")
    return lines


def _listed(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def as_dict(examination: Examination) -> dict[str, Any]:
    """Everything, as what JSON can hold."""
    columns = zip(examination.classes, examination.pixels.tolist(), examination.images.tolist(), strict=True)
    seen = examination.smallest is not None
    return {
        "samples": examination.samples,
        "usable": examination.usable,
        "unlabelled": examination.unlabelled,
        "problems": [
            {"name": problem.name, "kind": problem.kind, "message": problem.message} for problem in examination.problems
        ],
        "values_outside": {str(value): pixels for value, pixels in examination.outside.items()},
        "missing_classes": list(examination.missing),
        "classes": [{"name": name, "pixels": pixels, "images": images} for name, pixels, images in columns],
        "ignored_pixels": examination.ignored,
        "mean_rgb": examination.mean.tolist() if seen else None,
        "deviation_rgb": examination.deviation.tolist() if seen else None,
        "smallest": examination.smallest,
        "largest": examination.largest,
    }


def check_format(path: Path) -> None:
    """Raise ValueError unless the ending is one of a picture that can be drawn."""
    if path.suffix.lower() not in FORMATS:
        raise ArgumentError("picture", path.name, f"a name that ends in {one_of(FORMATS)}")


def picture(found: Mapping[str, Examination]) -> Figure:
    """A figure: the share of each class's pixels, by split. Needs matplotlib, but no screen.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("matplotlib is needed for the picture: pip install matplotlib") from error

    K = len(next(iter(found.values())).classes)
    height = 1.6 + (K + 1) * (0.27 if K <= 40 else 0.16)  # inches
    figure = Figure(figsize=(2.5 + 4.5 * len(found), height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    columns = figure.subplots(1, len(found), sharey=True, sharex=True, squeeze=False)[0]
    size = 10 if K <= 25 else 8 if K <= 40 else 7  # points
    for axes, (split, examination) in zip(columns, found.items(), strict=True):
        _draw(axes, split, examination, size)
    return figure


def _draw(axes: Axes, split: str, examination: Examination, size: float) -> None:
    names = [*examination.classes, "ignored"]
    counts = np.array([*examination.pixels, examination.ignored])
    shares = 100 * counts / max(1, counts.sum())
    axes.barh(range(len(names)), shares, color=["#4c78a8"] * len(examination.classes) + ["#b0b0b0"])
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.spines[["top", "right"]].set_visible(False)
    for row, (name, share) in enumerate(zip(names, shares, strict=True)):
        text = "none" if share == 0 else f"{share:.1f}" if share >= 1 else f"{share:.2g}"
        colour = "#e45756" if name in examination.missing else "black"
        axes.annotate(
            text, (share, row), (3, 0), textcoords="offset points", va="center", fontsize=size - 1, color=colour
        )
    axes.set_xlabel("of all pixels, %")
    axes.set_title(f"data.{split}: {examination.usable:,} samples")
    axes.margins(x=0.12)  # room for the numbers


def write(
    found: Mapping[str, Examination], problems: Sequence[str], json_file: Path | None, picture_file: Path | None
) -> list[Path]:
    """Write both files, or those that are wanted: all or none.

    Args:
        found: by split.
        problems: of `problems_of`.
        json_file: for all that was found.
        picture_file: for `picture`.

    Returns:
        The paths written.
    """
    contents: dict[Path, bytes] = {}
    if json_file is not None:
        entries = {"problems": list(problems), "splits": {split: as_dict(one) for split, one in found.items()}}
        contents[json_file] = json.dumps(entries, indent=1, allow_nan=False).encode() + b"\n"
    if picture_file is not None:
        drawn = io.BytesIO()
        picture(found).savefig(drawn, format=picture_file.suffix.lower()[1:])
        contents[picture_file] = drawn.getvalue()
    atomic_write_all({path: writer_of(content) for path, content in contents.items()})
    return list(contents)
