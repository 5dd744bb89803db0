"""Trainings of a few steps on a few tiny pictures, and what they leave behind; for the tests of training."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deeplab_fast import models
from deeplab_fast.config import Config, parse_config
from deeplab_fast.data import write_shapes
from deeplab_fast.training import read_log

RECIPE = {
    "iterations": 4,
    "batch_size": 2,
    "accumulation": 1,
    "lr": 0.0005,
    "lr_every": 1,
    "crop": 65,
    "workers": 0,
    "evaluate_every": 0,
    "checkpoint_every": 100,
    "log_every": 1,
}


def write_set(folder: Path) -> Path:
    return write_shapes(folder / "set", train=8, val=4, size=(64, 48))


def small_config(
    root: Path, output: Path, options: dict[str, Any] | None = None, weights: Path | None = None, **training: Any
) -> Config:
    """A training of the small network on the set in `root`, without MSC, on the CPU."""
    entries = {
        "output": str(output),
        "device": "cpu",
        "data": {"kind": "shapes", "root": str(root)},
        "model": {
            "name": "deeplabv2_small",
            "options": {"msc": False} if options is None else options,
            "weights": weights,
            "classifier": "strict",
        },
        "training": RECIPE | training,
    }
    return parse_config(entries, "test")


def first_weights(folder: Path) -> Path:
    """Weights whose frozen batch norm fits them: of fresh ones, the scores would be in the hundreds."""
    torch.manual_seed(0)
    model = models.create("deeplabv2_small", 5, msc=False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(100 * torch.randn(4, 3, 65, 65))
    torch.save(model.state_dict(), folder / "first.pth")
    return folder / "first.pth"


def logged(output: Path) -> list[tuple[str, ...]]:
    """The lines of the log, without what depends on the clock."""
    columns = ("step", "loss", "lr", "mean_iou", "pixel_accuracy")
    return [tuple(row[column] for column in columns) for row in read_log(output / "log.csv")]


def differences(first: Any, second: Any, place: str = "") -> list[str]:
    """Where two checkpoints differ, if only by a bit."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return [found for key in first for found in differences(first[key], second[key], f"{place}.{key}")]
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [found for i, (one, other) in pairs for found in differences(one, other, f"{place}[{i}]")]
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return [] if first.dtype == second.dtype and torch.equal(first, second) else [place]
    return [] if type(first) is type(second) and first == second else [place]


class WithDropout(nn.Module):
    """A small network with dropout and live batch norm, made in place of the one that the configuration names."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.scores = nn.Conv2d(8, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.features(x / 128))

    def classifier_modules(self) -> list[nn.Module]:
        return [self.scores]


def make_with_dropout(config: Any, num_classes: int) -> tuple[nn.Module, list[str]]:
    """Stands in for `config.build.make_model`."""
    return WithDropout(num_classes), []


@contextlib.contextmanager
def file_size_limit(limit: int):
    """Writing past `limit` bytes of a file fails, as on a full disk."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # Python ignores the signal
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def python(code: str, *arguments: Any) -> list[str]:
    """A command line that runs code which may import this file."""
    return [sys.executable, "-c", code, *map(str, arguments)]


def environment(**changes: Any) -> dict[str, str]:
    """Of such a command."""
    here = os.path.dirname(os.path.abspath(__file__))
    root = os.path.dirname(os.path.dirname(here))
    path = os.pathsep.join(filter(None, (here, root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, **{name: str(value) for name, value in changes.items()}}
