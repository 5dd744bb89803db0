"""Datasets, networks and CRFs that a configuration describes."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import nn

from deeplab_fast import data, files, models
from deeplab_fast.config.device import DTYPES
from deeplab_fast.config.schema import Config, CRFConfig, DataConfig, EvaluationConfig, ModelConfig
from deeplab_fast.crf import CRFParameters, parameters
from deeplab_fast.errors import ArgumentError, one_of
from deeplab_fast.evaluation import Predictor
from deeplab_fast.nn import DenseCRF


def make_dataset(config: DataConfig, split: str) -> data.SegmentationDataset:
    """The dataset of a split; the made-up set is written first if it is not there.

    Raises:
        FileNotFoundError, ValueError: as the dataset's class does; ValueError for a split that has no folder.
    """
    if config.kind == "folder":
        return _make_folder(config, split)
    assert config.root is not None
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


def _make_folder(config: DataConfig, split: str) -> data.Folder:
    images, labels, list_file = config.images, config.labels, split or None
    # The section has checked that what its kind needs is there.
    assert images is not None
    assert labels is not None
    assert config.classes is not None
    if isinstance(images, dict):
        if split not in images:
            raise ArgumentError("split", split, f"{one_of([*images])}, as in data.images")
        images, list_file = images[split], None
    if isinstance(labels, dict):
        labels = labels[split]
    return data.Folder(
        images,
        labels,
        config.classes,
        list=list_file,
        palette=config.palette,
        ignore_index=config.ignore_index,
        label_values=_label_values(config),
        label_colors=config.meanings_of_colors,
        image_ending=config.image_ending,
        label_ending=config.label_ending,
        pairs=config.pairs,
        on_error=config.on_error,
    )


def inputs_of(
    config: Config, datasets: Iterable[data.SegmentationDataset], *others: os.PathLike[str] | str | None
) -> files.Inputs:
    """What a command by a configuration reads: its sets' files, its weights, and others; None is left out."""
    has_lists = config.data.kind == "folder" and not isinstance(config.data.images, dict)
    lists = [config.data.train, config.data.val] if has_lists else []
    places = [path for dataset in datasets for path in dataset.inputs()]
    return files.Inputs([*places, *(path for path in (*lists, config.model.weights, *others) if path)])


def _label_values(config: DataConfig) -> dict[int, int | None] | None:
    """With None for "ignore"."""
    if config.label_values is None:
        return None
    return {value: None if isinstance(meaning, str) else meaning for value, meaning in config.label_values.items()}


def classes_of(config: DataConfig) -> tuple[str, ...]:
    """Names of the set's classes; its files need not be there."""
    if config.kind == "folder":
        return tuple(config.classes or ())
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
    """The numbers of `make_crf`.

    Raises:
        ValueError: for an unknown preset.
    """
    return parameters(**config.model_dump())


def make_predictor(
    model: nn.Module,
    num_classes: int,
    config: Config | None,
    device: torch.device,
    *,
    with_crf: bool = False,
    tile: int | None = None,
    flip: bool = False,
) -> Predictor:
    """A predictor as the configuration has it; without one, the defaults. `tile` and `flip`, if given, replace its."""
    entries = EvaluationConfig() if config is None else config.evaluation
    return Predictor(
        model,
        num_classes,
        crf=make_crf(CRFConfig() if config is None else config.crf) if with_crf else None,
        device=device,
        autocast=DTYPES[entries.precision],
        uint8_wrap=entries.uint8_wrap,
        tile=entries.tile if tile is None else tile,
        flip=entries.flip or flip,
    )
