"""Several processes, as torchrun starts them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class Processes:
    """Which process this is, of how many."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            distributed.barrier()

    def gathered(self, item: Any) -> list[Any]:
        """The items of all processes, in the order of their numbers; all have to call it."""
        items = [item] * self.world
        if self.world > 1:
            distributed.all_gather_object(items, item)
        return items


@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Join the processes that torchrun started, by its environment variables; alone without them.

    NCCL connects GPUs, gloo the rest. A group that exists already is used, and left as it is.
    """
    if distributed.is_available() and distributed.is_initialized():
        yield Processes(distributed.get_rank(), distributed.get_world_size())
        return
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield Processes()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(distributed.get_rank(), world)
    finally:
        distributed.destroy_process_group()


def share_buffers(model: nn.Module, group: Processes) -> None:
    """Give every process the buffers of the first, in place; all have to call it.

    Batch norm's running statistics are of the images that each process saw, and a checkpoint holds the first's.
    """
    if group.world == 1:
        return
    for buffer in model.buffers():
        shared = buffer.contiguous()
        distributed.broadcast(shared, 0)
        buffer.copy_(shared)


def synchronise_batch_norm(model: nn.Module) -> None:
    """Let every batch norm that is trained take its statistics over all processes, in place.

    One that is frozen stays as it is: `torch.nn.SyncBatchNorm.convert_sync_batchnorm` would make it live.
    """
    model.train()  # what is in evaluation mode even now is frozen
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm) and child.training:
                setattr(module, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
