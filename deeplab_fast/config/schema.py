"""What a configuration file may say, and reading one: YAML, checked by pydantic before anything is started."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from deeplab_fast.config.recipe import TrainingConfig
from deeplab_fast.config.section import NonNegative, Section
from deeplab_fast.crf import PRESETS
from deeplab_fast.errors import ArgumentError, one_of


class ShapesConfig(Section):
    """The made-up set, written to `data.root` where there is none yet; see `deeplab_fast.data.write_shapes`."""

    train: PositiveInt = 120
    val: PositiveInt = 40
    size: tuple[PositiveInt, PositiveInt] = (160, 120)  # width, height
    seed: Annotated[int, Field(ge=0)] = 0


# A name's end is no path.
Ending = Annotated[str, Field(min_length=1, pattern=r"^[^/\\\\]+$")]
# Entries of kind folder that have a default like any other's.
_OF_FOLDERS = ("image_ending", "label_ending", "pairs", "label_colors")


def _colour(text: str) -> tuple[int, int, int]:
    """ "128, 64, 128" -> the colour."""
    parts = [int(part) if part.strip().isdecimal() else -1 for part in text.split(",")]
    if len(parts) != 3 or not all(0 <= part <= 255 for part in parts):
        raise ValueError(f"is {text!r}, should be like '128, 64, 128', red, green and blue in 0 to 255")
    return parts[0], parts[1], parts[2]


class DataConfig(Section):
    """Where images and labels are. Paths are relative to the folder that the command is called in.

    Of kind folder, what `deeplab_fast.data.Folder` has an argument for means the same as there.

    images, labels: a folder each. Where training and validation are in different ones, a folder for each name:
    {train: data/train/photos, val: data/val/photos}; `train` and `val`, and --split, are then such names, and every
    photo of the folder is taken. labels may be one folder for all.

    label_colors: {"128, 64, 128": 0, "0, 0, 0": ignore}, class of each colour (red, green, blue) of label files that
    are in colour; or the word palette: class k has colour k of `palette`.
    """

    kind: Literal["voc12", "cocostuff10k", "cocostuff164k", "shapes", "folder"]
    root: Path | None = None  # of every kind but folder
    train: str = "train"  # split; of folder: a list file, or "" for all images
    val: str = "val"
    images: Path | dict[str, Path] | None = None  # of folder, and all that follows
    labels: Path | dict[str, Path] | None = None
    image_ending: Ending | None = None  # ".ppm", "_leftImg8bit.png", …; null: that of any photo
    label_ending: Ending = ".png"  # "_mask.png", …
    pairs: bool = False  # lines of the list files are "PHOTO LABELS", paths in images and in labels
    classes: list[str] | None = None
    palette: list[tuple[int, int, int]] | None = None
    ignore_index: Annotated[int, Field(ge=0)] | None = 255  # null: every pixel is known
    label_values: dict[NonNegativeInt, NonNegativeInt | Literal["ignore"] | None] | None = None  # see data.Folder
    label_colors: Literal["palette"] | dict[str, NonNegativeInt | Literal["ignore"] | None] | None = None
    generate: ShapesConfig | None = None  # of shapes
    on_error: Literal["raise", "skip"] = "raise"  # what happens to a sample whose files are missing, broken or wrong
    allow_missing_classes: bool = False  # train although a class occurs in no label

    @model_validator(mode="after")
    def _complete(self) -> DataConfig:
        folder_only = {"images": self.images, "labels": self.labels, "classes": self.classes, "palette": self.palette}
        if self.kind == "folder":
            missing = [name for name in ("images", "labels", "classes") if folder_only[name] is None]
            if missing:
                raise ValueError(f"kind folder needs {', '.join(missing)}")
            if self.root is not None:
                raise ValueError("root belongs to the other kinds, the kind is folder, which has images and labels")
            self._check_folder()
        else:
            if self.root is None:
                raise ValueError(f"kind {self.kind} needs root")
            given = [name for name, value in folder_only.items() if value is not None]
            given += ["ignore_index"] if self.ignore_index != 255 else []
            given += ["label_values"] if self.label_values is not None else []
            given += [name for name in _OF_FOLDERS if getattr(self, name) != type(self).model_fields[name].default]
            if given:
                raise ValueError(f"{', '.join(given)} belong to kind folder, the kind is {self.kind}")
        if self.generate is not None and self.kind != "shapes":
            raise ValueError(f"generate belongs to kind shapes, the kind is {self.kind}")
        return self

    def _check_folder(self) -> None:
        """Raise ValueError where entries of kind folder do not go together."""
        if isinstance(self.images, dict):
            names = ", ".join(self.images)
            if isinstance(self.labels, dict) and self.labels.keys() != self.images.keys():
                raise ValueError(f"labels has folders for {', '.join(self.labels)}, should for {names}, as images")
            for entry in ("train", "val"):
                if getattr(self, entry) not in self.images:
                    raise ValueError(f"{entry} is {getattr(self, entry)!r}, should be one of {names}, as in images")
            if self.pairs:
                raise ValueError("pairs is for one folder of images, whose pairs train and val list")
        elif isinstance(self.labels, dict):
            raise ValueError(f"labels has folders for {', '.join(self.labels)}, so should images")
        elif self.pairs and not (self.train and self.val):
            raise ValueError("pairs needs train and val, list files")
        if self.label_colors is None:
            return
        if self.label_values is not None:
            raise ValueError("label_colors and label_values: should be one of them, not both")
        if self.label_colors == "palette" and len(self.palette or ()) < len(self.classes or ()):
            raise ValueError("label_colors: is 'palette', which needs a palette with a colour for each class")

    @field_validator("label_colors")
    @classmethod
    def _readable(cls, colors: Any) -> Any:
        for text in colors if isinstance(colors, dict) else ():
            _colour(text)
        return colors

    @property
    def meanings_of_colors(self) -> dict[tuple[int, int, int], int | None] | None:
        """`label_colors` as `deeplab_fast.data.Folder` takes them."""
        if self.label_colors is None:
            return None
        if isinstance(self.label_colors, str):
            return {color: k for k, color in enumerate((self.palette or [])[: len(self.classes or ())])}
        return {_colour(text): None if isinstance(k, str) else k for text, k in self.label_colors.items()}


class ModelConfig(Section):
    """Which network, and what it starts from."""

    name: str = "deeplabv2_resnet101"
    options: dict[str, Any] = Field(default={})  # further arguments of the function in deeplab_fast.models
    weights: Path | None = None
    weights_key: str | None = None  # this and the following: arguments of models.load_weights
    classifier: Literal["strict", "fresh"] = "fresh"
    pixels: Literal["rgb", "bgr"] = "rgb"


def _known_preset(name: str) -> str:
    if name not in PRESETS:
        raise PydanticCustomError("preset", "Input should be {presets}", {"presets": one_of([*map(repr, PRESETS)])})
    return name


Preset = Annotated[str, AfterValidator(_known_preset)]


class CRFConfig(Section):
    """Parameters of the CRF in evaluation: a preset of `deeplab_fast.nn.DenseCRF`, and what differs from it."""

    preset: Preset = "deeplab"
    pos_w: NonNegative | None = None
    pos_xy_std: PositiveFloat | None = None
    bi_w: NonNegative | None = None
    bi_xy_std: PositiveFloat | None = None
    bi_rgb_std: PositiveFloat | None = None
    iterations: Annotated[int, Field(ge=0)] | None = None
    normalization: Literal["none", "before", "after", "symmetric"] | None = None


class EvaluationConfig(Section):
    """How images are predicted, and scored.

    `flip` adds the scores of the photo mirrored left to right, in eval and predict, not while a training evaluates.
    Without `count_background` mean IoU and mean accuracy are over the classes from 1 on, while training, too.
    """

    batch_size: PositiveInt = 1  # of images of equal shape
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    tile: Annotated[int, Field(ge=32)] | None = None  # cut larger images into tiles of this side, pixels
    flip: bool = False
    count_background: bool = True
    uint8_wrap: bool = False  # reproduces CRF scores published with a popular reimplementation
    workers: Annotated[int, Field(ge=0)] = 0


class Config(Section):
    """A configuration file."""

    output: Path = Path("runs/deeplab")  # folder of checkpoints, logs and reports
    seed: Annotated[int, Field(ge=0)] = 0
    device: str = "auto"  # auto takes a GPU where there is one
    data: DataConfig
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    crf: CRFConfig = CRFConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


def read_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file; `overrides` such as "training.lr=0.001" replace entries of it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no YAML, or an entry is unknown, missing or out of range: the message names each.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"configuration not found: {path}")
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"configuration {path}: is no readable YAML: {error}") from error
    if not isinstance(entries, dict):
        raise ValueError(f"configuration {path}: should hold sections (data, model, training, …)")
    for override in overrides:
        _replace(entries, override)
    return parse_config(entries, f"configuration {path}")


def parse_config(entries: dict[str, Any], source: str) -> Config:
    """A configuration from its entries; `source` is what errors call it.

    Raises:
        ValueError: as `read_config`.
    """
    try:
        return Config.model_validate(entries)
    except ValidationError as error:
        raise ValueError(f"{source}: " + "; ".join(map(_described, error.errors()))) from None


def _described(error: Any) -> str:
    # Of an entry that may be of several kinds, pydantic names the kind, too: constrained-int, list[str].
    place = ".".join(part for part in map(str, error["loc"]) if not re.fullmatch(r"constrained-\w+|.*\]", part))
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{place}: is missing"
    if error["type"] == "extra_forbidden":
        return f"{place}: is unknown"
    if error["type"] == "value_error":
        return f"{place}: {message}"
    return f"{place}: is {error['input']!r}: {message[:1].lower()}{message[1:]}"


def _replace(entries: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    if not equals or not all(name.split(".")):
        raise ArgumentError("overrides", override, "like training.lr=0.001")
    *sections, last = name.split(".")
    for section in sections:
        entries = entries.setdefault(section, {})
        if not isinstance(entries, dict):
            raise ArgumentError("overrides", override, f"about an entry, {section} is no section")
    try:
        entries[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ArgumentError("overrides", override, f"YAML after the =: {error}") from error
