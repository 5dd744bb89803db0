"""Which cases a run takes: by name, the quick ones or all, and only those that fit into this machine's memory."""

from __future__ import annotations

import psutil

from .cases import Case, all_cases


def select(words: list[str], full: bool) -> tuple[list[Case], list[Case]]:
    """Cases whose name has all `words` (quick ones only, unless `full`), and those of them left out as too large."""
    cases = [case for case in all_cases() if all(word in case.name for word in words) and (full or case.quick)]
    # The rest is for the input, and for results that are still held.
    limit = 0.8 * psutil.virtual_memory().total
    return [c for c in cases if c.memory <= limit], [c for c in cases if c.memory > limit]


def describe_left_out(case: Case) -> str:
    return f"left out: {case.name} needs about {case.memory / 1e9:.0f} GB of memory"
