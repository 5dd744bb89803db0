"""The batches of a training, read ahead by worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from deeplab_fast import data
from deeplab_fast.data.reading import item_or_error, leave_group


class _Carrying(Dataset):
    """Items of a training set; one that cannot be read is its exception."""

    def __init__(self, samples: data.TrainingSet):
        self.samples = samples

    def __getitem__(self, index: Any) -> data.Crop | Exception:
        return item_or_error(self.samples, index)


def _collate(items: Sequence[data.Crop | Exception]) -> data.Batch | Exception:
    failed = [item for item in items if isinstance(item, Exception)]
    return failed[0] if failed else data.collate([item for item in items if not isinstance(item, Exception)])


def batches(
    samples: data.TrainingSet,
    sampler: data.ShuffledSampler,
    batch_size: int,
    *,
    workers: int = 0,
    seed: int = 0,
    pin_memory: bool = False,
) -> Iterator[data.Batch]:
    """Batches of the samples that the sampler gives, as long as it gives any.

    Raises:
        OSError, ValueError, TypeError: of a sample that cannot be used, as the training set raised it.
    """
    loader = DataLoader(
        _Carrying(samples),
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=leave_group,
        # Seeds of workers come from it; from torch's own, they would shift the numbers that dropout gets.
        generator=torch.Generator().manual_seed(seed),
    )
    for batch in loader:
        if isinstance(batch, Exception):
            raise batch
        yield batch
