"""One image of a data set: what is read for it, computed and written, in whichever process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deeplab_fast import _limits, files, pictures
from deeplab_fast.crf import inputs, refining
from deeplab_fast.crf.dataset.pairs import Pair
from deeplab_fast.crf.inputs import UNSURE, CRFInput, Reading
from deeplab_fast.crf.parameters import CRFParameters
from deeplab_fast.errors import ArgumentError, at

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deeplab_fast.scores import StoredScores

LABELS, PROBABILITIES, OVERLAY = ".png", ".npz", "-overlay.jpg"  # endings of what is written for an image
LEVELS = 256  # of label pictures
# Bytes, measured: of a process without an image; and of an image while it is refined, for a pixel, and for a pixel and
# class. These are those of noise and a small deviation in colour, where nearly every pixel has vertices of its own; a
# photo takes about half of that.
BASE_BYTES, PIXEL_BYTES, SCORE_BYTES = 60e6, 560, 80

PROBLEMS = (ValueError, TypeError, OSError, MemoryError, ImportError, FloatingPointError, OverflowError, IndexError)


@dataclass(frozen=True)
class Work:
    """What is done with each image of a data set.

    Attributes:
        out: folder of the results.
        params: of the CRF.
        how: scores are read.
        probabilities: whether Q is written, too.
        overlay: whether photo, input and result are written side by side.
        examine: whether images that are there already are read again, so that the numbers are those of all.
        palette: uint8 (256, 3), of the label pictures.
        threads: of each process.
    """

    out: Path
    params: CRFParameters
    how: Reading
    probabilities: bool = False
    overlay: bool = False
    examine: bool = False
    palette: NDArray[np.uint8] | None = None
    threads: int = 1

    def targets(self, name: str) -> list[Path]:
        """The files that are written for an image."""
        endings = [LABELS, *[PROBABILITIES] * self.probabilities, *[OVERLAY] * self.overlay]
        return [self.out / f"{name}{ending}" for ending in endings]


@dataclass(frozen=True)
class Outcome:
    """What became of an image.

    Attributes:
        name: of the image.
        error: why it failed; None if it did not.
        fatal: whether no other image will fare better, as on a full disk.
        changed: pixels whose label changed, and pixels that had a label before.
        before: pixels by truth and label before the CRF, as `pixel_counts` gives them; None without truth.
        after: likewise after it.
        notes: what was decided about the scores, for people.
        peak: bytes of memory that the process had at most.
    """

    name: str
    error: str | None = None
    fatal: bool = False
    changed: tuple[int, int] = (0, 0)
    before: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    after: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    notes: tuple[str, ...] = ()
    peak: int = 0


@dataclass(frozen=True)
class Loaded:
    """An image with what belongs to it, read."""

    pair: Pair
    photo: NDArray[np.uint8]
    stored: StoredScores
    truth: NDArray[np.int64] | None

    def bytes_needed(self, how: Reading) -> int:
        """About the most that refining it takes, with one like it read ahead, beside what its process needs anyway."""
        pixels = self.photo.shape[0] * self.photo.shape[1]
        array = self.stored.array
        if self.stored.keys is not None:
            classes = len(self.stored.keys) + 1
        elif inputs.are_labels(self.stored, how):
            known = array[array != pictures.IGNORED]
            classes = how.classes or int(known.max(initial=0)) + 1
        else:
            classes = array.shape[-1 if how.layout == "hwk" else -3] if array.ndim > 2 else 2
        return int(pixels * (PIXEL_BYTES + SCORE_BYTES * classes)) + self.photo.nbytes + array.nbytes


def load(pair: Pair, how: Reading) -> Loaded:
    """Read an image, its scores and its true labels.

    Raises:
        FileNotFoundError, ModuleNotFoundError, ValueError: as reading them does.
    """
    if pair.problem is not None or pair.image is None or pair.scores is None:
        raise FileNotFoundError(pair.problem)
    photo = pictures.read_image(pair.image)
    stored = inputs.read_file(pair.scores, how)
    truth = None if pair.truth is None else _true_labels(pair.truth, photo.shape[:2], how)
    return Loaded(pair, photo, stored, truth)


def _true_labels(path: Path, size: tuple[int, int], how: Reading) -> NDArray[np.int64]:
    """The classes of an image of size (H, W), 255 where they do not count."""
    labels = pictures.read_labels(path, lossy=how.values is not None)
    try:
        if labels.shape != size:
            wanted = f"{size[1]}×{size[0]}, as the image"
            raise ArgumentError("labels", f"{labels.shape[1]}×{labels.shape[0]}", wanted, what="size")
        if how.values is not None:
            labels = how.values.apply(labels)
        classes = how.classes or LEVELS
        wrong = np.unique(labels[(labels != pictures.IGNORED) & ((labels < 0) | (labels >= classes))])
        if wrong.size:
            shown = ", ".join(map(str, wrong[:5])) + (", …" if wrong.size > 5 else "")
            wanted = f"in 0..{classes - 1}, or 255 where they do not count; --values 11:ignore,… says what others mean"
            raise ArgumentError("labels", shown, wanted, what="values")
    except ValueError as error:
        raise at(path, error) from error
    return labels


def finish(loaded: Loaded, work: Work, *, is_there: bool = False) -> Outcome:
    """Refine what was read, and write the results; or only compare them, if they are there.

    Raises:
        TypeError, ValueError, MemoryError: for what cannot be refined.
        WritingError: if the results cannot be written.
    """
    given = as_input(loaded, work.how)
    path = work.targets(loaded.pair.name)[0]
    if is_there:
        labels = pictures.read_labels(path)
        if labels.shape != given.before.shape:
            raise ValueError(f"{path}: is of another size than the image, delete it")
    else:
        Q = refining.refine(loaded.photo, given.prob, work.params)
        labels = given.labels(Q)
        _write(loaded, given, Q, labels, work)
    had = given.before != UNSURE
    return Outcome(
        loaded.pair.name,
        changed=(int((given.before != labels)[had].sum()), int(had.sum())),
        before=None if loaded.truth is None else pixel_counts(loaded.truth, given.before % LEVELS),
        after=None if loaded.truth is None else pixel_counts(loaded.truth, labels),
        notes=tuple(given.notes),
    )


def as_input(loaded: Loaded, how: Reading) -> CRFInput:
    """What the CRF is given of an image."""
    assert loaded.pair.scores is not None
    if loaded.truth is not None and not inputs.are_labels(loaded.stored, how):
        how = replace(how, values=None)  # they are of the true labels
    return inputs.as_input(loaded.stored, loaded.photo.shape[:2], how, loaded.pair.scores, one_class=True)


class WritingError(OSError):
    """A result could not be written."""


def _write(loaded: Loaded, given: CRFInput, Q: NDArray[np.float32], labels: NDArray[np.int64], work: Work) -> None:
    """Write what is wanted of an image: all of it, or nothing."""
    path = work.targets(loaded.pair.name)[0]
    writers = {path: pictures.labels_writer(labels, path, work.palette)}
    if work.probabilities:
        writers[path.with_name(f"{path.stem}{PROBABILITIES}")] = given.probabilities_writer(Q)
    if work.overlay:
        panel = path.with_name(f"{path.stem}{OVERLAY}")
        writers[panel] = pictures.picture_writer(given.panel(loaded.photo, labels, work.palette), panel)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.atomic_write_all(writers)
    except OSError as error:
        raise WritingError(*error.args) from error


def pixel_counts(truth: NDArray[np.int64], labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many pixels have each truth and label: places in a matrix (256, 256) by [truth, label], and counts there.

    Pixels whose truth is 255 do not count.
    """
    counted = truth != pictures.IGNORED
    counts = np.bincount(truth[counted] * LEVELS + labels[counted], minlength=1)
    places = np.flatnonzero(counts)
    return places, counts[places]


def done(outcome: Outcome) -> Outcome:
    """An outcome with the memory of this process in it."""
    return replace(outcome, peak=_limits.peak_memory())


def failure(name: str, error: Exception) -> Outcome:
    """The outcome of an image for which an error was raised."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError):
        text = f"not enough memory: {text}"
    elif not isinstance(error, PROBLEMS):
        text = f"{type(error).__name__}: {text}"
    return Outcome(name, error=text, fatal=isinstance(error, WritingError), peak=_limits.peak_memory())
