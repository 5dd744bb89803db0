"""Images of equal shape put together while they stream by."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

from deeplab_fast.data.reading import READ_ERRORS, read
from deeplab_fast.errors import ArgumentError

__all__ = ["READ_ERRORS", "check_batch_size", "read", "same_key"]

Item = TypeVar("Item")


def check_batch_size(batch_size: int) -> None:
    """Raise ValueError unless it is a whole number of at least 1."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ArgumentError("batch_size", batch_size, "a whole number of at least 1")


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
