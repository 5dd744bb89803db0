"""A look at the data before the first step of a training: what would end it after an hour is found in seconds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from deeplab_fast.data import SegmentationDataset
from deeplab_fast.data.examination import ClassesSeen, Progress, classes_seen, header_problems

Bar = Callable[[str, int], contextlib.AbstractContextManager[Progress]]

# Labels that are read at most: of the training set, until every class was seen, and of the validation set.
MOST_TRAINING, MOST_VALIDATION = 10_000, 2_000
ALLOW = "--allow-missing-classes (data.allow_missing_classes) goes on without"


def look_at_training(dataset: SegmentationDataset, workers: int, allow_missing: bool, bar: Bar) -> list[str]:
    """Read labels, in random order, until each class was seen; at most `MOST_TRAINING`.

    Returns:
        Notes.

    Raises:
        FileNotFoundError, ValueError: for a label that cannot be read, if the dataset has on_error="raise".
        ValueError: if no label of the set holds a class, or those that were read hold nothing but class 0; unless
            `allow_missing`, then it is a note.
    """
    wanted = [k for k, name in enumerate(dataset.classes) if name not in dataset.never_labelled]
    with bar("looking for each class", min(MOST_TRAINING, len(dataset))) as progress:
        looked = classes_seen(dataset, wanted, MOST_TRAINING, workers=workers, progress=progress)
    notes = _unusable("data.train", looked.problems, dataset.on_error)
    if len(looked.problems) == looked.read:
        return notes  # nothing is known of the classes, and the first step will say why
    if looked.seen <= {0}:
        return [*notes, _refused(_nothing_but_class_0("data.train", dataset, looked), allow_missing)]
    missing = [dataset.classes[k] for k in wanted if k not in looked.seen]
    if not missing:
        return notes
    names = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
    if looked.read < len(dataset):
        return [*notes, f"data.train: {names}: in none of {looked.read} labels drawn from {len(dataset)}"]
    text = f"data.train: no label holds {names}, which a network can therefore not learn. {ALLOW}"
    return [*notes, _refused(text, allow_missing)]


def look_at_validation(dataset: SegmentationDataset, workers: int, allow_missing: bool, bar: Bar) -> list[str]:
    """Look at the headers of all files, and read labels, at most `MOST_VALIDATION`.

    Returns:
        Notes.

    Raises:
        FileNotFoundError, ValueError: for what cannot be evaluated, if the dataset has on_error="raise".
        ValueError: if the labels hold nothing but class 0, unless `allow_missing`; then it is a note.
    """
    with bar("looking at data.val", len(dataset)) as progress:
        problems = header_problems(dataset, workers=workers, progress=progress)
    notes = _unusable("data.val", problems, dataset.on_error)
    if problems:
        return notes
    with bar("reading labels of data.val", min(MOST_VALIDATION, len(dataset))) as progress:
        looked = classes_seen(dataset, None, MOST_VALIDATION, workers=workers, progress=progress)
    notes += _unusable("data.val", looked.problems, dataset.on_error)
    if looked.seen == {0}:
        notes.append(_refused(_nothing_but_class_0("data.val", dataset, looked), allow_missing))
    return notes


def _unusable(split: str, problems: Sequence[Exception], on_error: str) -> list[str]:
    """Raise the first, saying how many there are, or note them."""
    if not problems:
        return []
    first, more = problems[0], len(problems) - 1
    others = f"; and {more} more: deeplab-fast check lists them" if more else ""
    if on_error == "raise":
        raise type(first)(f"{first}{others}") if more else first
    return [f"{split}: will be left out: {first}{others}"]


def _nothing_but_class_0(split: str, dataset: SegmentationDataset, looked: ClassesSeen) -> str:
    besides = " and ignored pixels" if looked.ignored else ""
    text = (
        f"{split}: its labels hold nothing but {dataset.classes[0]}, class 0,{besides} ({looked.read} were read), so "
        "that there is nothing to learn"
    )
    if looked.ignored and dataset.num_classes > 1:
        text += "; in masks of 0 and 255 the object is 255: data.label_values: {0: 0, 255: 1}"
    return f"{text}. {ALLOW}"


def _refused(text: str, allowed: bool) -> str:
    if not allowed:
        raise ValueError(text)
    return text.removesuffix(f". {ALLOW}")
