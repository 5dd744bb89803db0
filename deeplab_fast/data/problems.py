"""Samples that cannot be used: what they are called, and the check of labels that finds many of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_fast.pictures import IGNORED

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHOWN = 8  # an error lists at most so many values


@dataclass(frozen=True)
class Problem:
    """Stands for a sample that could not be read, where the run is to go on without it.

    It is plain text, so that a worker process can hand it to the main process, which reports it.

    Attributes:
        name: of the sample.
        message: what is wrong with which file.
    """

    name: str
    message: str

    def __str__(self) -> str:
        return self.message


def check_labels(labels: NDArray[Any], classes: Sequence[str], path: Path) -> None:
    """Raise ValueError if a label is neither a class number nor 255; it names the file, the values and the classes."""
    wrong = labels[((labels < 0) | (labels >= len(classes))) & (labels != IGNORED)]
    if not wrong.size:
        return
    values = np.unique(wrong)
    listed = ", ".join(str(value) for value in values[:SHOWN]) + (", …" if len(values) > SHOWN else "")
    names = classes[0] if len(classes) == 1 else f"{classes[0]} … {classes[-1]}"
    raise ValueError(
        f"labels of {path}: have {listed} ({wrong.size} pixels), should be 0 to {len(classes) - 1} ({names}) or "
        f"{IGNORED} (not labelled)"
    )
