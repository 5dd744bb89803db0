"""Which part of a data set this process takes, where several share it: as an option says, or a job system."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from deeplab_fast.errors import ArgumentError


@dataclass(frozen=True)
class Shard:
    """One of `count` parts, number 1 to `count`; `source` says who decided, for people.

    A name belongs to the same part whatever other names there are, so that a restart with the same number goes on with
    what it began.

    Raises:
        ValueError: if there is no such part.
    """

    number: int = 1
    count: int = 1
    source: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ArgumentError("shard", f"{self.number}/{self.count}", "one of 1/N to N/N, for N shards")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From "3/16", the third of sixteen."""
        found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        if found is None:
            raise ArgumentError("shard", text, "like 3/16, the third of sixteen")
        return cls(int(found[1]), int(found[2]))

    def has(self, name: str) -> bool:
        """Whether a name belongs to this part."""
        digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def from_environment(environment: Mapping[str, str] | None = None) -> Shard:
    """The part that torchrun or Slurm gives this process: tasks of an array, times processes in each.

    torchrun: RANK, WORLD_SIZE. Slurm: SLURM_ARRAY_TASK_ID with _MIN, _MAX, _COUNT, _STEP; SLURM_PROCID, SLURM_NTASKS of
    what srun starts (the batch script itself, which has them too, is one process).

    Raises:
        ValueError: for an array from whose numbers the part cannot be told, such as 1,5,6.
    """
    environment = os.environ if environment is None else environment
    number, count, sources = 0, 1, []
    for index, of, source in filter(None, (_array(environment), _processes(environment))):
        number, count = number * of + index, count * of
        sources.append(source)
    return Shard(number + 1, count, ", ".join(sources) if count > 1 else "")


def _array(environment: Mapping[str, str]) -> tuple[int, int, str] | None:
    """Index, from 0, and number of an array's tasks."""
    task = _number(environment, "SLURM_ARRAY_TASK_ID")
    if task is None:
        return None
    first = _number(environment, "SLURM_ARRAY_TASK_MIN") or 0
    step = _number(environment, "SLURM_ARRAY_TASK_STEP") or 1
    last, count = _number(environment, "SLURM_ARRAY_TASK_MAX"), _number(environment, "SLURM_ARRAY_TASK_COUNT")
    if last is None and count is None:
        return None
    if last is None:
        assert count is not None
        last = first + step * (count - 1)
    regular = (last - first) // step + 1
    if (count is not None and count != regular) or (task - first) % step or not first <= task <= last:
        wanted = "one of evenly spaced ones, as 0-15; of others say each task's part with --shard i/n"
        raise ArgumentError("SLURM_ARRAY_TASK_ID", task, wanted)
    return (task - first) // step, regular, "SLURM_ARRAY_TASK_ID"


def _processes(environment: Mapping[str, str]) -> tuple[int, int, str] | None:
    """Index and number of the processes that torchrun or srun started."""
    rank, world = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    if rank is not None and world is not None:
        return rank, world, "RANK, WORLD_SIZE"
    # A batch script is no task of a step, but has these variables, always with PROCID 0.
    if "SLURM_JOB_ID" in environment and not {"SLURM_STEP_ID", "SLURM_STEPID"} & environment.keys():
        return None
    rank = _number(environment, "SLURM_PROCID")
    world = _number(environment, "SLURM_STEP_NUM_TASKS") or _number(environment, "SLURM_NTASKS")
    if rank is not None and world is not None:
        return rank, world, "SLURM_PROCID, SLURM_NTASKS"
    return None


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "").strip()
    return int(text) if text.isdecimal() else None
