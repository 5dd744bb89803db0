"""Segmentation networks: DeepLab-v1 and v2, FCN and U-Net, and their published weights.

Every model takes floating images (N, 3, H, W) and gives scores (N, K, h, w); in `deeplab_fast.nn.MSC`, in training, a
list of them.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from deeplab_fast.errors import ArgumentError, ArgumentTypeError
from deeplab_fast.models.deeplab import DeepLabV2, deeplabv2_resnet101, deeplabv2_small
from deeplab_fast.models.fcn import FCN, fcn8s_vgg16, fcn16s_vgg16, fcn32s_vgg16
from deeplab_fast.models.layers import freeze_batch_norm
from deeplab_fast.models.unet import UNet, unet
from deeplab_fast.models.vgg import DeepLabVGG16, deeplabv1_vgg16, deeplabv2_vgg16
from deeplab_fast.models.weight_names import WeightsError
from deeplab_fast.models.weights import WeightsReport, classifier_modules, load_weights, read_state

__all__ = [
    "FCN",
    "NAMES",
    "DeepLabV2",
    "DeepLabVGG16",
    "UNet",
    "WeightsError",
    "WeightsReport",
    "classifier_modules",
    "create",
    "deeplabv1_vgg16",
    "deeplabv2_resnet101",
    "deeplabv2_small",
    "deeplabv2_vgg16",
    "fcn8s_vgg16",
    "fcn16s_vgg16",
    "fcn32s_vgg16",
    "freeze_batch_norm",
    "load_weights",
    "read_state",
    "unet",
]

_MAKERS = {
    maker.__name__: maker
    for maker in (
        deeplabv2_resnet101,
        deeplabv2_small,
        deeplabv2_vgg16,
        deeplabv1_vgg16,
        fcn32s_vgg16,
        fcn16s_vgg16,
        fcn8s_vgg16,
        unet,
    )
}

# Of the models that `create` makes.
NAMES: tuple[str, ...] = tuple(_MAKERS)


def create(name: str, num_classes: int, **options: Any) -> nn.Module:
    """The model of that name, one of `NAMES`.

    Args:
        name: of the function in this package that makes it.
        num_classes: K.
        **options: its other arguments, `msc=False` for example.

    Raises:
        ValueError: for an unknown name, and as the function does.
        TypeError: for an option that the model does not have, and as the function does.
    """
    if name not in _MAKERS:
        raise ArgumentError("name", name, f"one of {', '.join(NAMES)}")
    known = [option for option in inspect.signature(_MAKERS[name]).parameters if option != "num_classes"]
    for option in options:
        if option not in known:
            wanted = f"one of {', '.join(known)}" if known else f"left out, {name} has none"
            raise ArgumentTypeError("options", option, wanted)
    return _MAKERS[name](num_classes, **options)
