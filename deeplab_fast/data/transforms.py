"""From photos to a network's input: as published DeepLab-v2 weights expect it, and as the published training does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from deeplab_fast.data._checks import checked_count
from deeplab_fast.data.resizing import nearest_indices
from deeplab_fast.data.sample import Sample
from deeplab_fast.errors import ArgumentError, ArgumentTypeError
from deeplab_fast.pictures import IGNORED

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Mean colour of ImageNet's photos, in the order blue, green, red, that Caffe's networks were trained with.
MEAN_BGR = (104.008, 116.669, 122.675)


def to_network(image: NDArray[np.uint8], mean_bgr: Sequence[float] = MEAN_BGR) -> Tensor:
    """A photo as input of a DeepLab-v2 network: its channels in the order B, G, R, in 0 to 255, less the mean.

    Args:
        image: uint8 (H, W, 3), RGB.
        mean_bgr: what is subtracted from blue, green and red.

    Returns:
        float32 (3, H, W), contiguous, on the CPU.

    Raises:
        TypeError, ValueError: if the image's dtype or shape is another.
    """
    _check_image("image", image)
    planes = np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1), np.float32)
    planes -= np.asarray(mean_bgr, np.float32)[:, None, None]
    return torch.from_numpy(planes)


class TrainingTransform:
    """A random crop at a random scale, mirrored or not: the augmentation of DeepLab-v2's training.

    1. One of `scales` is drawn, and image and labels are resized to int(size * scale), at least 1: the image
       bilinearly between its nearest pixels (as OpenCV's INTER_LINEAR; Pillow's BILINEAR would average over more where
       it makes smaller), the labels by Pillow's NEAREST.
    2. What is smaller than the crop is padded at the right and the bottom; the image with the mean colour, which is
       zero after the subtraction, the labels with `ignore_index`.
    3. A crop is cut out at a place drawn uniformly.
    4. With probability 1/2 it is mirrored, left to right.

    Four random numbers are drawn, in this order, whatever the sample: scale, top, left, mirrored.

    Args:
        crop: side of the result, pixels.
        scales: to draw from; positive.
        flip: whether to mirror.
        mean_bgr: mean colour; see `to_network`.
        ignore_index: label of padded pixels.

    Raises:
        TypeError, ValueError: if an argument is not as above.
    """

    def __init__(
        self,
        crop: int = 321,
        scales: Sequence[float] = (0.5, 0.75, 1, 1.25, 1.5),
        flip: bool = True,
        mean_bgr: Sequence[float] = MEAN_BGR,
        ignore_index: int = IGNORED,
    ):
        self.crop = checked_count("crop", crop, 1)
        self.scales = tuple(scales)
        if not self.scales or not all(scale > 0 and math.isfinite(scale) for scale in self.scales):
            raise ArgumentError("scales", self.scales, "one or more positive numbers")
        self.flip = flip
        self.mean_bgr = tuple(mean_bgr)
        if len(self.mean_bgr) != 3:
            raise ArgumentError("mean_bgr", self.mean_bgr, "three numbers")
        self.ignore_index = ignore_index

    def __repr__(self) -> str:
        return f"TrainingTransform(crop={self.crop}, scales={self.scales}, flip={self.flip})"

    def __call__(self, sample: Sample, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """A sample -> image float32 (3, crop, crop), labels int64 (crop, crop), both on the CPU.

        Raises:
            TypeError, ValueError: if image or labels have another dtype or shape, or there are no labels.
        """
        _check_image("image", sample.image, sample.name)
        if sample.label is None:
            raise ArgumentError("labels", None, "there for training", where=sample.name)
        height, width = sample.image.shape[:2]
        if sample.label.shape != (height, width):
            wanted = f"{(height, width)}, as the image"
            raise ArgumentError("labels", sample.label.shape, wanted, what="shape", where=sample.name)
        scale = self.scales[int(generator.integers(len(self.scales)))]
        scaled_height, scaled_width = max(1, int(height * scale)), max(1, int(width * scale))
        top = int(generator.integers(max(scaled_height - self.crop, 0) + 1))
        left = int(generator.integers(max(scaled_width - self.crop, 0) + 1))
        mirrored = bool(generator.integers(2)) and self.flip

        image = sample.image
        if (scaled_height, scaled_width) != (height, width):
            image = _resized(image, scaled_height, scaled_width)
        image = image[top : top + self.crop, left : left + self.crop]
        # The same pixels as Pillow's NEAREST, but only those of the crop.
        rows = nearest_indices(height, scaled_height)[top : top + self.crop]
        columns = nearest_indices(width, scaled_width)[left : left + self.crop]

        x = torch.zeros(3, self.crop, self.crop)
        x[:, : len(rows), : len(columns)] = to_network(image, self.mean_bgr)
        y = torch.full((self.crop, self.crop), self.ignore_index, dtype=torch.int64)
        y[: len(rows), : len(columns)] = torch.from_numpy(sample.label[rows[:, None], columns])
        return (x.flip(-1), y.flip(-1)) if mirrored else (x, y)


def _resized(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """An image (H, W, 3) at another size, bilinearly, rounded."""
    planes = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))[None]
    resized = interpolate(planes, (height, width), mode="bilinear", align_corners=False)[0]
    return resized.round().permute(1, 2, 0).numpy().astype(np.uint8)


def _check_image(name: str, image: Any, where: str = "") -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = str(getattr(image, "dtype", type(image).__name__))
        raise ArgumentTypeError(name, kind, "a uint8 array", what="type", where=where)
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ArgumentError(name, image.shape, "(H, W, 3) with H and W at least 1", what="shape", where=where)
