"""The command ``deeplab-fast``. Exit codes: 0 done, 1 failed, 2 wrong use. Nothing here imports torch."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

import deeplab_fast
from deeplab_fast.commands import check, convert, crf_eval, evaluate, predict, train
from deeplab_fast.commands.common import WrongUse, note, reported, spinner, warnings_as_notes

# numpy, Pillow and rich's tables are imported where they are used: --help and --version answer at once.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deeplab_fast.crf import CRFParameters
    from deeplab_fast.inputs import CRFInput

DEFAULT_GT_PROB = 0.7
# Headings of the options in `deeplab-fast crf --help`.
CRF, SCORES, LABELS = "CRF parameters", "If INPUT is scores", "If INPUT is labels"

app = typer.Typer(
    name="deeplab-fast",
    help="Fast semantic segmentation: train, evaluate and use DeepLab-v2; refine scores with a fully connected CRF.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point of the command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without "×" must not fail a finished job
    app(prog_name="deeplab-fast")


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"deeplab-fast {deeplab_fast.__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


# -------------------------------------------------------------------------------------------------------- crf


class OverlayMayTakePath(TyperCommand):
    """Lets ``--overlay`` stand alone or be followed by a path, which the option parser cannot express.

    ``--overlay PATH`` is tried first; if then an argument is missing, the word was that argument.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--overlay" in args and "--" not in args:
            with_path = ["--overlay-to" if arg == "--overlay" else arg for arg in args]
            after = args[args.index("--overlay") + 1 :]
            if after and not after[0].startswith("-"):
                try:
                    return super().parse_args(ctx, with_path)
                except Exception:  # the class of a usage error differs between versions of typer
                    ctx.params.clear()
        return super().parse_args(ctx, ["--overlay-to" + a[9:] if a.startswith("--overlay=") else a for a in args])


@app.command("crf", cls=OverlayMayTakePath)
def crf_command(
    image: Annotated[Path, typer.Argument(help="The photo.", show_default=False, readable=False)],
    input: Annotated[
        Path,
        typer.Argument(
            help="Scores: .npy or .npz, K×H×W, logits or probabilities, as large as the photo or smaller; "
            "or labels: a palette or grey picture, 255 meaning unsure.",
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
    kind: Annotated[
        str, typer.Option(rich_help_panel=SCORES, help="What scores are: auto, logits or probabilities.")
    ] = "auto",
    key: Annotated[
        str | None,
        typer.Option(rich_help_panel=SCORES, help="Name of the array in a .npz that holds several."),
    ] = None,
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
            help="Also write photo, input and result side by side: beside OUT, or to --overlay PATH.",
        ),
    ] = False,
    overlay_to: Annotated[Path | None, typer.Option("--overlay-to", hidden=True)] = None,
    threads: Annotated[int | None, typer.Option(help="Threads (default: all processors).")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Refine a photo's class scores, or rough labels, with a fully connected CRF."""
    with reported("crf", debug), warnings_as_notes():
        overrides = {
            "pos_w": pos_w, "pos_xy_std": pos_xy_std, "bi_w": bi_w, "bi_xy_std": bi_xy_std,
            "bi_rgb_std": bi_rgb_std, "iterations": iterations,
        }  # fmt: skip
        params = _parameters(preset, overrides)
        _check_options(kind, gt_prob, classes, threads)
        if overlay_to is None and overlay:
            overlay_to = out.with_name(f"{out.stem}-overlay.png")
        _check_outputs([image, input], out, overlay_to)
        from deeplab_fast import pictures

        photo = pictures.read_image(image)
        given = _read_input(input, photo.shape[:2], kind, key, classes, gt_prob, unsure)
        for text in given.notes:
            note(text)
        labels, seconds = _refine(photo, given.prob, params, threads)
        _write(photo, given, labels, out, overlay_to)
        _report(given, labels, seconds, [out, overlay_to])


def _parameters(preset: str, overrides: dict[str, Any]) -> CRFParameters:
    from deeplab_fast import crf

    try:
        return crf.parameters(preset, **overrides)
    except (ValueError, TypeError) as error:
        name, _, rest = str(error).partition(" ")
        raise WrongUse(f"--{name.replace('_', '-')} {rest}") from error


def _check_options(kind: str, gt_prob: float | None, classes: int | None, threads: int | None) -> None:
    if kind not in ("auto", "logits", "probabilities"):
        raise WrongUse(f"--kind must be auto, logits or probabilities, was {kind!r}")
    if gt_prob is not None and not 0 < gt_prob < 1:
        raise WrongUse(f"--gt-prob must lie strictly between 0 and 1, was {gt_prob}")
    if classes is not None and not 1 <= classes <= 256:
        raise WrongUse(f"--classes must be 1 to 256, was {classes}")
    if threads is not None and threads < 1:
        raise WrongUse(f"--threads must be at least 1, was {threads}")


def _check_outputs(inputs: list[Path], out: Path, overlay_to: Path | None) -> None:
    """Refuse, before anything is computed, destinations that cannot work or would overwrite an input."""
    from deeplab_fast import pictures

    if out.suffix.lower() != ".png":
        raise WrongUse(f"--out must end in .png, was {out}")
    for path in [out, overlay_to]:
        if path is None:
            continue
        try:
            pictures.picture_format(path)
        except ValueError as error:
            raise WrongUse(str(error)) from error
        if path.resolve() in [other.resolve() for other in inputs]:
            raise WrongUse(f"{path} is an input and would be overwritten")
        pictures.check_destination(path)
    if overlay_to is not None and overlay_to.resolve() == out.resolve():
        raise WrongUse(f"--overlay and --out must differ, both were {out}")


def _read_input(
    path: Path,
    size: tuple[int, int],
    kind: str,
    key: str | None,
    classes: int | None,
    gt_prob: float | None,
    unsure: list[int] | None,
) -> CRFInput:
    """Read scores or labels, whichever the file holds; an integer H×W array is labels."""
    from deeplab_fast import inputs, pictures

    if path.suffix.lower() in inputs.ARRAY_ENDINGS:
        array = inputs.read_array(path, key)
        if array.ndim != 2 or array.dtype.kind not in "iu":
            if gt_prob is not None or unsure:
                raise WrongUse("--gt-prob and --unsure belong to labels, the input is scores")
            return inputs.from_scores(array, size, kind, classes)
    else:
        if key is not None:
            raise WrongUse("--key belongs to a .npz file, the input is a picture")
        array = pictures.read_labels(path)
    if kind != "auto":
        raise WrongUse("--kind belongs to scores, the input is labels")
    return inputs.from_labels(array, size, classes, DEFAULT_GT_PROB if gt_prob is None else gt_prob, unsure or [])


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
    from deeplab_fast import pictures

    writers = {out: pictures.labels_writer(labels, out)}
    if overlay_to is not None:
        before = given.before % 256  # unsure, -1, becomes 255
        shown = [photo, pictures.overlay(photo, before), pictures.overlay(photo, labels)]
        panel = pictures.panel(shown, ["photo", "input", "result"])
        writers[overlay_to] = pictures.picture_writer(panel, overlay_to)
    pictures.atomic_write_all(writers)


def _report(given: CRFInput, labels: NDArray[np.int64], seconds: dict[str, float], written: list[Path | None]) -> None:
    """Print what changed, class by class, and the time."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from deeplab_fast import inputs, pictures, pydensecrf

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


# ------------------------------------------------------------------------------------------- doctor and bench


@app.command()
def doctor(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Tell what was built, what is used, and why not."""
    with reported("doctor", debug):
        from deeplab_fast import doctor as checks

        checks.show(checks.examine())


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context) -> None:
    """Run the benchmarks of a source checkout; further arguments go to them."""
    folder = Path(__file__).resolve().parents[1] / "bench"
    if not (folder.is_dir() and (folder.parent / "CMakeLists.txt").is_file()):
        typer.echo(
            "deeplab-fast bench: the benchmarks are in the source checkout, not in the installed package: "
            "get the sources and run `make bench` there",
            err=True,
        )
        raise typer.Exit(1)
    raise typer.Exit(subprocess.call([sys.executable, "-m", "bench", *context.args], cwd=folder.parent))


# ------------------------------------------------------------------------------ the segmentation system (commands/)

app.command("train", cls=train.ResumeMayTakeAuto)(train.train_command)
for name, command in {
    "check": check.check_command,
    "eval": evaluate.evaluate_command,
    "predict": predict.predict_command,
    "convert": convert.convert_command,
    "crf-eval": crf_eval.crf_eval_command,
}.items():
    app.command(name)(command)
