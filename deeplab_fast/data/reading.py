"""Reading a dataset item by item, ahead in worker processes, with the problems that it has."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from deeplab_fast.errors import ArgumentError

# What a picture or a label map that cannot be read raises.
READ_ERRORS = (OSError, ValueError, TypeError)
FEW = 64  # items up to which starting processes takes longer than reading


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def leave_group(_: int) -> None:
    """For `worker_init_fn`: a worker gets no signal that is sent to the whole group of the main process.

    Ctrl-C in a terminal is such a signal, and the SIGTERM that torchrun sends. The main process decides what to do.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()


def item_or_error(dataset: Any, index: Any) -> Any:
    """dataset[index], or the exception that it raised: a worker process would put its traceback into the text."""
    try:
        return dataset[index]
    except READ_ERRORS as error:
        return error.with_traceback(None)


class _Reader(Dataset):
    """Some items of a dataset, each with its number; an item that cannot be read is its exception."""

    def __init__(self, dataset: Any, indices: Sequence[int]):
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[int, Any]:
        index = self.indices[position]
        return index, item_or_error(self.dataset, index)


def _unchanged(item: Any) -> Any:
    return item


def read(dataset: Any, indices: Sequence[int], workers: int = 0) -> Iterator[tuple[int, Any]]:
    """Pairs of number and item, or the exception that reading it raised, in order, read ahead by worker processes.

    Raises:
        ValueError: if `workers` is negative.
    """
    if workers < 0:
        raise ArgumentError("workers", workers, "0 or more")
    # A generator of its own: the loader draws a seed, and an evaluation must not change the random numbers of a
    # training that it interrupts.
    loader = DataLoader(
        _Reader(dataset, indices),
        batch_size=None,
        num_workers=workers if len(indices) > FEW else 0,
        worker_init_fn=leave_group,
        collate_fn=_unchanged,
        generator=torch.Generator(),
    )
    yield from loader
