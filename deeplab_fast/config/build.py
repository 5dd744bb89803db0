"""Datasets, networks and CRFs that a configuration describes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deeplab_fast import data, files, models
from deeplab_fast.config import Config, CRFConfig, DataConfig, EvaluationConfig, ModelConfig, parse_config
from deeplab_fast.crf import CRFParameters, parameters
from deeplab_fast.evaluation import Predictor
from deeplab_fast.models import weight_names
from deeplab_fast.nn import DenseCRF
from deeplab_fast.pictures.label_values import IGNORE


def make_dataset(config: DataConfig, split: str) -> data.SegmentationDataset:
    """The dataset of a split; the made-up set is written first if it is not there.

    Raises:
        FileNotFoundError, ValueError: as the dataset's class does.
    """
    if config.kind == "folder":
        return data.Folder(
            config.images,
            config.labels,
            config.classes,
            list=split or None,
            palette=config.palette,
            ignore_index=config.ignore_index,
            label_values=_label_values(config),
            on_error=config.on_error,
        )
    if config.generate is not None:
        made = config.generate.model_dump()
        if (config.root / data.shapes.MARKER).is_file():
            data.shapes.check_made_with(config.root, **made)
        else:
            config.root.parent.mkdir(parents=True, exist_ok=True)
            data.write_shapes(config.root, **made)
    makers = {
        "voc12": data.VOC12,
        "cocostuff10k": data.COCOStuff10k,
        "cocostuff164k": data.COCOStuff164k,
        "shapes": data.Shapes,
    }
    return makers[config.kind](config.root, split, on_error=config.on_error)


def inputs_of(
    config: Config, datasets: Iterable[data.SegmentationDataset], *others: os.PathLike[str] | str | None
) -> files.Inputs:
    """What a command by a configuration reads: its sets' files, its weights, and others; None is left out."""
    lists = [config.data.train, config.data.val] if config.data.kind == "folder" else []
    places = [path for dataset in datasets for path in dataset.inputs()]
    return files.Inputs([*places, *filter(None, [*lists, config.model.weights, *others])])


def _label_values(config: DataConfig) -> dict[int, int | None] | None:
    if config.label_values is None:
        return None
    return {value: None if meaning == IGNORE else meaning for value, meaning in config.label_values.items()}


def classes_of(config: DataConfig) -> tuple[str, ...]:
    """Names of the set's classes; its files need not be there."""
    if config.kind == "folder":
        return tuple(config.classes)
    return {"voc12": data.VOC_CLASSES, "shapes": data.shapes.CLASSES}.get(config.kind, data.COCOSTUFF_CLASSES)


# What would help in loading weights, in entries of the configuration.
_ADVICE = {
    "classifier": "set model.classifier to fresh to train these layers anew",
    "accept_stride": "add stride_in_3x3: true to model.options",
    "key": "say which with model.weights_key",
}


def make_model(config: ModelConfig, num_classes: int) -> tuple[nn.Module, list[str]]:
    """The network, with its first weights if it has any, and notes on them.

    Raises:
        FileNotFoundError, TypeError, ValueError: as `models.create` and `models.load_weights` do.
    """
    model = models.create(config.name, num_classes, **config.options)
    if config.weights is None:
        return model, []
    try:
        report = models.load_weights(
            model, config.weights, classifier=config.classifier, pixels=config.pixels, key=config.weights_key
        )
    except models.WeightsError as error:
        raise error.advising(_ADVICE) from error
    return model, [f"{report.loaded} tensors loaded from {config.weights}", *report.notes]


def make_crf(config: CRFConfig) -> DenseCRF:
    """The CRF: its preset, with what differs.

    Raises:
        ValueError: for an unknown preset.
    """
    changes = config.model_dump(exclude={"preset"}, exclude_none=True)
    return DenseCRF.preset(config.preset, **changes)


def crf_parameters(config: CRFConfig) -> CRFParameters:
    """The numbers of :func:`make_crf`.

    Raises:
        ValueError: for an unknown preset.
    """
    return parameters(**config.model_dump())


# What `precision` of a configuration stands for; None: no autocast.
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def make_predictor(
    model: nn.Module, num_classes: int, config: Config | None, device: torch.device, with_crf: bool, tile: int | None
) -> Predictor:
    """A predictor as the configuration has it; without one, the defaults. `tile`, if given, replaces its tile."""
    entries = EvaluationConfig() if config is None else config.evaluation
    return Predictor(
        model,
        num_classes,
        crf=make_crf(CRFConfig() if config is None else config.crf) if with_crf else None,
        device=device,
        autocast=DTYPES[entries.precision],
        uint8_wrap=entries.uint8_wrap,
        tile=entries.tile if tile is None else tile,
    )


def device_of(name: str) -> torch.device:
    """A device by name; "auto" is "cuda" where there is a GPU, else the CPU; "cuda" is the GPU of this process.

    Raises:
        ValueError: if there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: is {name!r}, should be auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: is {name!r}, should be auto, cpu or cuda")
    if device == torch.device("cuda"):  # each process of torchrun has one of its own
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: is {name!r}, but torch finds {torch.cuda.device_count() or 'no'} GPU")
    return device


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
