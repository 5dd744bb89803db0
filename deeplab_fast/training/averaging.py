"""The moving average of a network's weights, which is evaluated and saved in place of the weights themselves."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage:
    """Exponential moving average of weights and buffers; it begins with those after the first step.

    Args:
        model: as it is before the first step.
        decay: share of the average that stays in a step, 0 to below 1.

    Attributes:
        model: a copy of the network, with the average.
    """

    def __init__(self, model: nn.Module, decay: float):
        # Buffers, too: batch norm's statistics are to be those of the averaged weights.
        self._average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self.model = self._average.module

    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        self._average.update_parameters(model)

    def state_of(self, model: nn.Module) -> dict[str, Any]:
        """What a checkpoint needs to go on beside the average itself: the weights that are trained.

        They are a list, without names: who loads the file, in whatever way, gets the average.
        """
        return {"trained": list(model.state_dict().values()), "averaged": int(self._average.n_averaged)}

    def restore(self, model: nn.Module, averaged: dict[str, Any], state: dict[str, Any]) -> None:
        """Undo what was done since the average and `state_of` were saved."""
        self.model.load_state_dict(averaged)
        self._average.n_averaged.fill_(state["averaged"])
        model.load_state_dict(dict(zip(averaged, state["trained"], strict=True)))
