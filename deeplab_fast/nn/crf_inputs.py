"""What the layers of the dense CRF take: images, probabilities, and the features of pydensecrf's two kernels."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deeplab_fast._arguments import shape_of
from deeplab_fast.errors import ArgumentError, ArgumentTypeError


def spatial_features(image: Tensor, std: float) -> Tensor:
    """Of images (N, C, H, W): (x, y) / std, float32 (N, 2, H, W), as pydensecrf's two-dimensional methods make them."""
    size, device = image.shape[2:], image.device
    y, x = torch.meshgrid(*(torch.arange(length, device=device, dtype=torch.float32) for length in size), indexing="ij")
    return _divide(torch.stack([x, y]).expand(len(image), 2, *size), std)


def bilateral_features(image: Tensor, xy_std: float, rgb_std: float | Sequence[float]) -> Tensor:
    """Of images (N, C, H, W): (x, y) / xy_std and each channel / its rgb_std, float32 (N, 2 + C, H, W)."""
    return torch.cat([spatial_features(image, xy_std), _divide(image.float(), rgb_std)], dim=1)


def _divide(tensor: Tensor, by: float | Sequence[float]) -> Tensor:
    # By a number on the host, a GPU would multiply with its reciprocal, which rounds differently.
    def on_device(number: float) -> Tensor:
        return torch.full((), number, dtype=tensor.dtype, device=tensor.device)

    if isinstance(by, Sequence):  # filled in there, too: a copy to it could not be captured in a CUDA graph
        return tensor / torch.stack([on_device(number) for number in by])[:, None, None]
    return tensor / on_device(by)


def check_channels(image: Tensor, std: float | Sequence[float], name: str) -> None:
    """Raise ValueError if there is a standard deviation for each of some channels, but not for each of the image's."""
    if isinstance(std, Sequence) and len(std) != image.shape[-3]:
        raise ArgumentError(name, std, f"one number, or {image.shape[-3]}, one for each channel of the image")


def image_tensor(image: Tensor | np.ndarray, name: str = "image") -> Tensor:
    """As a tensor (C, H, W) or (N, C, H, W), sharing memory; `name` is what errors call it."""
    channels = -3
    if isinstance(image, np.ndarray):
        image, channels = _from_numpy(name, image), -1
    if not isinstance(image, Tensor):
        raise ArgumentTypeError(name, type(image), "a tensor or a numpy array")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ArgumentTypeError(name, image.dtype, "uint8 or floating", what="dtype")
    if image.ndim not in (3, 4) or image.shape[channels] == 0:
        wanted = (
            "(C, H, W) or (N, C, H, W) for a tensor" if channels == -3 else "(H, W, C) or (N, H, W, C) for an array"
        )
        raise ArgumentError(name, shape_of(image), f"{wanted}, with C at least 1", what="shape")
    return image if channels == -3 else image.movedim(-1, -3)


def prob_tensor(prob: Tensor | np.ndarray, name: str = "prob") -> Tensor:
    """As a tensor (K, H, W) or (N, K, H, W), sharing memory."""
    if isinstance(prob, np.ndarray):
        prob = _from_numpy(name, prob)
    if not isinstance(prob, Tensor):
        raise ArgumentTypeError(name, type(prob), "a tensor or a numpy array")
    if not prob.is_floating_point():
        raise ArgumentTypeError(name, prob.dtype, "floating", what="dtype")
    if prob.ndim not in (3, 4) or 0 in prob.shape[-3:]:
        raise ArgumentError(name, shape_of(prob), "(K, H, W) or (N, K, H, W) with K, H and W at least 1", what="shape")
    return prob


def _from_numpy(name: str, array: np.ndarray) -> Tensor:
    # torch refuses negative strides and other byte orders, and warns of arrays that cannot be written.
    if not array.dtype.isnative or any(stride < 0 for stride in array.strides) or not array.flags.writeable:
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise ArgumentTypeError(name, array.dtype, "floating", what="dtype") from error


def check_sizes(image: Tensor, prob: Tensor, names: tuple[str, str] = ("image", "prob")) -> None:
    """Raise ValueError where batches, sizes or devices of image and probabilities differ."""
    image_name, name = names
    if image.ndim != prob.ndim or image.shape[:-3] != prob.shape[:-3] or image.shape[-2:] != prob.shape[-2:]:
        shape = f"{shape_of(image)} with channels before height and width"
        wanted = f"of the batch, height and width of {image_name}, whose shape is {shape}"
        raise ArgumentError(name, shape_of(prob), wanted, what="shape")
    if image.device != prob.device:
        raise ArgumentError(name, prob.device, f"{image.device}, that of {image_name}", what="device")


def check_values(image: Tensor, prob: Tensor, names: tuple[str, str] = ("image", "prob")) -> None:
    """Raise ValueError for probabilities outside 0..1, three channels outside 0..255, and NaN; a GPU is waited for."""
    image_name, name = names
    if prob.numel() == 0 or (prob.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    slack = 1e-3 if prob.dtype.itemsize > 2 else 1e-2  # what rounding explains
    low, high = (bound.item() for bound in prob.detach().aminmax())
    if not (low >= -slack and high <= 1 + slack):
        raise ArgumentError(name, f"{low:.4g} to {high:.4g}", "probabilities in 0..1", what="values")
    if image.dtype == torch.uint8:
        return
    low, high = (bound.item() for bound in image.detach().aminmax())
    if image.shape[-3] != 3:  # of any unit
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ArgumentError(image_name, f"{low:.4g} to {high:.4g}", "finite", what="values")
        return
    if not (low >= 0 and high <= 255):
        raise ArgumentError(image_name, f"{low:.4g} to {high:.4g}", "in 0..255, not normalised", what="values")
    if 0 < high <= 1:
        warnings.warn(
            f"{image_name}: no value is above {high:.4g}; colours are expected in 0..255, not in 0..1", stacklevel=4
        )
