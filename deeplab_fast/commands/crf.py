"""``deeplab-fast crf``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deeplab_fast.commands.common import (
    WrongOption,
    WrongUse,
    note,
    option_errors,
    reported,
    spinner,
    warnings_as_notes,
)
from deeplab_fast.commands.options import LABELS, Debug, Key, Kind, Layout, Values, check_scores_options, parsed_values
from deeplab_fast.errors import at

# numpy, Pillow and rich's tables are imported where they are used: --help and --version answer at once.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deeplab_fast.crf import CRFParameters
    from deeplab_fast.crf.inputs import CRFInput
    from deeplab_fast.pictures.label_values import LabelValues

DEFAULT_GT_PROB = 0.7
CRF = "CRF parameters"  # heading of options in --help


@dataclass(frozen=True)
class LabelOptions:
    """Options that only labels have; as here, if they were not given."""

    gt_prob: float | None = None
    unsure: Sequence[int] = ()
    values: LabelValues | None = None


def crf_command(
    image: Annotated[Path, typer.Argument(help="The photo.", show_default=False, readable=False)],
    input: Annotated[
        Path,
        typer.Argument(
            help="Scores: .npy or .npz, K×H×W, logits or probabilities, as large as the photo or smaller; "
            "or labels: a palette or grey picture, 255 meaning unsure unless --values says otherwise.",
            show_default=False,
            readable=False,  # files are checked where they are read, which also says what they were for
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Result, a palette PNG in the VOC colours.", show_default=False),
    ],
    preset: Annotated[
        str, typer.Option(rich_help_panel=CRF, help="CRF parameters: deeplab, irn, psa or afa.")
    ] = "deeplab",
    pos_w: Annotated[float | None, typer.Option(rich_help_panel=CRF, help="Weight of the spatial kernel.")] = None,
    pos_xy_std: Annotated[
        float | None, typer.Option(rich_help_panel=CRF, help="Its standard deviation, pixels.")
    ] = None,
    bi_w: Annotated[float | None, typer.Option(rich_help_panel=CRF, help="Weight of the bilateral kernel.")] = None,
    bi_xy_std: Annotated[
        float | None, typer.Option(rich_help_panel=CRF, help="Its standard deviation in position, pixels.")
    ] = None,
    bi_rgb_std: Annotated[
        float | None, typer.Option(rich_help_panel=CRF, help="Its standard deviation in colour, of 0..255.")
    ] = None,
    iterations: Annotated[int | None, typer.Option(rich_help_panel=CRF, help="Mean-field iterations.")] = None,
    kind: Kind = "auto",
    layout: Layout = "auto",
    key: Key = None,
    values: Values = None,
    gt_prob: Annotated[
        float | None,
        typer.Option(rich_help_panel=LABELS, help=f"How sure labels are, between 0 and 1 (default {DEFAULT_GT_PROB})."),
    ] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes (default: as the input has).")] = None,
    unsure: Annotated[
        list[int] | None,
        typer.Option(
            rich_help_panel=LABELS, help="A label that means unsure, beside 255; may be given more than once."
        ),
    ] = None,
    overlay: Annotated[
        bool,
        typer.Option(
            "--overlay",
            help="Also write photo, input and result side by side, beside the result: OUT-overlay.png.",
        ),
    ] = False,
    overlay_to: Annotated[
        Path | None, typer.Option("--overlay-to", help="Also write them, to this file.", show_default=False)
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads (default: all processors).")] = None,
    debug: Debug = False,
) -> None:
    """Refine a photo's class scores, or rough labels, with a fully connected CRF."""
    with reported("crf", debug), warnings_as_notes():
        overrides = {
            "pos_w": pos_w, "pos_xy_std": pos_xy_std, "bi_w": bi_w, "bi_xy_std": bi_xy_std,
            "bi_rgb_std": bi_rgb_std, "iterations": iterations,
        }  # fmt: skip
        params = _parameters(preset, overrides)
        check_scores_options(kind, layout, labels=True)
        _check_options(gt_prob, classes, threads)
        if overlay_to is None and overlay:
            overlay_to = out.with_name(f"{out.stem}-overlay.png")
        _check_outputs([image, input], out, overlay_to)
        from deeplab_fast import pictures

        photo = pictures.read_image(image)
        of_labels = LabelOptions(gt_prob, tuple(unsure or ()), parsed_values(values))
        given = _read_input(input, photo.shape[:2], kind, layout, key, classes, of_labels)
        for text in given.notes:
            note(text)
        labels, seconds = _refine(photo, given.prob, params, threads)
        _write(photo, given, labels, out, overlay_to)
        _report(given, labels, seconds, [out, overlay_to])


def _parameters(preset: str, overrides: dict[str, Any]) -> CRFParameters:
    from deeplab_fast import crf

    with option_errors("--preset", *(f"--{name.replace('_', '-')}" for name in overrides)):
        return crf.parameters(preset, **overrides)


def _check_options(gt_prob: float | None, classes: int | None, threads: int | None) -> None:
    if gt_prob is not None and not 0 < gt_prob < 1:
        raise WrongOption("--gt-prob", gt_prob, "strictly between 0 and 1")
    if classes is not None and not 1 <= classes <= 256:
        raise WrongOption("--classes", classes, "1 to 256")
    if threads is not None and threads < 1:
        raise WrongOption("--threads", threads, "at least 1")


def _check_outputs(inputs: list[Path], out: Path, overlay_to: Path | None) -> None:
    """Refuse, before anything is computed, destinations that cannot work or would overwrite an input."""
    from deeplab_fast import files, pictures

    if out.suffix.lower() != ".png":
        raise WrongOption("--out", str(out), "a name that ends in .png")
    if overlay_to is not None:
        with option_errors(path="--overlay-to"):
            pictures.picture_format(overlay_to)
        if overlay_to.resolve() == out.resolve():
            raise WrongOption("--overlay-to", str(overlay_to), "another file than --out")
    for path in filter(None, (out, overlay_to)):
        files.check_destination(path, inputs)


def _read_input(
    path: Path,
    size: tuple[int, int],
    kind: str,
    layout: str,
    key: str | None,
    classes: int | None,
    of_labels: LabelOptions,
) -> CRFInput:
    """Read scores or labels, whichever the file holds; whole numbers in one channel are labels."""
    from deeplab_fast import pictures, scores
    from deeplab_fast.crf import inputs

    if path.suffix.lower() in scores.ARRAY_ENDINGS:
        with option_errors("--key"):
            array = scores.read_array(path, key)
        is_labels = kind == "labels" or (kind == "auto" and inputs.is_label_map(array))
    else:
        if key is not None:
            raise WrongUse("--key belongs to a .npz file, the input is a picture")
        if kind in ("logits", "probabilities"):
            raise WrongUse(f"--kind {kind} belongs to scores, the input is a picture: labels, or sigmoid")
        is_labels = kind != "sigmoid"
        array = (
            pictures.read_labels(path, lossy=of_labels.values is not None) if is_labels else pictures.read_grey(path)
        )
    try:
        if is_labels:
            if layout != "auto":
                raise WrongUse("--layout belongs to scores, the input is labels")
            gt_prob = DEFAULT_GT_PROB if of_labels.gt_prob is None else of_labels.gt_prob
            labels = inputs.label_map(array)
            return inputs.from_labels(labels, size, classes, gt_prob, of_labels.unsure, of_labels.values)
        if of_labels != LabelOptions():
            raise WrongUse("--gt-prob, --unsure and --values belong to labels, the input is scores")
        found = scores.as_scores(array, size, kind=kind, layout=layout, classes=classes)
    except (TypeError, ValueError) as error:
        raise at(path, error) from error
    return inputs.from_scores(found, size)


def _refine(
    photo: NDArray[np.uint8], prob: NDArray[np.float32], params: CRFParameters, threads: int | None
) -> tuple[NDArray[np.int64], dict[str, float]]:
    """Labels (H, W) after inference, and the seconds that building and inference took."""
    from deeplab_fast import crf, pydensecrf

    if threads is not None:
        pydensecrf.set_num_threads(threads)
    start = time.perf_counter()
    with spinner("Building the lattices"):
        built = crf.build(photo, prob, params)
    middle = time.perf_counter()
    with spinner(f"Inference, {params.iterations} iterations"):
        Q = built.infer()
    end = time.perf_counter()
    return Q.argmax(axis=0), {"build": middle - start, "inference": end - middle}


def _write(
    photo: NDArray[np.uint8], given: CRFInput, labels: NDArray[np.int64], out: Path, overlay_to: Path | None
) -> None:
    """Write the result, and the panel if one is wanted: both or neither."""
    from deeplab_fast import files, pictures

    writers = {out: pictures.labels_writer(labels, out)}
    if overlay_to is not None:
        before = given.before % 256  # unsure, -1, becomes 255
        shown = [photo, pictures.overlay(photo, before), pictures.overlay(photo, labels)]
        panel = pictures.panel(shown, ["photo", "input", "result"])
        writers[overlay_to] = pictures.picture_writer(panel, overlay_to)
    files.atomic_write_all(writers)


def _report(given: CRFInput, labels: NDArray[np.int64], seconds: dict[str, float], written: list[Path | None]) -> None:
    """Print what changed, class by class, and the time."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from deeplab_fast import pictures, pydensecrf
    from deeplab_fast.crf import inputs

    palette = pictures.voc_palette()
    table = Table("class", box=None, pad_edge=False)
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    for k in np.union1d(given.before, labels):
        before, after = int((given.before == k).sum()), int((labels == k).sum())
        if k == inputs.UNSURE:
            table.add_row("unsure", f"{before:,}", "–", f"{-before:+,}")
            continue
        red, green, blue = palette[k]
        name = Text.assemble(("■ ", f"rgb({red},{green},{blue})"), str(k))
        table.add_row(name, f"{before:,}", f"{after:,}", f"{after - before:+,}")
    Console().print(table)
    labelled = given.before != inputs.UNSURE
    count, of = int((given.before != labels)[labelled].sum()), int(labelled.sum())
    decided = f", {labels.size - of:,} unsure ones were decided" if of < labels.size else ""
    typer.echo(f"{count:,} of {of:,} pixels changed ({100 * count / of:.1f} %){decided}")
    total = sum(seconds.values())
    parts = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in seconds.items())
    threads = pydensecrf.get_num_threads()
    typer.echo(f"{1000 * total:.0f} ms: {parts}; {threads} thread{'s' if threads > 1 else ''}")
    typer.echo("written: " + ", ".join(str(path) for path in written if path is not None))
