"""The compiled core that needs no torch, `deeplab_fast._densecrf`, and its number of threads. Never imports torch."""

from __future__ import annotations

import functools
import operator
import os
import sys
import warnings
from types import ModuleType

from deeplab_fast import _limits
from deeplab_fast.errors import ArgumentError

_requested_threads: int | None = None


def compiled() -> ModuleType | None:
    """The compiled module; None, with one warning, where it is not built."""
    try:
        from deeplab_fast import _densecrf
    except ImportError as error:
        _warn_once(str(error))
        return None
    _densecrf.set_most_kept(_limits.most_kept())
    return _densecrf


@functools.cache
def _warn_once(why: str) -> None:
    warnings.warn(
        f"deeplab_fast's compiled dense CRF is not available ({why}); computing on numpy, much slower. "
        "Install a C++ compiler and reinstall deeplab-fast.",
        RuntimeWarning,
        stacklevel=5,
    )


def set_num_threads(count: int | None) -> None:
    """Threads for all dense CRFs of this process; None returns to the other rules of `get_num_threads`.

    More than there are processors for this process are not used. Raises TypeError for what is no integer, ValueError
    below 1.
    """
    global _requested_threads
    if count is not None:
        count = operator.index(count)
        if count < 1:
            raise ArgumentError("count", count, "at least 1")
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


def apply_num_threads(core: ModuleType) -> None:
    """Before a computation of `core`: the compiled module, or what stands in for it."""
    core.set_num_threads(get_num_threads())
