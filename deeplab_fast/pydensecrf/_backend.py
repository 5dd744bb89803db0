"""Which numerical core computes, and what fits into memory. Never imports torch."""

from __future__ import annotations

import functools
import sys
from types import ModuleType

from deeplab_fast import _core, _limits

MAX_POINTS = 2**31 - 1  # point and vertex numbers are 32-bit


@functools.cache
def core() -> ModuleType:
    """The compiled module `deeplab_fast._densecrf`, or, with one warning, its stand-in on numpy."""
    compiled = _core.compiled()
    if compiled is not None:
        return compiled
    from . import _fallback

    return _fallback


def apply_num_threads() -> None:
    _core.apply_num_threads(core())


def release_memory() -> None:
    """Give the memory kept for the next call back to the system: the drop-in's and, where they are in use, the ops'.

    Each keeps at most a gigabyte, or a sixteenth of what this process may have (the machine's memory, or the limit of
    its control groups).
    """
    core().release_memory()
    native = sys.modules.get("deeplab_fast._native")
    if native is not None:
        native.release_memory()


def check_size(points: int, labels: int, dimensions: list[int]) -> None:
    """Raise ValueError when `points` × `labels` with lattices of these `dimensions` cannot be held here.

    The estimate is a lower bound, so that nothing possible is refused: unary and Q in float32, and for each
    lattice a vertex number and a weight for each of D+1 corners a point.
    """
    needed = 8 * points * labels + sum(8 * points * (d + 1) for d in dimensions)
    if points > MAX_POINTS:
        reason = f"at most {MAX_POINTS:,} points are possible"
    elif needed > _limits.memory():
        have = _limits.memory()
        reason = f"that needs at least {needed / 1e9:,.0f} GB of memory, and {have / 1e9:,.0f} GB are here"
    else:
        return
    raise ValueError(f"a dense CRF of {points:,} points and {labels:,} labels is too large: {reason}")
