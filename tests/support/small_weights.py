"""A small network, files of its weights, and the comparison of both, for the tests of loading weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from deeplab_fast import models


def small(num_classes: int = 3, seed: int = 0, **options) -> nn.Module:
    torch.manual_seed(seed)
    return models.deeplabv2_small(num_classes, **options)


def written(folder: Path, content: object, name: str = "weights.pth", **options) -> Path:
    torch.save(content, folder / name, **options)
    return folder / name


def assert_same(model: nn.Module, expected: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert list(state) == list(expected)
    for key in expected:
        assert torch.equal(state[key], expected[key]), key
