"""Networks from files of weights, with what these say of them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deeplab_fast import data, models
from deeplab_fast.config.build import classes_of
from deeplab_fast.config.schema import Config, parse_config
from deeplab_fast.models import weight_names


@dataclass(frozen=True)
class Weights:
    """A network from a file, and what the file says of it.

    Attributes:
        model: with the weights.
        classes: names of the classes; None if the file does not say.
        palette: uint8 (256, 3), or None.
        config: of the training that made it, or None.
        notes: of `models.load_weights`.
    """

    model: nn.Module
    num_classes: int
    classes: list[str] | None = None
    palette: Any = None
    config: Config | None = None
    notes: list[str] = field(default_factory=list)


def read_weights(path: str | os.PathLike[str], config: Config | None = None, *, key: str | None = None) -> Weights:
    """The network that a file of weights belongs to: a checkpoint of ours, or published ones of DeepLab-v2.

    Args:
        path: see `models.load_weights`.
        config: which network it is; without one, the checkpoint says so, and otherwise it has to be DeepLab-v2 with
            ResNet-101.
        key: see `models.load_weights`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, does not fit, or it is not clear what network it belongs to.
    """
    path = Path(path)
    meta = _meta(path)
    if config is None and meta is not None:
        config = parse_config(meta["config"], f"weights {path}")
    classes = None if meta is None else list(meta["classes"])
    if config is None:
        name, options, num_classes = "deeplabv2_resnet101", {}, class_count(path, key)
        if num_classes is None:
            raise ValueError(
                f"weights {path}: are not those of DeepLab-v2 with ResNet-101; name the network with a --config"
            )
    else:
        name, options = config.model.name, config.model.options
        num_classes = len(classes or classes_of(config.data))
    model = models.create(name, num_classes, **options)
    report = models.load_weights(model, path, key=key)
    colours = meta["palette"].numpy() if meta is not None else config.data.palette if config is not None else None
    palette = None if colours is None else data.sample.filled_palette(colours)
    return Weights(model, num_classes, classes, palette, config, [*report.notes])


def _meta(path: Path) -> dict[str, Any] | None:
    """What a checkpoint of ours says about itself."""
    if path.suffix in (".caffemodel", ".safetensors") or not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # load_weights says what is wrong with it
        return None
    meta = dict.get(content, "deeplab_fast") if isinstance(content, dict) else None
    return meta if isinstance(meta, dict) and {"config", "classes", "palette"} <= meta.keys() else None


def class_count(path: Path, key: str | None = None) -> int | None:
    """The number of classes that an ASPP in a file of weights is for; None if it has no ASPP.

    Args:
        path, key: see `models.load_weights`.

    Raises:
        FileNotFoundError, ValueError: as `models.load_weights` does, also if it has ASPPs of different numbers.
    """
    path = Path(path)
    counts: dict[str, int] = {}
    for name, tensor in models.read_state(path).items():
        prefix, found, _ = weight_names.plain(name).replace("aspp.stages.c0.", "aspp.c0.").rpartition("aspp.c0.weight")
        if found and (key is None or weight_names.has_key(prefix, key)):
            counts[prefix] = tensor.shape[0]
    if len(set(counts.values())) > 1:
        raise weight_names.several(path, list(counts))
    return next(iter(counts.values()), None)
