"""Scores to files that take little room: float16, compressed, whole or not at all."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from deeplab_fast.files import atomic_write

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The highest level takes twice the time and saves a tenth.
LEVEL = 1
WHEN = (1980, 1, 1, 0, 0, 0)  # for all files, so that the same arrays make the same bytes


def npz_writer(arrays: Mapping[str, NDArray[Any]]) -> Callable[[BinaryIO], None]:
    """A writer, for `deeplab_fast.files.atomic_write_all`, of a compressed `.npz` of arrays by name."""

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                content = io.BytesIO()
                np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
                entry = zipfile.ZipInfo(f"{name}.npy", WHEN)
                archive.writestr(entry, content.getbuffer(), zipfile.ZIP_DEFLATED, LEVEL)

    return write


def half_logits(logits: NDArray[Any]) -> NDArray[np.float16]:
    """Logits (K, h, w) as float16, less each pixel's largest: large numbers would lose digits, or not fit.

    Neither labels nor probabilities change by the subtraction, not even after bilinear upsampling, for it is the same
    in all classes.
    """
    lowered = logits - logits.max(axis=0)
    return np.maximum(lowered, np.finfo(np.float16).min).astype(np.float16)


def save_scores(path: str | os.PathLike[str], logits: NDArray[Any]) -> None:
    """Write a network's logits (K, h, w) as `.npz`, an array `logits` of float16, whole or not at all.

    They are less each pixel's largest, as `half_logits` says; `deeplab-fast crf` and `crf-eval` read them.
    """
    atomic_write(path, scores_writer(logits))


def scores_writer(logits: NDArray[Any]) -> Callable[[BinaryIO], None]:
    """A writer of what `save_scores` writes."""
    return npz_writer({"logits": half_logits(logits)})
