"""Whether a checkpoint is of the training that is to go on from it."""

from __future__ import annotations

import functools
from typing import Any

from deeplab_fast.config import Config, parse_config
from deeplab_fast.data import SegmentationDataset
from deeplab_fast.errors import ArgumentError

# Entries of the configuration that a resumed training has to have as before.
SAME_MODEL = ("name", "options")
SAME_RECIPE = (
    *("iterations", "optimizer", "frozen", "lr", "momentum", "betas", "weight_decay", "classifier_factor"),
    *("power", "lr_every", "warmup", "warmup_factor", "ema"),
)


def check_same_training(state: dict[str, Any], config: Config, dataset: SegmentationDataset) -> None:
    """Another network or another schedule would go on from this checkpoint, and mean nothing.

    The optimizer's numbers come from the checkpoint, so that another one in the configuration would have no effect.

    Args:
        state: of the checkpoint.
        config: of the training that is to go on.
        dataset: to train on.

    Raises:
        ValueError: if they are not of one training.
    """
    # As it would be read now: a checkpoint from before an entry existed had its default.
    before, now = (
        one.model_dump(mode="json") for one in (parse_config(state["deeplab_fast"]["config"], "checkpoint"), config)
    )
    compared = [("seed",), *(("model", name) for name in SAME_MODEL), *(("training", name) for name in SAME_RECIPE)]
    for entry in compared:
        has, had = (functools.reduce(dict.__getitem__, entry, entries) for entries in (now, before))
        if has != had:
            raise ArgumentError(
                ".".join(entry),
                has,
                f"{had!r}, as in the checkpoint; resumed, a training keeps it. To change it, train in another folder, "
                "with the checkpoint as model.weights",
            )
    if state["deeplab_fast"]["classes"] != list(dataset.classes):
        raise ArgumentError("data", ", ".join(dataset.classes), "those of the checkpoint", what="list of classes")
    had = state["sampler"]["length"]
    if had != len(dataset):
        wanted = f"{had}, as the checkpoint was trained with; resumed, a training goes on with the same ones"
        raise ArgumentError("data.train", len(dataset), wanted, what="number of samples")
