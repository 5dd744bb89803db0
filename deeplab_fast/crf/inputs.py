"""What ``deeplab-fast crf`` reads: scores or labels, checked against the photo, as probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_fast import crf, pictures
from deeplab_fast.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deeplab_fast.pictures.label_values import LabelValues
    from deeplab_fast.scores import ScoreMap

MOST_CLASSES = 256  # as many as a palette picture holds
UNSURE = -1
# Without further words, more different labels than this in one picture are not classes but the traces of a compression
# or a resizing.
MOST_PLAUSIBLE = 64
GREY = 127  # at most four different labels of which one is as large as this are a mask in grey
ADVICE = "--values says what each value means, as in --values 0:0,255:1"


@dataclass(frozen=True)
class CRFInput:
    """Probabilities for the CRF, float32 (K, H, W), and the labels before it, (H, W), UNSURE in places."""

    prob: NDArray[np.float32]
    before: NDArray[np.int64]
    notes: list[str] = field(default_factory=list)


def from_scores(scores: ScoreMap, size: tuple[int, int]) -> CRFInput:
    """Scores, not larger than the photo, as probabilities at the photo's size (H, W).

    Raises:
        ValueError: if a palette picture cannot hold their classes.
    """
    count, height, width = scores.values.shape
    _check_count(count)
    notes = list(scores.notes)
    if (height, width) != size:
        notes.append(f"the scores were resized from {width}×{height} to the photo's {size[1]}×{size[0]}, bilinearly")
    prob = scores.probabilities(size)
    return CRFInput(prob, prob.argmax(axis=0), notes)


def is_label_map(array: NDArray[Any]) -> bool:
    """Whether an array can only be labels: whole numbers, in one channel."""
    return array.dtype.kind in "iub" and _without_channel(array).ndim == 2


def label_map(array: NDArray[Any]) -> NDArray[np.int64]:
    """An array (H, W), with a channel axis of length 1 or without, of whole numbers in any dtype, as int64 (H, W).

    Raises:
        TypeError, ValueError: for other numbers or other shapes.
    """
    labels = _without_channel(array)
    if labels.ndim != 2 or labels.size == 0:
        raise ArgumentError("labels", array.shape, "(H, W), not empty", what="shape")
    if labels.dtype.kind not in "iubf":
        raise ArgumentTypeError("labels", labels.dtype, "whole numbers", what="dtype")
    if labels.dtype.kind == "f" and not (np.isfinite(labels).all() and (labels == np.round(labels)).all()):
        raise ArgumentError("labels", "fractions, NaN or Inf", "whole numbers", what="values")
    return labels.astype(np.int64)


def _without_channel(array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        return array[0] if array.shape[0] == 1 else array[..., 0]
    return array


def from_labels(
    labels: NDArray[Any],
    size: tuple[int, int],
    classes: int | None,
    gt_prob: float,
    unsure: Sequence[int],
    values: LabelValues | None = None,
) -> CRFInput:
    """A label map of the photo's size (H, W) as probabilities.

    Args:
        labels: (H, W), integers.
        size: of the photo.
        classes: how many there are; default by the highest label.
        gt_prob: how sure labels are.
        unsure: labels that mean unsure, beside 255.
        values: what each value means; then labels are the classes that it names.

    Raises:
        ValueError: for another size, a label outside the classes, a map that labels fewer than two classes or nothing,
            or one whose values seem to be no class numbers although neither `classes` nor `values` is given.
    """
    if labels.shape != size:
        wanted = f"{size[1]}×{size[0]} (width×height), as the photo"
        raise ArgumentError("labels", f"{labels.shape[1]}×{labels.shape[0]}", wanted, what="size")
    if values is not None:
        labels = values.apply(labels)
        named = [k for k in values.classes.values() if k is not None]
        classes = max(named, default=0) + 1 if classes is None else classes
    elif classes is None:
        _check_plausible(labels)
    unknown = set(unsure)
    if classes is None or classes <= pictures.IGNORED:
        unknown.add(pictures.IGNORED)
    is_unsure = np.isin(labels, list(unknown))
    if is_unsure.all():
        wanted = f"such that a class is left, every pixel is unsure; {ADVICE}"
        raise ArgumentError("labels", _shown(labels), wanted, what="values")
    if values is None:
        _check_two_classes(labels, is_unsure)
    notes = []
    if classes is None:
        classes = int(labels[~is_unsure].max()) + 1
        notes.append(f"{classes} classes, by the highest label {classes - 1}; --classes sets another number")
    _check_count(classes)
    prob = crf.probabilities_from_labels(labels, classes, gt_prob, unknown)
    return CRFInput(prob, np.where(is_unsure, UNSURE, labels), notes)


def _check_two_classes(labels: NDArray[Any], is_unsure: NDArray[np.bool_]) -> None:
    """With one class only, the result would be that class everywhere: an object of value 255 would be lost."""
    sure = np.unique(labels[~is_unsure])
    if len(sure) > 1:
        return
    ignored = f", the rest being unsure ({_shown(labels[is_unsure])})" if is_unsure.any() else ""
    wanted = f"those of at least two classes, only {sure[0]} is left{ignored}; {ADVICE}"
    raise ArgumentError("labels", _shown(labels), wanted, what="values")


def _check_plausible(labels: NDArray[Any]) -> None:
    """Raise for values that are hardly class numbers."""
    present = np.unique(labels)
    if len(present) > MOST_PLAUSIBLE:
        raise ArgumentError(
            "labels",
            f"{len(present)}, as of a picture that was compressed, resized or smoothed",
            f"at most {MOST_PLAUSIBLE}, unless --classes says that they are classes; {ADVICE}",
            what="number of different values",
        )
    sure = present[present != pictures.IGNORED]
    if len(present) <= 4 and len(sure) > 1 and sure.max() >= GREY:
        wanted = f"class numbers, unless --classes says that they are; {ADVICE}"
        raise ArgumentError("labels", f"{_shown(labels)}, as a mask's in grey", wanted, what="values")


def _shown(labels: NDArray[Any]) -> str:
    values = list(map(str, np.unique(labels)[:6]))
    return ", ".join(values[:5]) + (", …" if len(values) > 5 else "")


def _check_count(classes: int) -> None:
    if not 1 <= classes <= MOST_CLASSES:
        raise ArgumentError("classes", classes, f"1 to {MOST_CLASSES}, what a palette picture holds")
