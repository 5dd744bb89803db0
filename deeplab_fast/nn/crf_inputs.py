"""What the layers of the dense CRF take: images and probabilities, checked.

`axes` is the number of spatial axes: 2 of photos, 3 of volumes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deeplab_fast._arguments import may_look_at_values, shape_of
from deeplab_fast.errors import ArgumentError, ArgumentTypeError


def check_channels(image: Tensor, std: float | Sequence[float], name: str, axes: int = 2) -> None:
    """Raise ValueError if there is a standard deviation for each of some channels, but not for each of the image's."""
    channels = image.shape[-1 - axes]
    if isinstance(std, Sequence) and len(std) != channels:
        raise ArgumentError(name, std, f"one number, or {channels}, one for each channel of the image")


def image_tensor(image: Tensor | np.ndarray, name: str = "image", axes: int = 2) -> Tensor:
    """As a tensor (C, *S) or (N, C, *S), sharing memory; `name` is what errors call it."""
    channels = -1 - axes
    if isinstance(image, np.ndarray):
        image = _from_numpy(name, image)
        channels = -1 if axes == 2 else channels  # of volumes they are first in arrays, too
    if not isinstance(image, Tensor):
        raise ArgumentTypeError(name, type(image), "a tensor or a numpy array")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ArgumentTypeError(name, image.dtype, "uint8 or floating", what="dtype")
    if image.ndim not in (1 + axes, 2 + axes) or image.shape[channels] == 0:
        photo = "(C, H, W) or (N, C, H, W) for a tensor" if channels != -1 else "(H, W, C) or (N, H, W, C) for an array"
        wanted = photo if axes == 2 else "(C, D, H, W) or (N, C, D, H, W)"
        raise ArgumentError(name, shape_of(image), f"{wanted}, with C at least 1", what="shape")
    return image.movedim(channels, -1 - axes)


def prob_tensor(prob: Tensor | np.ndarray, name: str = "prob", axes: int = 2) -> Tensor:
    """As a tensor (K, *S) or (N, K, *S), sharing memory."""
    if isinstance(prob, np.ndarray):
        prob = _from_numpy(name, prob)
    if not isinstance(prob, Tensor):
        raise ArgumentTypeError(name, type(prob), "a tensor or a numpy array")
    if not prob.is_floating_point():
        raise ArgumentTypeError(name, prob.dtype, "floating", what="dtype")
    if prob.ndim not in (1 + axes, 2 + axes) or 0 in prob.shape[-1 - axes :]:
        wanted = "(K, H, W) or (N, K, H, W) with K" if axes == 2 else "(K, D, H, W) or (N, K, D, H, W) with K, D"
        raise ArgumentError(name, shape_of(prob), f"{wanted}, H and W at least 1", what="shape")
    return prob


def _from_numpy(name: str, array: np.ndarray) -> Tensor:
    # torch refuses negative strides and other byte orders, and warns of arrays that cannot be written.
    if not array.dtype.isnative or any(stride < 0 for stride in array.strides) or not array.flags.writeable:
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise ArgumentTypeError(name, array.dtype, "floating", what="dtype") from error


def check_sizes(image: Tensor, prob: Tensor, names: tuple[str, str] = ("image", "prob"), axes: int = 2) -> None:
    """Raise ValueError where batches, sizes or devices of image and probabilities differ."""
    image_name, name = names
    batch = -1 - axes
    if (
        image.ndim != prob.ndim
        or image.shape[:batch] != prob.shape[:batch]
        or image.shape[-axes:] != prob.shape[-axes:]
    ):
        sides = "height and width" if axes == 2 else "depth, height and width"
        shape = f"{shape_of(image)} with channels before {sides}"
        wanted = f"of the batch, {sides} of {image_name}, whose shape is {shape}"
        raise ArgumentError(name, shape_of(prob), wanted, what="shape")
    if image.device != prob.device:
        raise ArgumentError(name, prob.device, f"{image.device}, that of {image_name}", what="device")


def check_values(image: Tensor, prob: Tensor, names: tuple[str, str] = ("image", "prob"), axes: int = 2) -> None:
    """Raise ValueError for probabilities outside 0..1, RGB outside 0..255, and NaN, where values may be looked at.

    A GPU is waited for.
    """
    image_name, name = names
    if prob.numel() == 0 or not may_look_at_values(prob):
        return
    slack = 1e-3 if prob.dtype.itemsize > 2 else 1e-2  # what rounding explains
    low, high = (bound.item() for bound in prob.detach().aminmax())
    if not (low >= -slack and high <= 1 + slack):
        raise ArgumentError(name, f"{low:.4g} to {high:.4g}", "probabilities in 0..1", what="values")
    if image.dtype == torch.uint8:
        return
    low, high = (bound.item() for bound in image.detach().aminmax())
    if axes != 2 or image.shape[-3] != 3:  # of any unit
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ArgumentError(image_name, f"{low:.4g} to {high:.4g}", "finite", what="values")
        return
    if not (low >= 0 and high <= 255):
        raise ArgumentError(image_name, f"{low:.4g} to {high:.4g}", "in 0..255, not normalised", what="values")
    if 0 < high <= 1:
        warnings.warn(
            f"{image_name}: no value is above {high:.4g}; colours are expected in 0..255, not in 0..1", stacklevel=4
        )
