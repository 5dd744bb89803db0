"""``deeplab-fast crf``: of a photo, a volume, or a data set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deeplab_fast.commands import crf_photo, crf_set, crf_volume
from deeplab_fast.commands.common import WrongOption, WrongUse, option_errors, reported, warnings_as_notes
from deeplab_fast.commands.options import (
    CRF,
    LABELS,
    SET,
    VOLUME,
    Background,
    Debug,
    Key,
    Keys,
    Kind,
    Layout,
    Palette,
    Values,
    check_scores_options,
    parsed_numbers,
    parsed_values,
)
from deeplab_fast.errors import one_of

# numpy, Pillow and rich's tables are imported where they are used: --help and --version answer at once.
if TYPE_CHECKING:
    from deeplab_fast.crf import CRFParameters

DEFAULT_GT_PROB = 0.7  # as `deeplab_fast.crf.inputs.DEFAULT_GT_PROB`, which --help does not wait for


def crf_command(
    images: Annotated[
        Path,
        typer.Argument(
            help="A photo; or a data set: a folder, a pattern in quotes ('data/*/images/*.jpg'), or a list, a .txt "
            "with an image and its scores a line; or a volume, .nii, .nii.gz or .npy, C×D×H×W or D×H×W.",
            show_default=False,
            readable=False,  # files are checked where they are read, which also says what they were for
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Result, a palette PNG in the VOC colours; of a data set the folder for them, of a volume .nii.gz or "
            ".npy.",
            show_default=False,
        ),
    ],
    scores: Annotated[
        Path | None,
        typer.Argument(
            help="Its scores: .npy, .npz, .pt or .safetensors, K×H×W, logits or probabilities, as large as the photo "
            "or smaller; or labels: a palette or grey picture, 255 meaning unsure unless --values says otherwise. Of a "
            "data set a folder or a pattern of such files, with the images' names; of a list that names them, nothing.",
            show_default=False,
            readable=False,
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            rich_help_panel=CRF, help="Parameters of a method: deeplab, irn, psa, afa, toco, stego, cutler, …"
        ),
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
        str | None,
        typer.Option(
            rich_help_panel=CRF,
            help="Its standard deviation in colour, of 0..255; or one for each channel: 40,60.",
            show_default=False,
        ),
    ] = None,
    iterations: Annotated[int | None, typer.Option(rich_help_panel=CRF, help="Mean-field iterations.")] = None,
    kind: Kind = "auto",
    layout: Layout = "auto",
    key: Key = None,
    keys: Keys = "classes",
    background: Background = None,
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
            help="Also write photo, input and result side by side, beside the result: OUT-overlay.png; of a data set "
            "NAME-overlay.jpg.",
        ),
    ] = False,
    overlay_to: Annotated[
        Path | None,
        typer.Option("--overlay-to", help="Also write them, to this file (of one photo).", show_default=False),
    ] = None,
    save_probabilities: Annotated[
        bool,
        typer.Option("--save-probabilities", help="Also write the probabilities, float16, beside the result, as .npz."),
    ] = False,
    palette: Palette = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads (default: all processors; of a data set 1 in each process).")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(rich_help_panel=SET, help="Folder that paths in a list are relative to.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(rich_help_panel=SET, help="Worker processes (default: as many as processors).")
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(rich_help_panel=SET, help="GB that all of them may take (default: four fifths of what is free)."),
    ] = None,
    skip_existing: Annotated[
        bool | None,
        typer.Option(
            "--skip-existing/--no-skip-existing",
            rich_help_panel=SET,
            help="Leave out images whose results are there, which are whole (default), or make them anew.",
            show_default=False,
        ),
    ] = None,
    skip_missing: Annotated[
        bool,
        typer.Option("--skip-missing", rich_help_panel=SET, help="Leave out images without scores, and count them."),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=SET,
            help="Part of the set to do: 3/16 is the third of sixteen (default: as torchrun or Slurm say, or all).",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(rich_help_panel=SET, help="Folder of true labels: scores before and after are counted."),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", rich_help_panel=SET, help="Show the images that changed most, before and after, as a web page."
        ),
    ] = False,
    modality: Annotated[
        list[Path] | None,
        typer.Option(
            rich_help_panel=VOLUME, help="A file of further modalities; may be given more than once.", readable=False
        ),
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=VOLUME,
            help="Distance of neighbouring slices, rows and columns, which deviations in position are in the unit of: "
            "3,1,1 (default: as NIfTI says, else 1,1,1).",
            show_default=False,
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Refine class scores, or rough labels, with a fully connected CRF: of a photo, a volume, or a data set."""
    with reported("crf", debug), warnings_as_notes(), input_errors():
        overrides = {
            "pos_w": pos_w, "pos_xy_std": pos_xy_std, "bi_w": bi_w, "bi_xy_std": bi_xy_std,
            "bi_rgb_std": _deviations(bi_rgb_std), "iterations": iterations,
        }  # fmt: skip
        params = _parameters(preset, overrides)
        check_scores_options(kind, layout, labels=True)
        from deeplab_fast import pictures
        from deeplab_fast.crf.inputs import Reading
        from deeplab_fast.crf.volumes import VOLUME_ENDINGS

        if threads is not None and threads < 1:
            raise WrongOption("--threads", threads, "at least 1")
        with option_errors("--classes", "--gt-prob", "--keys", "--background"):
            how = Reading(
                kind=kind, layout=layout, key=key, classes=classes, gt_prob=gt_prob, unsure=tuple(unsure or ()),
                values=parsed_values(values), keys=keys, background=background,
            )  # fmt: skip
        colours = None if palette is None else pictures.read_palette(palette)
        shared: dict[str, Any] = {
            "scores": scores, "out": out, "params": params, "how": how, "save_probabilities": save_probabilities,
            "threads": threads,
        }  # fmt: skip
        of_set: dict[str, Any] = {
            "root": root, "jobs": jobs, "memory": memory, "skip_existing": skip_existing,
            "skip_missing": skip_missing, "shard": shard, "labels": labels, "compare": compare,
        }  # fmt: skip
        if (modality or spacing is not None) and not crf_volume.is_volume(images):
            option = "--modality" if modality else "--spacing"
            raise WrongUse(f"{option} belongs to a volume, {images} is none: {one_of(VOLUME_ENDINGS)}")
        if crf_set.is_set(images, scores):
            if overlay_to is not None:
                raise WrongUse(f"--overlay-to belongs to one photo, {images} is a data set: --overlay")
            crf_set.refine(crf_set.Request(images=images, overlay=overlay, palette=colours, **shared, **of_set))
            return
        given = [f"--{name.replace('_', '-')}" for name, value in of_set.items() if value not in (None, False)]
        if given:
            raise WrongUse(f"{given[0]} belongs to a data set, {images} is none: a folder, a pattern or a list")
        if scores is None:
            raise WrongUse(f"SCORES is missing: the scores, or rough labels, of {images}")
        if crf_volume.is_volume(images):
            if overlay or overlay_to is not None or palette is not None:
                raise WrongUse(f"--overlay, --overlay-to and --palette belong to photos, {images} is a volume")
            across = crf_volume.parsed_spacing(spacing)
            crf_volume.refine(
                crf_volume.Request(image=images, modalities=tuple(modality or ()), spacing=across, **shared)
            )
            return
        crf_photo.refine(
            crf_photo.Request(image=images, overlay=overlay, overlay_to=overlay_to, palette=colours, **shared)
        )


def _deviations(text: str | None) -> float | tuple[float, ...] | None:
    """What --bi-rgb-std says."""
    if text is None:
        return None
    numbers = parsed_numbers("--bi-rgb-std", text, "a number, or one for each channel, as in 40,60")
    return numbers if len(numbers) > 1 else numbers[0]


def _parameters(preset: str, overrides: dict[str, Any]) -> CRFParameters:
    from deeplab_fast import crf

    with option_errors("--preset", *(f"--{name.replace('_', '-')}" for name in overrides)):
        return crf.parameters(preset, **overrides)


@contextmanager
def input_errors() -> Iterator[None]:
    """Say errors about how scores are read of the options that say it; that one does not apply is wrong use."""
    from deeplab_fast.crf.inputs import Inapplicable

    with option_errors("--key", "--jobs", "--shard", "--memory", "--root"):
        try:
            yield
        except Inapplicable as error:
            raise WrongUse(str(error)) from error
