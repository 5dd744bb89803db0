"""Refine rough annotations of real photos with the dense CRF; show them, and the time beside pydensecrf's.

Writes, for each photo, ``demo/out/NAME.png`` (photo, rough input, refined) and the files that the command
line takes; over all photos, the table ``demo/out/table.md`` and the picture
``demo/out/hero.jpg``, of which the README shows a copy, ``demo/hero.jpg``.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import ModuleType

import annotate
import numpy as np
from annotate import Annotation
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from deeplab_fast import files, pictures
from deeplab_fast.crf import CLIP
from deeplab_fast.pydensecrf import densecrf as our_densecrf
from deeplab_fast.pydensecrf import get_num_threads
from deeplab_fast.pydensecrf import utils as our_utils

DEMO = Path(__file__).parent
OUT = DEMO / "out"
HERO = ("astronaut", "coffee", "motorcycle", "rocket")
HERO_WIDTH = 1600  # pixels; a README shows it at about half
REPEATS = 3


def refine(dcrf: ModuleType, utils: ModuleType, photo: Annotation, prob: np.ndarray) -> np.ndarray:
    """A whole call, in the lines that users of pydensecrf write; either package runs it. Q (K, H, W)."""
    params = photo.params
    classes, height, width = prob.shape
    crf = dcrf.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(utils.unary_from_softmax(prob, clip=CLIP))
    crf.addPairwiseGaussian(sxy=params.pos_xy_std, compat=params.pos_w)
    crf.addPairwiseBilateral(sxy=params.bi_xy_std, srgb=params.bi_rgb_std, rgbim=photo.image, compat=params.bi_w)
    return np.array(crf.inference(params.iterations)).reshape(prob.shape)


def import_peer() -> tuple[ModuleType, ModuleType] | None:
    """pydensecrf, if it is installed."""
    try:
        from pydensecrf import densecrf, utils
    except ImportError:
        return None
    return densecrf, utils


def compare(photo: Annotation, peer: tuple[ModuleType, ModuleType] | None) -> dict:
    """Run both packages in turn on one photo; times in seconds are the best of ``REPEATS``."""
    prob = photo.probabilities()
    contestants = {"ours": (our_densecrf, our_utils)} | ({"peer": peer} if peer else {})
    seconds = dict.fromkeys(contestants, float("inf"))
    result = {}
    for _ in range(REPEATS):
        for name, modules in contestants.items():
            start = time.perf_counter()
            result[name] = refine(*modules, photo, prob)
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    labels = {name: Q.argmax(axis=0) for name, Q in result.items()}
    agreement = float((labels["ours"] == labels["peer"]).mean()) if peer else None
    return {"photo": photo, "labels": labels["ours"], "seconds": seconds, "agreement": agreement}


def show(photo: Annotation, labels: np.ndarray) -> np.ndarray:
    """The photo tinted with labels in the photo's own colours."""
    return pictures.overlay(photo.image, labels, palette=photo.palette, strength=0.55, lines=photo.lines)


def write_photo(result: dict) -> None:
    """The panel, and the same input as files for ``deeplab-fast crf``."""
    photo: Annotation = result["photo"]
    kind = "rough scores" if photo.kind == "scores" else "rough labels"
    panel = pictures.panel(
        [photo.image, show(photo, photo.rough()), show(photo, result["labels"])],
        ["photo", kind, f"refined ({photo.params.iterations} iterations)"],
    )
    pictures.save_image(OUT / f"{photo.name}.png", panel)
    image, rough = input_files(photo)
    pictures.save_image(image, photo.image)
    if photo.kind == "scores":
        scores = photo.scores()
        files.atomic_write(rough, lambda file: np.save(file, scores))
    else:
        pictures.save_labels(rough, photo.labels)


def input_files(photo: Annotation) -> tuple[Path, Path]:
    """Where the photo and its rough annotation are written for the command line."""
    ending = "_scores.npy" if photo.kind == "scores" else "_labels.png"
    return OUT / f"{photo.name}_photo.png", OUT / f"{photo.name}{ending}"


def write_hero(results: list[dict]) -> None:
    """One strip for the README: the rough input above, what the CRF makes of it below."""
    chosen = {result["photo"].name: result for result in results}
    chosen = [chosen[name] for name in HERO]
    boxes = [result["photo"].crop for result in chosen]
    gap, aspect = 8, sum((right - left) / (bottom - top) for left, top, right, bottom in boxes)
    height = round((HERO_WIDTH - gap * (len(chosen) - 1)) / aspect)

    def strip(labels_of: list[np.ndarray], caption: str) -> np.ndarray:
        shown = []
        for result, labels, box in zip(chosen, labels_of, boxes, strict=True):
            picture = Image.fromarray(show(result["photo"], labels)).crop(box)
            size = (round(picture.width * height / picture.height), height)
            shown.append(np.asarray(picture.resize(size, Image.Resampling.LANCZOS)))
        row = pictures.panel(shown, gap=gap)
        return pictures.panel([row], [caption], font_size=30)

    rough = strip([r["photo"].rough() for r in chosen], "in: photo and rough scores or scribbles")
    refined = strip([r["labels"] for r in chosen], "out: refined by the dense CRF")
    pictures.save_image(OUT / "hero.jpg", np.concatenate([rough, refined]))


def rows(results: list[dict]) -> list[list[str]]:
    """The table's cells, a list a photo."""
    cells = []
    for result in results:
        photo, ours, peer = result["photo"], result["seconds"]["ours"], result["seconds"].get("peer")
        height, width = photo.labels.shape
        cells.append(
            [
                photo.title,
                f"{width}×{height}",
                str(len(photo.classes)),
                "–" if peer is None else f"{1000 * peer:.0f} ms",
                f"{1000 * ours:.0f} ms",
                "–" if peer is None else f"{peer / ours:.1f}×",
                "–" if result["agreement"] is None else f"{100 * result['agreement']:.3f} %",
            ]
        )
    return cells


HEADINGS = ["photo", "size", "classes", "pydensecrf", "ours", "ratio", "same labels"]


def write_table(cells: list[list[str]], note: str) -> None:
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---|---|" + "---:|" * (len(HEADINGS) - 2)]
    lines += ["| " + " | ".join(row) + " |" for row in cells]
    text = "\n".join(lines) + f"\n\n{note}\n"
    files.atomic_write(OUT / "table.md", lambda file: file.write(text.encode()))


def main() -> None:
    console = Console()
    OUT.mkdir(exist_ok=True)
    peer = import_peer()
    if peer is None:
        console.print("pydensecrf is not installed, so there is nothing to compare with: pip install pydensecrf2")
    photos = annotate.load_all()
    results = []
    for photo in track(photos, description="Refining", transient=True, console=console):
        results.append(compare(photo, peer))
        write_photo(results[-1])
    write_hero(results)

    note = (
        f"Whole call: unary, both lattices, {photos[0].params.iterations} iterations. Best of {REPEATS}; "
        f"deeplab-fast on {get_num_threads()} of {os.cpu_count()} processors, pydensecrf on one, as always."
    )
    table = Table(title="Dense CRF on photos", caption=note)
    for number, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if number < 2 else "right")
    for cells in rows(results):
        table.add_row(*cells)
    console.print(table)
    write_table(rows(results), note)
    console.print(f"Pictures: {os.path.relpath(OUT)}, {os.path.relpath(DEMO / 'hero.jpg')}. One of them by hand:")
    inputs = " ".join(os.path.relpath(path) for path in input_files(photos[0]))
    command = f"  deeplab-fast crf {inputs} -o refined.png --preset {photos[0].preset} --overlay"
    console.print(command, soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
