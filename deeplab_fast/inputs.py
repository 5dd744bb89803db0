"""What ``deeplab-fast crf`` reads: scores or labels, checked against the photo, as probabilities."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_fast import crf, pictures

if TYPE_CHECKING:
    from numpy.typing import NDArray

ARRAY_ENDINGS = (".npy", ".npz")
MOST_CLASSES = 256  # as many as a palette picture holds
UNSURE = -1


@dataclass(frozen=True)
class CRFInput:
    """Probabilities for the CRF, float32 (K, H, W), and the labels before it, (H, W), UNSURE in places."""

    prob: NDArray[np.float32]
    before: NDArray[np.int64]
    notes: list[str] = field(default_factory=list)


def read_array(path: Path, key: str | None = None) -> NDArray[Any]:
    """Read one array of a ``.npy`` or ``.npz`` file; ``key`` names it where a ``.npz`` holds several.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no array file, holds Python objects, or it is not clear which array is meant.
    """
    if not path.exists():
        raise FileNotFoundError(f"input not found: {path}")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return loaded[_chosen(path, loaded.files, key)]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        if isinstance(error, (PermissionError, ChoiceError)):
            raise
        raise ValueError(f"input {path} is no readable numpy file: {error}") from error


class ChoiceError(ValueError):
    """It is not clear which array of several is meant."""


def _chosen(path: Path, names: Sequence[str], key: str | None) -> str:
    if key is not None:
        if key not in names:
            raise ChoiceError(f"--key must be one of {', '.join(names)}, the arrays of {path}, was {key!r}")
        return key
    if len(names) != 1:
        held = f"{len(names)} arrays ({', '.join(names)}): name one with --key" if names else "no array"
        raise ChoiceError(f"input {path} holds {held}")
    return names[0]


def from_scores(scores: NDArray[Any], size: tuple[int, int], kind: str, classes: int | None) -> CRFInput:
    """Scores (K, h, w), not larger than the photo, as probabilities at the photo's size (H, W).

    Raises:
        TypeError, ValueError: if they are no scores, or cannot belong to a photo of this size.
    """
    scores = crf.checked_scores(scores)
    count, height, width = scores.shape
    notes: list[str] = []
    if classes is not None and classes != count:
        raise ValueError(f"--classes must be the scores' {count}, was {classes}")
    _check_count(count)
    _check_score_size(scores.shape, size)
    if kind == "auto":
        kind = crf.score_kind(scores)
        notes.append(f"the scores were taken as {kind}")
    if (height, width) != size:
        scores = crf.resize_scores(scores, size)
        notes.append(f"the scores were resized from {width}×{height} to the photo's {size[1]}×{size[0]}, bilinearly")
    prob = crf.probabilities_from_scores(scores, kind)
    return CRFInput(prob, prob.argmax(axis=0), notes)


def _check_score_size(shape: tuple[int, int, int], size: tuple[int, int]) -> None:
    count, height, width = shape
    what = f"scores of {count}×{height}×{width} (K×H×W) do not fit the photo's {size[0]}×{size[1]} (H×W)"
    if (count, height) == size:
        raise ValueError(f"{what}: the classes seem to be the last axis, they must be the first")
    # A network's scores have the photo's proportions but for rounding. With height and width exchanged, they
    # would be resized without complaint, and wrongly.
    rounding = 2 * max(size)
    upright, sideways = abs(height * size[1] - width * size[0]), abs(height * size[0] - width * size[1])
    if upright > rounding and sideways <= rounding:
        raise ValueError(f"{what}: height and width seem to be swapped")
    if height > size[0] or width > size[1]:
        raise ValueError(f"{what}: they must not be larger")


def from_labels(
    labels: NDArray[Any], size: tuple[int, int], classes: int | None, gt_prob: float, unsure: Sequence[int]
) -> CRFInput:
    """A label map of the photo's size (H, W) as probabilities; 255 and the values of ``unsure`` are unsure.

    Raises:
        ValueError: for another size, a label outside the classes, or a map in which nothing is labelled.
    """
    if labels.shape != size:
        raise ValueError(
            f"labels of {labels.shape[1]}×{labels.shape[0]} do not fit the photo's {size[1]}×{size[0]} (width×height)"
        )
    unknown = set(unsure)
    if classes is None or classes <= pictures.IGNORED:
        unknown.add(pictures.IGNORED)
    is_unsure = np.isin(labels, list(unknown))
    if is_unsure.all():
        raise ValueError("labels must name at least one class, every pixel is unsure")
    notes = []
    if classes is None:
        classes = int(labels[~is_unsure].max()) + 1
        notes.append(f"{classes} classes, by the highest label {classes - 1}; --classes sets another number")
    _check_count(classes)
    prob = crf.probabilities_from_labels(labels, classes, gt_prob, unknown)
    return CRFInput(prob, np.where(is_unsure, UNSURE, labels), notes)


def _check_count(classes: int) -> None:
    if not 1 <= classes <= MOST_CLASSES:
        raise ValueError(f"classes must be 1 to {MOST_CLASSES}, what a palette picture holds, were {classes}")
