"""How many processors and how much memory this process may have, and how much memory it had.

The machine, the process's affinity and its control groups limit both. Control groups (of both versions) are what
containers and batch systems limit. Each level of their tree limits all below it, so the least of a process's own level
and those above it counts. Never imports torch.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")  # where /proc and the control groups are; tests put a made-up tree here


def processors() -> int:
    """Processors this process may use, at least 1: those of its affinity, no more than its quota of time is worth."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, math.ceil(min(processor_quota(), affinity))))


@functools.cache
def processor_quota() -> float:
    """Processors' worth of time that the control groups allow; infinity without a limit."""
    quotas = [math.inf]
    for folder in _levels("cpu"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
            quota, period = (folder / "cpu.max").read_text().split()
            quotas.append(int(quota) / int(period))
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            microseconds = int((folder / "cpu.cfs_quota_us").read_text())
            if microseconds > 0:  # -1: no limit
                quotas.append(microseconds / int((folder / "cpu.cfs_period_us").read_text()))
    return min(quotas)


@functools.cache
def memory() -> float:
    """Bytes this process can have at most; infinity when unknown."""
    limits = [math.inf]
    with contextlib.suppress(AttributeError, ValueError, OSError):  # no such function or name on this system
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for folder in _levels("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                limits.append(int((folder / name).read_text()))
    return min(limits)


def available_memory() -> float:
    """Bytes that this process could have now; 4e9 when unknown."""
    limit = memory()
    free = _kilobytes("proc/meminfo", "MemAvailable")
    if free is not None:
        return min(limit, free * 1024)
    return limit if math.isfinite(limit) else 4e9


def peak_memory() -> int:
    """Bytes that this process had at most, resident; 0 when unknown."""
    peak = _kilobytes("proc/self/status", "VmHWM")
    if peak is not None:
        return peak * 1024
    # Elsewhere only: on Linux getrusage counts the parent process from before the exec, too.
    with contextlib.suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return 0


def _kilobytes(file: str, name: str) -> int | None:
    """What a line such as `MemAvailable:   123 kB` of a file says; None without the file or the line."""
    with contextlib.suppress(OSError, StopIteration, ValueError), open(ROOT / file) as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
    return None


def most_kept() -> int:
    """Bytes that compiled code may keep between calls: a gigabyte, or less in a process that has less than 16."""
    return int(min(2**30, memory() / 16))


def _levels(controller: str) -> Iterator[Path]:
    """Folders of this process's control group and of all above it, in each hierarchy that has the controller."""
    try:
        groups = (ROOT / "proc/self/cgroup").read_text().splitlines()
        mounts = (ROOT / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    own: dict[str, str] = {}  # controller, or "" for the hierarchy of version 2 -> path of this process's group
    for line in filter(None, groups):
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    for line in filter(None, mounts):
        # id parent device root mount-point options [tag …] - type source super-options
        mounted, _, filesystem = line.partition(" - ")
        kind, *_, options = filesystem.split(" ")
        hierarchy = {"cgroup2": "", "cgroup": controller}.get(kind)
        if hierarchy not in own or (hierarchy and hierarchy not in options.split(",")):
            continue
        root, mount_point = mounted.split(" ")[3:5]
        group = PurePosixPath(own[hierarchy])
        # What is mounted may be a part of the hierarchy, or the group outside of it: then the whole of it counts.
        inside = group.is_relative_to(root) and ".." not in group.parts
        below = group.relative_to(root) if inside else PurePosixPath()
        folder = ROOT / mount_point.lstrip("/")
        yield from (folder / level for level in (below, *below.parents))
