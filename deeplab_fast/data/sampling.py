"""Which sample comes when: an endless shuffled stream for training, and shares of a dataset for evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from deeplab_fast.data._checks import checked_count, checked_rank
from deeplab_fast.data.problems import Problem
from deeplab_fast.data.sample import Sample, SegmentationDataset
from deeplab_fast.errors import ArgumentError

# Uses of random numbers; each has a stream of its own, so that none repeats another's numbers.
SHUFFLING, AUGMENTING, REPLACING = range(3)


def generator_for(seed: int, use: int, number: int) -> np.random.Generator:
    """Random numbers that depend on the arguments alone: not on the process, the worker or what was drawn before."""
    return np.random.default_rng((seed, use, number))


class ShuffledSampler(Sampler):
    """An endless stream of (index, draw) in shuffled epochs, shared out among processes.

    Draw number d, counted from 0 over the whole training and all processes, is the sample at place d % length of epoch
    d // length, whose order depends on seed and epoch alone. It belongs to rank d % world. So with `world` processes
    and batches of b samples, the b * world samples of a step are those of one process with batches of b * world.

    A DataLoader's workers draw ahead of the training, so the sampler cannot know how many draws were used. The training
    says so: `advance(batch size * world)` after each step. `state_dict` holds that count, and the stream begins there.

    Args:
        length: of the dataset.
        seed: 0 or more.
        rank, world: number of this process, and how many there are.
        start: draws used before, over all processes.

    Attributes:
        taken: draws used so far, over all processes.

    Raises:
        TypeError, ValueError: if an argument is no integer, or out of its range.
    """

    def __init__(self, length: int, seed: int, rank: int = 0, world: int = 1, start: int = 0):
        self.length = checked_count("length", length, 1)
        self.seed = checked_count("seed", seed, 0)
        self.rank, self.world = checked_rank(rank, world)
        self.taken = checked_count("start", start, 0)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        draw = self.taken + (self.rank - self.taken) % self.world  # the first of this rank's that was not used
        epoch, order = -1, np.empty(0, np.int64)
        while True:
            if draw // self.length != epoch:
                epoch = draw // self.length
                order = generator_for(self.seed, SHUFFLING, epoch).permutation(self.length)
            yield int(order[draw % self.length]), draw
            draw += self.world

    def advance(self, draws: int) -> None:
        """Count `draws` more, over all processes, as used."""
        self.taken += checked_count("draws", draws, 0)

    def state_dict(self) -> dict[str, int]:
        """What a later run needs to go on from here; with any number of processes."""
        return {"length": self.length, "seed": self.seed, "taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: if the state is of another seed or another length, whose order would be another.
        """
        for key in ("length", "seed"):
            if state[key] != getattr(self, key):
                raise ArgumentError("state", state[key], f"{getattr(self, key)}", what=key)
        self.taken = checked_count("state: taken", state["taken"], 0)


class Shard(SegmentationDataset):
    """Every `world`-th sample of a dataset, from number `rank` on; see `shard`."""

    def __init__(self, dataset: SegmentationDataset, rank: int, world: int):
        rank, world = checked_rank(rank, world)
        super().__init__(dataset.names[rank::world], dataset.classes, palette=dataset.palette)
        self.dataset = dataset
        self.on_error = dataset.on_error
        self.problems = dataset.problems
        self._indices = range(len(dataset))[rank::world]

    def __getitem__(self, index: int) -> Sample | Problem:
        return self.dataset[self._indices[index]]

    def report(self, problems: Iterable[Problem]) -> None:
        self.dataset.report(problems)


def shard(dataset: SegmentationDataset, rank: int, world: int) -> Shard:
    """The part of a dataset that process `rank` of `world` evaluates: samples rank, rank + world, …

    Together the parts have every sample exactly once. Nothing is repeated to make them equally long, as that would
    count samples twice; a part may be empty.

    Raises:
        TypeError, ValueError: if not 0 <= rank < world.
    """
    return Shard(dataset, rank, world)
