"""Checks of arguments that several files of this package make."""

from __future__ import annotations

import operator
import os
from pathlib import Path

from deeplab_fast.errors import ArgumentError, ArgumentTypeError


def checked_count(name: str, value: object, least: int) -> int:
    """The integer `value`, of at least `least`; the error names the argument."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ArgumentTypeError(name, value, "an integer") from None
    if number < least:
        raise ArgumentError(name, number, f"at least {least}")
    return number


def checked_rank(rank: int, world: int) -> tuple[int, int]:
    """Rank and number of processes, 0 <= rank < world."""
    world = checked_count("world", world, 1)
    rank = checked_count("rank", rank, 0)
    if rank >= world:
        raise ArgumentError("rank", rank, f"below {world}, the number of processes")
    return rank, world


def checked_folder(name: str, path: str | os.PathLike[str]) -> Path:
    """The path of a folder that is there; the error names the argument."""
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"{name}: folder not found: {folder}")
    if not folder.is_dir():
        raise ArgumentError(name, f"the file {folder}", "a folder", what="path")
    return folder
