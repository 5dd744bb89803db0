"""What comes before a training's first step: its data, looked at; the checkpoint to go on from; its folder.

Every process of the training calls each of these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from deeplab_fast.config import Config, TrainingConfig
from deeplab_fast.config.build import inputs_of, make_dataset
from deeplab_fast.config.schema import DataConfig
from deeplab_fast.data import Blur, ColorJitter, SegmentationDataset, TrainingTransform
from deeplab_fast.data.augmentation import Photometric
from deeplab_fast.data.reading import processors
from deeplab_fast.files import check_destination, remove_abandoned
from deeplab_fast.training import checkpoints
from deeplab_fast.training.checkpoints import BEST, LAST
from deeplab_fast.training.display import Display
from deeplab_fast.training.first_look import look_at_training, look_at_validation
from deeplab_fast.training.logs import LOG
from deeplab_fast.training.processes import Processes


def dataset(config: DataConfig, split: str, group: Processes) -> SegmentationDataset:
    """The split, which the first process makes before the others: it may have to write a made-up set."""
    if not group.is_first:
        group.wait()
    try:
        return make_dataset(config, split)
    finally:
        if group.is_first:
            group.wait()


def transform(recipe: TrainingConfig) -> TrainingTransform:
    """The augmentation of a recipe."""
    photometric: list[Photometric] = []
    if recipe.color_jitter is not None:
        photometric.append(ColorJitter(**recipe.color_jitter.model_dump()))
    if recipe.blur is not None:
        photometric.append(Blur(recipe.blur.probability, recipe.blur.sigma))
    return TrainingTransform(recipe.crop, recipe.scales, recipe.flip, rotation=recipe.rotation, photometric=photometric)


def checkpoint(folder: Path, resume: bool | Literal["auto"], group: Processes) -> dict[str, Any] | None:
    """What to go on from; None for a new training, whose folder has to be free of others."""
    found = [folder / name for name in (LAST, BEST) if (folder / name).exists()]
    there = group.gathered([path.name for path in (*found, *checkpoints.kept(folder).values())])[0]
    if LAST in there if resume == "auto" else resume:
        return checkpoints.load(folder / LAST)
    if there:
        advice = "go on from it (--resume)" if LAST in there else f"without {LAST}; move it away"
        raise FileExistsError(f"output: {folder / there[0]} exists; {advice} or choose another folder")
    return None


def notes_on_data(
    config: Config,
    training: SegmentationDataset,
    validation: SegmentationDataset | None,
    group: Processes,
    display: Display,
) -> list[str]:
    """Notes on the data; the first process looks, for all."""
    found: list[str] | Exception = []
    if group.is_first:
        try:
            look = (min(config.training.workers, processors()), config.data.allow_missing_classes, display.bar)
            found = look_at_training(training, *look)
            if validation is not None:
                found += look_at_validation(validation, *look)
        except Exception as error:  # the other processes have to hear of it, or they would wait
            found = error
    found = group.gathered(found)[0]
    if isinstance(found, Exception):
        raise found
    return found


def prepare_folder(
    config: Config, training: SegmentationDataset, validation: SegmentationDataset | None, group: Processes
) -> None:
    """The folder, made by the first process; what will be written to it can be, and is no input."""
    folder, sets = config.output, [training, *([] if validation is None else [validation])]
    for name in (LAST, BEST, LOG):
        check_destination(folder / name, inputs_of(config, sets), new_folder=True)
    group.wait()
    if group.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder)
