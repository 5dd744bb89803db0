"""All cases, and which of them a run takes: by name, the quick ones or all, and only what this machine can run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import psutil

from bench.case import Case, Target
from bench.cases import (
    aspp_sum,
    atrous_conv2d,
    crf_as_rnn,
    dense_crf,
    networks,
    pairwise_energy,
    permutohedral_filter,
    refinement,
    system,
    upsample,
    volume,
)

# An op adds its module here. Whole networks and the system come last.
MODULES = (
    *(dense_crf, volume, refinement, pairwise_energy, crf_as_rnn, permutohedral_filter),
    *(aspp_sum, atrous_conv2d, upsample, networks, system),
)


def all_cases(target: Target) -> Iterator[Case]:
    for module in MODULES:
        yield from module.cases(target)


def named(target: Target, words: Sequence[str], ops: Sequence[str], full: bool) -> list[Case]:
    """Cases whose name has all `words`, of these `ops` (none: of all); quick ones only, unless `full`."""
    return [
        case
        for case in all_cases(target)
        if all(word in case.name for word in words) and (not ops or case.op in ops) and (full or case.quick)
    ]


def runnable(cases: Sequence[Case]) -> tuple[list[Case], list[str]]:
    """Those that this machine can run, without the backends that are not installed; and in words what is left out."""
    # The rest is for the input, and for results that are still held.
    limit = 0.8 * psutil.virtual_memory().total
    found, left_out = [], []
    for case in cases:
        if case.memory > limit:
            left_out.append(f"{case.name} needs about {case.memory / 1e9:.0f} GB of memory")
            continue
        missing = {name: modules for name, backend in case.backends.items() if (modules := backend.missing())}
        left_out += [f"{case.name}, {name}: {', '.join(m)} is not installed" for name, m in missing.items()]
        found.append(case.without(missing))
    return [case for case in found if case.backends], left_out
