"""The section `training` of a configuration: the recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationInfo, field_validator

from deeplab_fast.config.section import NonNegative, Section

Decay = Annotated[float, Field(ge=0, lt=1)]


class CRFLossConfig(Section):
    """Arguments of `deeplab_fast.nn.DenseCRFLoss`, added to the cross entropy."""

    weight: float = 2e-9
    sigma_rgb: PositiveFloat = 15
    sigma_xy: PositiveFloat = 100
    scale_factor: PositiveFloat = 0.5
    normalized: bool = False


class OHEMConfig(Section):
    """Online hard example mining: only the pixels of a batch that the network gets wrong are learnt from.

    A pixel is hard if the probability of its class is below `threshold`; if fewer than the share `min_kept` of the
    labelled pixels are, the hardest are taken up to that share. In several processes each one chooses among its own.
    """

    threshold: Annotated[float, Field(gt=0, le=1)] = 0.7
    min_kept: Annotated[float, Field(gt=0, le=1)] = 0.1


class LossConfig(Section):
    """What is minimised, beside `crf_loss`: cross entropy, and more if wanted.

    class_weights: how much the pixels of each class count, in the order of the classes, or by name, those not named
    as 1; the mean is then weighted, as that of `torch.nn.CrossEntropyLoss`. label_smoothing: of the same. dice: weight
    of a soft Dice loss that is added, 1 less the mean Dice coefficient of the classes that the batch shows.
    """

    class_weights: Annotated[list[NonNegative], Field(min_length=1)] | dict[str, NonNegative] | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    ohem: OHEMConfig | None = None  # {} for its defaults
    dice: NonNegative = 0.0


class ColorJitterConfig(Section):
    """Arguments of `deeplab_fast.data.ColorJitter`: factors from 1 - x to 1 + x, and a shift of the hue by -x to x."""

    brightness: NonNegative = 0.0
    contrast: NonNegative = 0.0
    saturation: NonNegative = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0


class BlurConfig(Section):
    """Arguments of `deeplab_fast.data.Blur`: how often, and its standard deviation, least and largest, pixels."""

    probability: Annotated[float, Field(ge=0, le=1)] = 0.5
    sigma: tuple[NonNegative, NonNegative] = (0.1, 2.0)

    @field_validator("sigma")
    @classmethod
    def _ordered(cls, sigma: tuple[float, float]) -> tuple[float, float]:
        if sigma[0] > sigma[1]:
            raise ValueError(f"is {list(sigma)}, should have the smaller first")
        return sigma


class TrainingConfig(Section):
    """The recipe: Chen et al., TPAMI 2018. The defaults are those published for PASCAL VOC.

    The learning rate falls by `power` ("poly"); in the first `warmup` steps it is multiplied by a factor that rises
    evenly from `warmup_factor` to 1, step by step. AdamW (Loshchilov and Hutter, ICLR 2019) takes the same groups of
    parameters as SGD, with their factors; it needs a smaller `lr` than SGD, such as 6e-5.

    Stages that are `frozen` are not trained, and their batch norm stays as it is: the first so many, or those named,
    layer1 to layer5 of a ResNet, conv1 to conv5 of VGG, down1 to down5 of U-Net.

    With `ema` the weights that are evaluated and saved are a moving average, of which that share stays in a step.
    After `early_stopping` evaluations in a row without a better mean IoU a training ends. `keep` is the number of
    earlier checkpoints, step-N.pth, that are kept beside last.pth and best.pth: one every `checkpoint_every` steps.

    `logger` names a function of one's own, "my_module:make_logger", which is called with the configuration and returns
    a `deeplab_fast.training.Logger`, or a function of step and values, that is told what log.csv is.
    """

    iterations: PositiveInt = 20_000  # steps of the optimizer
    batch_size: PositiveInt = 5  # in each process
    accumulation: PositiveInt = 2  # batches a step
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = 2.5e-4
    frozen: NonNegativeInt | list[str] = 0
    momentum: Decay = 0.9  # of SGD
    betas: tuple[Decay, Decay] = (0.9, 0.999)  # of AdamW
    weight_decay: NonNegative = 5e-4
    classifier_factor: PositiveFloat = 10  # how much faster the classifier learns; 1 where everything starts anew
    power: PositiveFloat = 0.9
    lr_every: PositiveInt = 10  # steps between changes of the learning rate
    warmup: NonNegativeInt = 0  # steps
    warmup_factor: Annotated[float, Field(gt=0, le=1)] = 0.01
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None  # 0.999, for example
    gradient_clip: PositiveFloat | None = None  # largest norm of all gradients together; larger ones are scaled down
    crop: PositiveInt = 321
    scales: list[PositiveFloat] = Field(default=[0.5, 0.75, 1, 1.25, 1.5], min_length=1)
    flip: bool = True
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0  # largest angle to either side, degrees
    color_jitter: ColorJitterConfig | None = None
    blur: BlurConfig | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    workers: Annotated[int, Field(ge=0)] = 4
    loss: LossConfig = LossConfig()
    crf_loss: CRFLossConfig | None = None
    evaluate_every: Annotated[int, Field(ge=0)] = 1000  # steps; 0: never
    early_stopping: PositiveInt | None = None  # evaluations
    checkpoint_every: PositiveInt = 1000
    keep: NonNegativeInt = 0
    log_every: PositiveInt = 10
    tensorboard: bool = False
    logger: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")] | None = None

    @field_validator("warmup")
    @classmethod
    def _ends(cls, warmup: int, info: ValidationInfo) -> int:
        iterations = info.data.get("iterations")  # None if it is wrong itself
        if iterations is not None and warmup >= iterations:
            raise ValueError(f"is {warmup}, should be below iterations, {iterations}")
        return warmup

    @field_validator("early_stopping")
    @classmethod
    def _evaluated(cls, patience: int | None, info: ValidationInfo) -> int | None:
        if patience is not None and info.data.get("evaluate_every") == 0:
            raise ValueError(f"is {patience}, should be null where evaluate_every is 0: nothing is evaluated")
        return patience
