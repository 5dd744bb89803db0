"""What the dense CRF is given: scores or labels from a file, checked against the photo, as probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from deeplab_fast import pictures, scores
from deeplab_fast.crf.refining import probabilities_from_labels
from deeplab_fast.errors import ArgumentError, ArgumentTypeError, at, one_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deeplab_fast.pictures.label_values import LabelValues
    from deeplab_fast.scores import ScoreMap, StoredScores

MOST_CLASSES = 256  # as many as a palette picture holds
UNSURE = -1
# Without further words, more different labels than this in one picture are not classes but the traces of a compression
# or a resizing.
MOST_PLAUSIBLE = 64
GREY = 127  # at most four different labels of which one is as large as this are a mask in grey
ADVICE = "--values says what each value means, as in --values 0:0,255:1"

DEFAULT_GT_PROB = 0.7
KINDS = (*scores.KINDS, "labels")
NUMBERINGS = ("classes", "foreground")
MASK_KINDS = ("auto", "labels", "sigmoid")  # what a picture may be


@dataclass(frozen=True)
class Reading:
    """How files of scores or labels are read.

    Attributes:
        kind: "logits", "probabilities", "sigmoid" (of one channel the probability of class 1, of several each class's
            own), "labels", or "auto".
        layout: order of the scores' axes: "khw", "hwk" or "auto".
        key: name of the array, in files of several.
        classes: K; of scores it is checked, of labels it is what they may be, by default the highest and one.
        gt_prob: how sure labels are.
        unsure: labels that mean unsure, beside 255.
        values: what each value of a label picture means.
        keys: what the numbers beside the maps of some classes are: "classes", their classes, or "foreground", as IRN
            and psa have them, their classes less 1. Maps that are one more than the keys have class 0 first.
        background: what is put as class 0's map before maps of other classes.

    Raises:
        ValueError: for a word that is not taken, or a number out of range.
    """

    kind: str = "auto"
    layout: str = "auto"
    key: str | None = None
    classes: int | None = None
    gt_prob: float | None = None
    unsure: tuple[int, ...] = ()
    values: LabelValues | None = None
    keys: str = "classes"
    background: float | None = None

    def __post_init__(self) -> None:
        for name, word, words in (
            ("kind", self.kind, KINDS),
            ("layout", self.layout, scores.LAYOUTS),
            ("keys", self.keys, NUMBERINGS),
        ):
            if word not in words:
                raise ArgumentError(name, word, one_of(words))
        if self.classes is not None and not 1 <= self.classes <= MOST_CLASSES:
            raise ArgumentError("classes", self.classes, f"1 to {MOST_CLASSES}")
        if self.gt_prob is not None and not 0 < self.gt_prob < 1:
            raise ArgumentError("gt_prob", self.gt_prob, "strictly between 0 and 1")
        if self.background is not None and not np.isfinite(self.background):
            raise ArgumentError("background", self.background, "a finite number")


@dataclass(frozen=True)
class CRFInput:
    """What the CRF gets.

    Attributes:
        prob: float32 (K, H, W), probabilities.
        before: (H, W), the labels before the CRF, UNSURE in places.
        notes: what was decided, for people.
        classes: the classes that the K maps are of, in their order; None for 0..K-1.
    """

    prob: NDArray[np.float32]
    before: NDArray[np.int64]
    notes: list[str] = field(default_factory=list)
    classes: NDArray[np.int64] | None = None

    def labels(self, Q: NDArray[np.float32]) -> NDArray[np.int64]:
        """The classes (H, W) that are likeliest by Q (K, H, W)."""
        labels = Q.argmax(axis=0)
        return labels if self.classes is None else self.classes[labels]

    def panel(
        self, photo: NDArray[np.uint8], labels: NDArray[np.int64], palette: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """The photo (H, W, 3), and over it the labels before the CRF and these, side by side."""
        # Unsure, -1, becomes 255.
        tinted = [pictures.overlay(photo, one, palette=palette) for one in (self.before % MOST_CLASSES, labels)]
        return pictures.panel([photo, *tinted], ["photo", "input", "result"])

    def probabilities_writer(self, Q: NDArray[np.float32]) -> Callable[[BinaryIO], None]:
        """A writer of Q (K, H, W) as `.npz`: `probabilities`, float16, and `keys`, if it is of some classes only."""
        of_some = {} if self.classes is None else {"keys": self.classes}
        return scores.npz_writer({"probabilities": Q.astype(np.float16), **of_some})


# ------------------------------------------------------------------------------------------------- files and kinds


class Inapplicable(ArgumentError):
    """An option was given that does not belong to what the file holds."""

    def __str__(self) -> str:
        return self.wanted


def read_file(path: Path, how: Reading) -> StoredScores:
    """What a file holds, before a photo is known: scores, or labels from a picture.

    Raises:
        FileNotFoundError, ModuleNotFoundError, ValueError: as reading arrays and pictures does.
    """
    if path.suffix.lower() in scores.ARRAY_ENDINGS:
        return scores.read_stored(path, how.key)
    if how.key is not None:
        raise Inapplicable(
            "key", how.key, "--key belongs to a .npz file or another of several arrays, the input is a picture"
        )
    if how.kind not in MASK_KINDS:
        wanted = f"--kind {how.kind} belongs to scores, the input is a picture: labels, or sigmoid"
        raise Inapplicable("kind", how.kind, wanted)
    if how.kind == "sigmoid":
        return scores.StoredScores(pictures.read_grey(path))
    return scores.StoredScores(pictures.read_labels(path, lossy=how.values is not None))


def are_labels(stored: StoredScores, how: Reading) -> bool:
    """Whether what was read is a map of labels."""
    return how.kind == "labels" or (how.kind == "auto" and is_label_map(stored.array))


def as_input(
    stored: StoredScores, size: tuple[int, int], how: Reading, path: Path, *, one_class: bool = False
) -> CRFInput:
    """What was read from a path, for a photo of size (H, W); whole numbers in one channel are labels.

    With `one_class`, labels may be of one class in all pixels, as in a data set some are.

    Raises:
        TypeError, ValueError: for what does not fit the photo or itself; the message names the file.
    """
    try:
        if are_labels(stored, how):
            if how.layout != "auto":
                raise Inapplicable("layout", how.layout, "--layout belongs to scores, the input is labels")
            gt_prob = DEFAULT_GT_PROB if how.gt_prob is None else how.gt_prob
            labels = label_map(stored.array)
            return from_labels(labels, size, how.classes, gt_prob, how.unsure, how.values, one_class=one_class)
        if how.gt_prob is not None or how.unsure or how.values is not None:
            names = "--gt-prob, --unsure and --values"
            raise Inapplicable("values", how.values, f"{names} belong to labels, the input is scores")
        if stored.keys is not None:
            return _from_some_classes(stored.array, stored.keys, size, how)
        if how.background is not None:
            wanted = "--background belongs to scores of some classes, with keys, the input has none"
            raise Inapplicable("background", how.background, wanted)
        return from_scores(
            scores.as_scores(stored.array, size, kind=how.kind, layout=how.layout, classes=how.classes), size
        )
    except Inapplicable:
        raise
    except (TypeError, ValueError) as error:
        raise at(path, error) from error


def _from_some_classes(array: NDArray[Any], keys: NDArray[np.int64], size: tuple[int, int], how: Reading) -> CRFInput:
    """Maps of the classes that `keys` number."""
    layout = how.layout
    if how.background is not None:
        array = scores.checked_scores(array[None] if array.ndim == 2 else array)
        if layout == "hwk":
            array = np.moveaxis(array, -1, 0)
        layout = "khw"
        array = np.concatenate([np.full_like(array[:1], how.background), array])
    found = scores.as_scores(array, size, kind=how.kind, layout=layout)
    made = from_scores(found, size)
    classes = numbers_of_maps(keys, len(made.prob), how)
    return CRFInput(made.prob, classes[made.before], made.notes, classes)


def numbers_of_maps(keys: NDArray[np.int64], maps: int, how: Reading) -> NDArray[np.int64]:
    """The classes of maps, by the numbers beside them; see `Reading`.

    Raises:
        ValueError: if numbers and maps do not go together, or a number is no class.
    """
    classes = keys + 1 if how.keys == "foreground" else keys
    if maps == len(keys) + 1:
        if 0 in classes:
            wanted = (
                "such that 0 is free for the map that is one more; where they number the classes without the "
                "background, as IRN's do, say --keys foreground"
            )
            raise ArgumentError("keys", ", ".join(map(str, keys)), wanted, what="values")
        classes = np.concatenate([[0], classes])
    elif maps != len(keys):
        raise ArgumentError(
            "keys", len(keys), f"{maps}, as many as maps, or {maps - 1}, without class 0's", what="number"
        )
    elif how.keys == "foreground":
        wanted = f"{len(keys) + 1}, the first being class 0's; or say what that is with --background"
        raise ArgumentError("scores", maps, wanted, what="number of maps")
    most = how.classes or MOST_CLASSES
    if classes.max() >= most:
        raise ArgumentError("keys", int(classes.max()), f"below {most}, the number of classes", what="largest class")
    return classes


def from_scores(given: ScoreMap, size: tuple[int, int]) -> CRFInput:
    """Scores, not larger than the photo, as probabilities at the photo's size (H, W).

    Raises:
        ValueError: if a palette picture cannot hold their classes.
    """
    count, height, width = given.values.shape
    _check_count(count)
    notes = list(given.notes)
    if (height, width) != size:
        notes.append(f"the scores were resized from {width}×{height} to the photo's {size[1]}×{size[0]}, bilinearly")
    prob = given.probabilities(size)
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
    *,
    one_class: bool = False,
) -> CRFInput:
    """A label map as probabilities at the photo's size (H, W).

    Args:
        labels: (H, W), integers; or (h, w), at a network's stride.
        size: of the photo.
        classes: how many there are; default by the highest label.
        gt_prob: how sure labels are.
        unsure: labels that mean unsure, beside 255.
        values: what each value means; then labels are the classes that it names.
        one_class: whether every pixel may have the same label.

    Raises:
        ValueError: for another size, a label outside the classes, a map that labels fewer than two classes or nothing,
            or one whose values seem to be no class numbers although neither `classes` nor `values` is given.
    """
    notes = []
    height, width = labels.shape
    if labels.shape != size and scores.fits_enlarged((height, width), size):
        labels = _enlarged(labels, size)
        notes.append(f"the labels were enlarged from {width}×{height} to the photo's {size[1]}×{size[0]}")
    if labels.shape != size:
        wanted = f"{size[1]}×{size[0]} (width×height), as the photo"
        raise ArgumentError("labels", f"{width}×{height}", wanted, what="size")
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
    if values is None and not (one_class and not is_unsure.any()):
        _check_two_classes(labels, is_unsure)
    if classes is None:
        classes = int(labels[~is_unsure].max()) + 1
        notes.append(f"{classes} classes, by the highest label {classes - 1}; --classes sets another number")
    _check_count(classes)
    prob = probabilities_from_labels(labels, classes, gt_prob, unknown)
    return CRFInput(prob, np.where(is_unsure, UNSURE, labels), notes)


def _enlarged(labels: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.int64]:
    """Labels (h, w) at a larger size (H, W), each pixel's being the nearest."""
    lines, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp) for old, new in zip(labels.shape, size, strict=True)
    )
    return labels[lines[:, None], columns]


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
