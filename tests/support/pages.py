"""The pages of README.md and docs/: their code, and a folder with the files that they speak of."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from data_sets import scene
from PIL import Image
from places import ROOT
from volumes import volume

from deeplab_fast import pictures

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a language, in their order."""
    return [text for found, text in FENCE.findall(page.read_text()) if found == language]


@dataclass(frozen=True)
class Line:
    """A command of a page, without its comment."""

    page: Path
    words: list[str]

    def __str__(self) -> str:
        return f"{self.page.name}: {' '.join(self.words)}"


def lines(*programs: str) -> Iterator[Line]:
    """Commands of these programs in the shell blocks of all pages."""
    for page in PAGES:
        for text in "\n".join(blocks(page, "sh")).replace("\\\n", "").splitlines():
            words = shlex.split(text, comments=True)
            if words and words[0] in programs:
                yield Line(page, words)


def fill(folder: Path) -> None:
    """The files that the pages' code reads, all small and made up."""
    photo, truth, logits = scene(0)
    prob = np.exp(logits.repeat(8, 1).repeat(8, 2))
    Image.fromarray(photo).save(folder / "photo.jpg", quality=95)
    np.save(folder / "scores.npy", logits)
    np.save(folder / "probabilities.npy", (prob / prob.sum(axis=0)).astype(np.float32))
    np.save(folder / "object.npy", np.where(truth[None] == 1, 0.8, 0.1).astype(np.float32))
    scribbles = np.full(truth.shape, 255, np.uint8)
    scribbles[::8] = truth[::8]
    pictures.save_labels(folder / "scribbles.png", scribbles)
    Image.fromarray(np.where(truth == 1, 255, 0).astype(np.uint8)).save(folder / "mask.png")
    for name in ("images", "scores", "truth"):
        (folder / name).mkdir()
    for number in range(6):
        photo, truth, logits = scene(number)
        Image.fromarray(photo).save(folder / f"images/{number}.jpg", quality=95)
        np.save(folder / f"scores/{number}.npy", logits)
        pictures.save_labels(folder / f"truth/{number}.png", truth)
    _fill_volumes(folder)


def _fill_volumes(folder: Path) -> None:
    modalities, _, prob = volume(modalities=2)
    np.save(folder / "probabilities-3d.npy", prob)
    np.save(folder / "scores-3d.npy", np.log(prob))
    np.save(folder / "volume.npy", modalities)
    np.save(folder / "rough-3d.npy", prob.argmax(axis=0).astype(np.uint8))
    try:
        import nibabel
    except ImportError:
        return
    for name, values in zip(("t1", "t2"), modalities, strict=True):
        image = nibabel.Nifti1Image(values.transpose(2, 1, 0), np.diag([1.0, 1.0, 3.0, 1.0]))
        nibabel.save(image, folder / f"{name}.nii.gz")
