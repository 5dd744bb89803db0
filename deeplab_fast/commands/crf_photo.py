"""One photo through the dense CRF: what the command does, writes and says."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from deeplab_fast.commands.common import WrongOption, note, option_errors, spinner

# numpy, Pillow and rich's tables are imported where they are used: --help and --version answer at once.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deeplab_fast.crf import CRFParameters
    from deeplab_fast.crf.inputs import CRFInput, Reading


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for."""

    image: Path
    scores: Path
    out: Path
    params: CRFParameters
    how: Reading
    overlay: bool = False
    overlay_to: Path | None = None
    save_probabilities: bool = False
    threads: int | None = None
    palette: NDArray[np.uint8] | None = None

    @property
    def panel(self) -> Path | None:
        """Where photo, input and result are written side by side."""
        if self.overlay_to is None and self.overlay:
            return self.out.with_name(f"{self.out.stem}-overlay.png")
        return self.overlay_to

    @property
    def probabilities(self) -> Path | None:
        """Where the probabilities are written."""
        return self.out.with_suffix(".npz") if self.save_probabilities else None

    @property
    def outputs(self) -> list[Path]:
        return [path for path in (self.out, self.panel, self.probabilities) if path is not None]


def refine(request: Request) -> None:
    """Refine a photo's scores, write the result, and say what changed."""
    _check_outputs(request)
    from deeplab_fast import pictures
    from deeplab_fast.crf import inputs

    photo = pictures.read_image(request.image)
    stored = inputs.read_file(request.scores, request.how)
    given = inputs.as_input(stored, photo.shape[:2], request.how, request.scores)
    for text in given.notes:
        note(text)
    Q, seconds = infer(photo, given.prob, request.params, request.threads)
    labels = given.labels(Q)
    _write(request, photo, given, Q, labels)
    report(given, labels, seconds, request.outputs, request.palette)


def _check_outputs(request: Request) -> None:
    """Refuse, before anything is computed, destinations that cannot work or would overwrite an input."""
    from deeplab_fast import files, pictures

    if request.out.suffix.lower() != ".png":
        raise WrongOption("--out", str(request.out), "a name that ends in .png")
    if request.panel is not None:
        with option_errors(path="--overlay-to"):
            pictures.picture_format(request.panel)
        if request.panel.resolve() == request.out.resolve():
            raise WrongOption("--overlay-to", str(request.panel), "another file than --out")
    for path in request.outputs:
        files.check_destination(path, [request.image, request.scores])


def infer(
    image: NDArray[np.uint8] | NDArray[np.float32],
    prob: NDArray[np.float32],
    params: CRFParameters,
    threads: int | None,
    spacing: Sequence[float] | None = None,
) -> tuple[NDArray[np.float32], dict[str, float]]:
    """Q of a photo (K, H, W) or a volume (K, D, H, W), and the seconds that building and inference took."""
    from deeplab_fast import crf, pydensecrf

    if threads is not None:
        pydensecrf.set_num_threads(threads)
    start = time.perf_counter()
    with option_errors("--bi-rgb-std"), spinner("Building the lattices"):
        built = crf.build(image, prob, params, spacing)
    middle = time.perf_counter()
    with spinner(f"Inference, {params.iterations} iterations"):
        Q = built.infer()
    end = time.perf_counter()
    return Q, {"build": middle - start, "inference": end - middle}


def _write(
    request: Request,
    photo: NDArray[np.uint8],
    given: CRFInput,
    Q: NDArray[np.float32],
    labels: NDArray[np.int64],
) -> None:
    """Write the result, and what else is wanted: all or nothing."""
    from deeplab_fast import files, pictures

    writers = {request.out: pictures.labels_writer(labels, request.out, request.palette)}
    if request.panel is not None:
        writers[request.panel] = pictures.picture_writer(given.panel(photo, labels, request.palette), request.panel)
    if request.probabilities is not None:
        writers[request.probabilities] = given.probabilities_writer(Q)
    files.atomic_write_all(writers)


def report(
    given: CRFInput,
    labels: NDArray[np.int64],
    seconds: dict[str, float],
    written: list[Path],
    palette: NDArray[np.uint8] | None = None,
    unit: str = "pixels",
) -> None:
    """Print what changed, class by class, and the time."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from deeplab_fast import pictures, pydensecrf
    from deeplab_fast.crf import inputs

    palette = pictures.voc_palette() if palette is None else palette
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
    typer.echo(f"{count:,} of {of:,} {unit} changed ({100 * count / of:.1f} %){decided}")
    total = sum(seconds.values())
    parts = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in seconds.items())
    threads = pydensecrf.get_num_threads()
    typer.echo(f"{1000 * total:.0f} ms: {parts}; {threads} thread{'s' if threads > 1 else ''}")
    typer.echo("written: " + ", ".join(map(str, written)))
