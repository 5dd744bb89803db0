"""What scores mean: which of their axes is which, and whether they are logits or probabilities.

Where the numbers tell, they decide; where they could mean several things, the error names what the caller has to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_fast.errors import ArgumentError, ArgumentTypeError, one_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

KINDS = ("auto", "logits", "probabilities", "sigmoid")
LAYOUTS = ("auto", "khw", "hwk")
STRIDES = (1, 2, 4, 8, 16, 32)  # of networks' outputs
# How far outside 0..1 values may lie that are said to be probabilities.
SLACK = 1e-2


@dataclass(frozen=True, eq=False)
class ScoreMap:
    """Scores of which it is known what they are.

    Attributes:
        values: float32 (K, h, w), finite, at least two classes.
        kind: "logits", or "probabilities", which sum to 1 over K but for rounding.
        notes: what was decided, for people.
    """

    values: NDArray[np.float32]
    kind: str
    notes: tuple[str, ...] = ()

    def probabilities(self, size: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """Probabilities of the classes, float32 (K, H, W), at another size if one is given: (H, W).

        The values are resized, bilinearly, before a softmax is taken of logits.
        """
        values = self.values if size is None else resize_scores(self.values, size)
        if self.kind == "probabilities":
            return values.copy() if values is self.values else values
        values = values - values.max(axis=0)
        np.exp(values, out=values)
        values /= values.sum(axis=0)
        return values


def as_scores(
    array: ArrayLike,
    size: tuple[int, int],
    *,
    kind: str = "auto",
    layout: str = "auto",
    classes: int | None = None,
) -> ScoreMap:
    """Scores of an image, with their meaning: which axis is which, and what the numbers are.

    Args:
        array: floating, (K, h, w), (h, w, K), either with a batch axis of length 1, or (h, w) for the probabilities of
            class 1 of two; h and w may be smaller than the image.
        size: of the image, (H, W).
        kind: see `probabilities_from_scores`.
        layout: "khw", "hwk", or "auto": (K, h, w), unless `size`, `classes` and the values leave that open.
        classes: K, where it is known.

    Raises:
        TypeError: if the scores are no floating-point numbers.
        ValueError: if they are not finite, cannot belong to such an image, or could mean several things; then the
            message names the option that decides.
    """
    if layout not in LAYOUTS:
        raise ArgumentError("layout", layout, one_of(LAYOUTS))
    scores = _floating(array)
    if scores.ndim == 2 and scores.size:
        scores = _single_map(scores, kind)
        layout = "khw"
    scores = checked_scores(scores)
    if layout == "auto":
        _check_classes_first(scores, size, classes)
    if layout == "hwk":
        scores = np.moveaxis(scores, -1, 0)
    _check_size(scores.shape, size)
    made = _interpreted(scores, kind)
    if classes is not None and len(made.values) != classes:
        raise ArgumentError("scores", len(made.values), str(classes), what="number of classes")
    return made


def checked_scores(scores: ArrayLike) -> NDArray[Any]:
    """Scores as a float array of three axes, without the batch's, or the error that says why they are none."""
    array = _floating(scores)
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3 or array.size == 0:
        raise ArgumentError("scores", array.shape, "(K, H, W), not empty", what="shape")
    finite = np.isfinite(array)
    if not finite.all():
        bad = int(array.size - finite.sum())
        raise ArgumentError("scores", f"NaN or Inf in {bad} of {array.size} places", "finite", what="values")
    return array


def _floating(scores: ArrayLike) -> NDArray[Any]:
    scores = np.asarray(scores)
    if scores.dtype.kind != "f":
        advice = ""
        if scores.dtype.kind in "iub":
            advice = ": divide probabilities that were stored as whole numbers by their largest, 255 or so"
        raise ArgumentTypeError("scores", scores.dtype, f"floating{advice}", what="dtype")
    return scores


def _single_map(scores: NDArray[Any], kind: str) -> NDArray[Any]:
    """A map (h, w) as (1, h, w), if it can be scores."""
    if kind == "auto" and (scores == np.round(scores)).all():
        wanted = (
            "(K, H, W), for numbers that are all whole: --kind labels takes them as labels, --kind sigmoid as "
            "probabilities of class 1"
        )
        raise ArgumentError("scores", scores.shape, wanted, what="shape")
    return scores[None]


# ------------------------------------------------------------------------------------------- which axis is which


def _check_classes_first(scores: NDArray[Any], size: tuple[int, int], classes: int | None) -> None:
    """Raise unless scores of three axes are (K, h, w) beyond doubt; the error says what else they may be."""
    first, middle, last = scores.shape
    sums = {axis: _sum_to_one(scores, axis) for axis in (0, 2)}
    khw, hwk = _fit((middle, last), size), _fit((first, middle), size)
    if classes is not None and (first == classes) != (last == classes):
        decided = first == classes
    elif sums[0] != sums[2]:
        decided = sums[0]
    elif khw == 0 and _fit((last, middle), size) > hwk:
        raise _misfit(scores.shape, size, "height and width seem to be swapped")
    elif khw != hwk:
        decided = khw > hwk
    else:
        both = "both readings fit" if khw else "in neither reading have they the photo's proportions"
        wanted = f"said to be K×H×W or H×W×K, {both} its {size[0]}×{size[1]} (H×W): --layout khw or --layout hwk"
        raise ArgumentError("scores", f"{first}×{middle}×{last}", wanted, what="shape")
    if not decided:
        raise _misfit(scores.shape, size, "the classes seem to be the last axis, which --layout hwk says")


def _fit(shape: tuple[int, int], size: tuple[int, int]) -> int:
    """How well a map (h, w) fits an image (H, W): 2 at a network's stride, 1 in the same proportions, 0 not at all."""
    height, width = size
    for stride in STRIDES:
        down, up = (height // stride, width // stride), (-(-height // stride), -(-width // stride))
        if shape in (down, up, (down[0] + 1, down[1] + 1)):
            return 2
    # A network's scores have the photo's proportions but for rounding.
    return int(abs(shape[0] * width - shape[1] * height) <= 2 * max(size))


def fits_enlarged(shape: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a map (h, w) is one of an image (H, W) at a network's stride."""
    return _fit(shape, size) == 2


def _check_size(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    _, height, width = shape
    # With height and width exchanged, they would be resized without complaint, and wrongly.
    if not _fit((height, width), size) and _fit((width, height), size):
        raise _misfit(shape, size, "height and width seem to be swapped")
    if height > size[0] or width > size[1]:
        raise _misfit(shape, size, "they must not be larger")


def _misfit(shape: tuple[int, ...], size: tuple[int, int], why: str) -> ArgumentError:
    """The error that scores of a shape do not belong to an image of a size."""
    wanted = f"one that fits the photo's {size[0]}×{size[1]} (H×W): {why}"
    return ArgumentError("scores", f"{'×'.join(map(str, shape))} (K×H×W)", wanted, what="shape")


# ---------------------------------------------------------------------------------------- what the numbers are


def score_kind(scores: NDArray[Any]) -> str:
    """What scores (K, H, W) are, where their values tell: "logits", "probabilities" or "sigmoid".

    Probabilities lie in 0..1 and sum to 1 over K; the sum may be off by what the dtype's rounding explains: 1e-3, for
    float16 1e-2. Sigmoid is one channel in 0..1, the probability of class 1 of two. Logits reach below 0 or above 1.

    Raises:
        ValueError: if the values could be several things; the message says which, and what the caller has to name.
    """
    low, high = float(scores.min()), float(scores.max())
    between = f"{low:.4g} to {high:.4g}"
    inside = low >= -_tolerance(scores) and high <= 1 + _tolerance(scores)
    if len(scores) == 1:
        if inside:
            return "sigmoid"
        wanted = "probabilities, there being one channel: --kind logits takes them as class 1's logit less class 0's"
        raise ArgumentError("scores", between, wanted, what="values")
    if inside:
        if _sum_to_one(scores, 0):
            return "probabilities"
        sums = scores.sum(axis=0, dtype=np.float32)
        wanted = (
            "1, for values in 0..1: say --kind sigmoid if each class has a probability of its own, --kind "
            "probabilities if they were rounded, or --kind logits"
        )
        raise ArgumentError("scores", f"{sums.min():.4g} to {sums.max():.4g}", wanted, what="sum over the classes")
    if low < 0:
        return "logits"
    if (scores == np.round(scores)).all():
        wanted = "fractions, unless --kind logits says that they are scores"
        raise ArgumentError("scores", f"whole numbers of {between}, as a picture's", wanted, what="values")
    sums = scores.sum(axis=0, dtype=np.float64)
    if np.ptp(sums) <= _tolerance(scores) * sums.max():
        wanted = "1, if they are probabilities times that number: divide by it, or say --kind logits"
        raise ArgumentError("scores", f"{sums.mean():.4g} at every pixel", wanted, what="sum over the classes")
    if _sum_to_one(np.exp(-scores.astype(np.float32)), 0):
        wanted = "probabilities or logits; --kind logits takes them as these"
        raise ArgumentError(
            "scores", "as energies, -log(p), whose lowest is the likeliest class,", wanted, what="values"
        )
    return "logits"


def _tolerance(scores: NDArray[Any]) -> float:
    return 1e-2 if scores.dtype.itemsize < 4 else 1e-3


def _sum_to_one(scores: NDArray[Any], axis: int) -> bool:
    """Whether values lie in 0..1 and sum to 1 along an axis."""
    tolerance = _tolerance(scores)
    if scores.min() < -tolerance or scores.max() > 1 + tolerance:
        return False
    return bool(np.abs(scores.sum(axis=axis, dtype=np.float32) - 1).max() <= tolerance)


def _interpreted(scores: NDArray[Any], kind: str) -> ScoreMap:
    """Scores (K, h, w) as what they are; see `probabilities_from_scores`."""
    if kind not in KINDS:
        raise ArgumentError("kind", kind, one_of(KINDS))
    notes: list[str] = []
    if kind == "auto":
        kind = score_kind(scores)
        explained = ": the probability of class 1 of two" if kind == "sigmoid" else ""
        notes.append(f"the scores were taken as {kind}{explained}")
    values = scores.astype(np.float32)
    if kind == "logits":
        return ScoreMap(
            np.concatenate([np.zeros_like(values), values]) if len(values) == 1 else values, kind, tuple(notes)
        )
    low, high = float(values.min()), float(values.max())
    if low < -SLACK or high > 1 + SLACK:
        name = "probabilities" if kind == "probabilities" else "sigmoid's"
        raise ArgumentError("scores", f"{low:.4g} to {high:.4g}", f"in 0..1, being {name}", what="values")
    values = np.clip(values, 0, 1)
    if len(values) == 1:
        if kind == "probabilities":
            wanted = "at least 2; --kind sigmoid takes them as the probability of class 1 of two"
            raise ArgumentError("scores", 1, wanted, what="number of classes")
        values = np.concatenate([1 - values, values])
    elif not _sum_to_one(scores, 0):
        sums = values.sum(axis=0)
        notes.append(f"the scores sum to {sums.min():.4g} to {sums.max():.4g} over the classes: divided by their sums")
        # Where every class has 0, nothing is known.
        values = np.where(sums > 0, values / np.where(sums > 0, sums, 1), np.float32(1 / len(values)))
    return ScoreMap(values, "probabilities", tuple(notes))


def probabilities_from_scores(scores: ArrayLike, kind: str = "auto") -> NDArray[np.float32]:
    """Class probabilities from a network's scores.

    Args:
        scores: (K, H, W), any float dtype.
        kind: "logits": a softmax over K is taken; a single channel is the logit of class 1 of two, that of class 0
            being 0. "probabilities": as they are, divided by their sums over K if these are not 1. "sigmoid": a single
            channel is the probability of class 1 of two; several are divided by their sums. "auto": see
            `score_kind`.

    Returns:
        float32 (K, H, W), K at least 2.

    Raises:
        TypeError: if the scores are no floating-point numbers.
        ValueError: for another number of axes, an empty array, NaN or Inf, an unknown `kind`, values that it cannot
            have, or, with "auto", values that could be several things.
    """
    return _interpreted(checked_scores(scores), kind).probabilities()


def resize_scores(scores: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float32]:
    """Bilinear resize of scores (K, h, w) to (K, H, W), pixel centres aligned (``align_corners=False``).

    This is what ``torch.nn.functional.interpolate`` does; the border is repeated. Float32 out.
    """
    resized = np.asarray(scores, np.float32)
    for axis, length in ((1, size[0]), (2, size[1])):
        old = resized.shape[axis]
        if old == length:
            continue
        position = np.clip((np.arange(length) + 0.5) * (old / length) - 0.5, 0, old - 1)
        low = np.floor(position).astype(np.intp)
        high = np.minimum(low + 1, old - 1)
        fraction = (position - low).astype(np.float32).reshape((-1, 1) if axis == 1 else (-1,))
        lower, upper = np.take(resized, low, axis), np.take(resized, high, axis)
        resized = lower + (upper - lower) * fraction
    return resized
