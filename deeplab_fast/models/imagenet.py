"""ImageNet weights as torchvision names them, for the trunks of DeepLab, FCN and LargeFOV."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from deeplab_fast.models.vgg import VGG16

# Of RGB in 0..1, as torchvision's models are trained; and of BGR in 0..255, as DeepLab takes images.
_RGB_MEAN, _RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BGR_MEAN = (104.008, 116.669, 122.675)

_BLOCK_PARTS = {"conv1": "reduce.conv", "bn1": "reduce.bn", "conv2": "conv3x3.conv", "bn2": "conv3x3.bn",
                "conv3": "increase.conv", "bn3": "increase.bn", "downsample.0": "shortcut.conv",
                "downsample.1": "shortcut.bn"}  # fmt: skip
_BLOCK = re.compile(rf"layer(\d)\.(\d+)\.({'|'.join(map(re.escape, _BLOCK_PARTS))})\.(\w+)")


class Renamed(NamedTuple):
    """Weights under the names of our models."""

    state: dict[str, Tensor]
    ignored: list[str]  # keys of the file that our models have nothing for


def layout(state: dict[str, Tensor]) -> Literal["resnet", "vgg"] | None:
    """Which of torchvision's networks has these keys, if one has."""
    if "conv1.weight" in state and "layer1.0.conv1.weight" in state:
        return "resnet"
    if "features.0.weight" in state and "features.28.weight" in state:
        return "vgg"
    return None


def from_resnet(state: dict[str, Tensor], convert_pixels: bool) -> Renamed:
    """ResNets of bottleneck blocks: keys of `DeepLabV2`, without the ASPP.

    Args:
        state: the file's.
        convert_pixels: see `for_bgr`.
    """
    renamed, ignored = {}, []
    for key, tensor in state.items():
        block = _BLOCK.fullmatch(key)
        if block is not None:
            layer, number, part, rest = block.groups()
            renamed[f"layer{int(layer) + 1}.block{int(number) + 1}.{_BLOCK_PARTS[part]}.{rest}"] = tensor
        elif key == "conv1.weight":
            renamed["layer1.conv1.conv.weight"] = tensor
        elif key.startswith("bn1."):
            renamed[f"layer1.conv1.{key.replace('bn1', 'bn')}"] = tensor
        elif key.startswith("fc."):
            ignored.append(key)
        else:
            renamed[key] = tensor
    mean = "layer1.conv1.bn.running_mean"
    if convert_pixels and mean in renamed:
        weight, shift = for_bgr(renamed["layer1.conv1.conv.weight"])
        # The batch norm takes its mean from the convolution, whose results are now smaller by the shift.
        renamed |= {"layer1.conv1.conv.weight": weight, mean: renamed[mean] - shift}
    return Renamed(renamed, ignored)


def from_vgg(state: dict[str, Tensor], convert_pixels: bool) -> Renamed:
    """VGG-16: keys of `FCN` without score layers; fc6 and fc7 as convolutions of 7×7 and 1×1.

    Args:
        state: the file's.
        convert_pixels: see `for_bgr`.

    Raises:
        ValueError: if it is VGG-16 with batch norm, or a deeper one.
    """
    names, index = {}, 0
    for i, (count, _) in enumerate(VGG16, start=1):
        for j in range(1, count + 1):
            names[f"features.{index}"] = f"conv{i}_{j}"
            index += 2  # a ReLU follows
        index += 1  # and a pool
    names |= {"classifier.0": "fc6", "classifier.3": "fc7"}
    renamed, ignored = {}, []
    for key, tensor in state.items():
        module, _, parameter = key.rpartition(".")
        if module in names:
            as_convolution = module.startswith("classifier") and parameter == "weight" and tensor.ndim == 2
            size = 7 if module == "classifier.0" else 1
            fits = as_convolution and tensor.shape[1] % size**2 == 0
            renamed[f"{names[module]}.{parameter}"] = tensor.reshape(len(tensor), -1, size, size) if fits else tensor
        elif module.startswith("features."):
            raise ValueError(f"has {key}, should be of VGG-16 without batch norm, which has no such layer")
        else:
            ignored.append(key)
    if convert_pixels and "conv1_1.bias" in renamed:
        weight, shift = for_bgr(renamed["conv1_1.weight"])
        renamed |= {"conv1_1.weight": weight, "conv1_1.bias": renamed["conv1_1.bias"] + shift}
    return Renamed(renamed, ignored)


def for_bgr(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Turn a first convolution on torchvision's images into one on ours.

    With x of RGB, scaled to mean 0 and standard deviation 1, and y of the same image, BGR in 0..255 minus the mean:
    conv(x, weight) = conv(y, converted) + shift, but for the border, where both are padded with their own mean.

    Args:
        weight: (K, 3, kh, kw).

    Returns:
        converted (K, 3, kh, kw), shift (K,).
    """
    std, mean, ours = (torch.tensor(values, dtype=torch.float64) for values in (_RGB_STD, _RGB_MEAN, _BGR_MEAN))
    converted = (weight.double() / (255 * std)[:, None, None]).flip(1)
    shift = (converted.sum((2, 3)) * (ours - 255 * mean.flip(0))).sum(1)
    return converted.to(weight.dtype), shift.to(weight.dtype)
