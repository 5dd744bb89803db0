"""Images of equal shape put together while they stream by, and the reading of a dataset with its problems."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

__all__ = ["READ_ERRORS", "check_batch_size", "item_or_error", "read", "same_key"]

Item = TypeVar("Item")

# What a picture or a label map that cannot be read raises.
READ_ERRORS = (OSError, ValueError, TypeError)


def check_batch_size(batch_size: int) -> None:
    """Raise ValueError unless it is a whole number of at least 1."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size: is {batch_size!r}, should be a whole number of at least 1")


def same_key(
    items: Iterable[Item], size: int, key: Callable[[Item], Hashable], look_ahead: int | None = None
) -> Iterator[list[Item]]:
    """Batches of items with equal keys, each item once, hardly out of order.

    Args:
        items: read one by one, and only as needed.
        size: items in a batch, at most.
        key: what the items of a batch have in common.
        look_ahead: items that may wait for others like them; default 4 batches. When more wait, the group of the
            longest waiting one goes, as it is.
    """
    look_ahead = 4 * size if look_ahead is None else look_ahead
    waiting: dict[Hashable, list[Item]] = {}  # in the order of each group's first item
    count = 0
    for item in items:
        group = waiting.setdefault(key(item), [])
        group.append(item)
        count += 1
        if len(group) == size or count > look_ahead:
            chosen = key(item) if len(group) == size else next(iter(waiting))
            batch = waiting.pop(chosen)
            count -= len(batch)
            yield batch
    yield from waiting.values()


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


def _unchanged(item: Item) -> Item:
    return item


def read(dataset: Any, indices: Sequence[int], workers: int = 0) -> Iterator[tuple[int, Any]]:
    """Pairs of number and item, or the exception that reading it raised, in order, read ahead by worker processes.

    Raises:
        ValueError: if `workers` is negative.
    """
    if workers < 0:
        raise ValueError(f"workers: is {workers}, should be 0 or more")
    # A generator of its own: the loader draws a seed, and an evaluation must not change the random numbers of a
    # training that it interrupts.
    loader = DataLoader(
        _Reader(dataset, indices),
        batch_size=None,
        num_workers=workers,
        collate_fn=_unchanged,
        generator=torch.Generator(),
    )
    yield from loader
