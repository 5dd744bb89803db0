"""Which numerical core computes, on how many threads, and what fits into memory. Never imports torch."""

from __future__ import annotations

import functools
import operator
import os
import sys
import warnings
from types import ModuleType

from deeplab_fast import _limits

MAX_POINTS = 2**31 - 1  # point and vertex numbers are 32-bit
_requested_threads: int | None = None


@functools.cache
def core() -> ModuleType:
    """The compiled module `deeplab_fast._densecrf`, or, with one warning, its stand-in on numpy."""
    try:
        from deeplab_fast import _densecrf
    except ImportError as error:
        warnings.warn(
            f"deeplab_fast's compiled dense CRF is not available ({error}); computing on numpy, much slower. "
            "Install a C++ compiler and reinstall deeplab-fast.",
            RuntimeWarning,
            stacklevel=3,
        )
        from . import _fallback

        return _fallback
    _densecrf.set_most_kept(_limits.most_kept())
    return _densecrf


def set_num_threads(count: int | None) -> None:
    """Threads for all dense CRFs of this process; None returns to the other rules of `get_num_threads`.

    More than there are processors for this process are not used. Raises TypeError for what is no integer, ValueError
    below 1.
    """
    global _requested_threads
    if count is not None:
        count = operator.index(count)
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
    _requested_threads = count


def get_num_threads() -> int:
    """Threads that the next computation uses, at most; where the system refuses to start one, it does with fewer.

    The first that applies: `set_num_threads`; torch's own number, where torch has been imported; the environment
    variable OMP_NUM_THREADS. Never more than the processors this process may use, by its affinity and by the quota of
    its control groups (a container's limit), which is also the number where nothing applies.
    """
    return min(_wanted_threads(), _limits.processors())


def _wanted_threads() -> int:
    if _requested_threads is not None:
        return _requested_threads
    # Another Python thread may be half way through importing torch, hence the second getattr.
    torch_threads = getattr(sys.modules.get("torch"), "get_num_threads", None)
    if torch_threads is not None:
        return torch_threads()
    # OpenMP allows a list, one number a nesting level; only the first concerns us.
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(wanted) if wanted.isdecimal() and int(wanted) > 0 else sys.maxsize


def apply_num_threads() -> None:
    core().set_num_threads(get_num_threads())


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
