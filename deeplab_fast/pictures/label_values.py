"""Which class each value of a label picture means: masks of 0 and 255, road at 7, and so on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_fast.errors import ArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The label value that PASCAL VOC, and most after it, use for "not labelled".
IGNORED = 255
IGNORE = "ignore"  # what stands for it in --values and configurations
MOST_COUNTED = 1 << 16  # values of 16 bits are found by counting, others by sorting


def present_values(labels: NDArray[Any]) -> list[int]:
    """The different values of a label map of any integer dtype, in order."""
    if labels.size and labels.min() >= 0 and labels.max() < MOST_COUNTED:
        return np.flatnonzero(np.bincount(labels.ravel().astype(np.intp, copy=False))).tolist()
    return [int(value) for value in np.unique(labels)]


@dataclass(frozen=True)
class LabelValues:
    """A class, or None where the pixel does not count, for every value that label pictures hold.

    Attributes:
        classes: value -> class, 0 or more, or None.
    """

    classes: Mapping[int, int | None]

    @classmethod
    def parse(cls, text: str) -> LabelValues:
        """From "0:0,255:1"; "128:ignore" for pixels that do not count.

        Raises:
            ValueError: if the text is not like this, or names a value twice.
        """
        classes: dict[int, int | None] = {}
        for part in text.split(","):
            value, colon, meaning = (word.strip() for word in part.partition(":"))
            if not (colon and value.isdecimal() and (meaning.isdecimal() or meaning == IGNORE)):
                raise ArgumentError("values", text, f"like 0:0,255:1 or 0:0,255:1,128:{IGNORE}")
            if int(value) in classes:
                raise ArgumentError("values", text, f"such that it names {value} once")
            classes[int(value)] = None if meaning == IGNORE else int(meaning)
        return cls(classes)

    def apply(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """The classes of a label map (H, W) of any integer dtype: int64 (H, W), IGNORED where it does not count.

        Raises:
            ValueError: if the map holds a value that is not named; the message names each.
        """
        unnamed = self.unnamed(labels)
        if unnamed:
            names = ", ".join(map(str, unnamed[:5])) + (", …" if len(unnamed) > 5 else "")
            raise ArgumentError("labels", names, f"named in values, which is {self}", what="values")
        present = present_values(labels)
        meanings = [IGNORED if self.classes[value] is None else self.classes[value] for value in present]
        return np.array(meanings, np.int64)[np.searchsorted(np.array(present, labels.dtype), labels)]

    def unnamed(self, labels: NDArray[Any]) -> list[int]:
        """The values of a label map that have no meaning, in order."""
        return [value for value in present_values(labels) if value not in self.classes]

    def __str__(self) -> str:
        return ",".join(f"{value}:{IGNORE if k is None else k}" for value, k in self.classes.items())
