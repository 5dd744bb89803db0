"""Samples that cannot be used: what they are called, and the check of labels that finds many of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_fast.pictures import IGNORED

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHOWN = 8  # an error lists at most so many values

# Kinds of problems.
MISSING, UNREADABLE, SIZES, VALUES = "missing", "unreadable", "sizes differ", "values out of range"
KINDS = (MISSING, UNREADABLE, SIZES, VALUES)


class SizesDiffer(ValueError):
    """Image and labels of a sample are not of one size."""


class LabelsOutside(ValueError):
    """A label file holds values that are no classes.

    Attributes:
        values: the pixels of each.
    """

    def __init__(self, message: str, values: Mapping[int, int] | None = None):
        super().__init__(message)
        self.values = dict(values or {})


@dataclass(frozen=True)
class Problem:
    """Stands for a sample that could not be read, where the run is to go on without it.

    It is plain text, so that a worker process can hand it to the main process, which reports it.

    Attributes:
        name: of the sample.
        message: what is wrong with which file.
        kind: one of `KINDS`.
    """

    name: str
    message: str
    kind: str = UNREADABLE

    @classmethod
    def of(cls, name: str, error: Exception) -> Problem:
        """The problem that reading a sample met."""
        kinds = {FileNotFoundError: MISSING, SizesDiffer: SIZES, LabelsOutside: VALUES}
        kind = next((kind for cause, kind in kinds.items() if isinstance(error, cause)), UNREADABLE)
        return cls(name, str(error) or type(error).__name__, kind)

    def __str__(self) -> str:
        return self.message


def check_labels(labels: NDArray[Any], classes: Sequence[str], path: Path) -> None:
    """Raise LabelsOutside if a label is neither a class number nor 255; it names file, values and classes."""
    wrong = ((labels < 0) | (labels >= len(classes))) & (labels != IGNORED)
    if wrong.any():
        raise outside(labels[wrong], path, f"{class_numbers(classes)} or {IGNORED} (not labelled)")


def class_numbers(classes: Sequence[str]) -> str:
    """The numbers of classes, for errors: 0 to 20 (background … tvmonitor)."""
    names = classes[0] if len(classes) == 1 else f"{classes[0]} … {classes[-1]}"
    return f"0 to {len(classes) - 1} ({names})"


def outside(wrong: NDArray[Any], path: Path, should_be: str) -> LabelsOutside:
    """The error that a label file holds these values, one a pixel."""
    values, pixels = np.unique(wrong, return_counts=True)
    listed = ", ".join(str(value) for value in values[:SHOWN]) + (", …" if len(values) > SHOWN else "")
    message = f"labels of {path}: have {listed} ({wrong.size} pixels), should be {should_be}"
    return LabelsOutside(message, dict(zip(values.tolist(), pixels.tolist(), strict=True)))
