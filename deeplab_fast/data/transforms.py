"""From photos to a network's input: as published DeepLab-v2 weights expect it, and as the published training does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from deeplab_fast.data._checks import checked_count
from deeplab_fast.data.augmentation import Photometric, rotated
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
    3. A crop is cut out at a place drawn uniformly; with `rotation` it is turned about its centre, bilinearly, the
       labels by the nearest pixel. What comes from outside the image is as in 2. Then comes what is `photometric`.
    4. With probability 1/2 it is mirrored, left to right.

    Four random numbers are drawn, in this order, whatever the sample: scale, top, left, mirrored. What is not in the
    published recipe, and off unless it is asked for, draws after them.

    Args:
        crop: side of the result, pixels.
        scales: to draw from; positive.
        flip: whether to mirror.
        mean_bgr: mean colour; see `to_network`.
        ignore_index: label of padded pixels.
        rotation: the angle is drawn uniformly from -x to x, degrees; 0 to 180.
        photometric: what else changes the cropped photo, in order: `ColorJitter`, `Blur`, or functions
            of one's own, (uint8 (H, W, 3) RGB, numpy generator) -> the same, which take random numbers from there only.

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
        *,
        rotation: float = 0,
        photometric: Sequence[Photometric] = (),
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
        if not 0 <= rotation <= 180:
            raise ArgumentError("rotation", rotation, "in 0..180, degrees")
        self.rotation = rotation
        self.photometric = tuple(photometric)

    def __repr__(self) -> str:
        more = f", rotation={self.rotation}" if self.rotation else ""
        more += f", {len(self.photometric)} photometric" if self.photometric else ""
        return f"TrainingTransform(crop={self.crop}, scales={self.scales}, flip={self.flip}{more})"

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
        degrees = float(generator.uniform(-self.rotation, self.rotation)) if self.rotation else 0.0

        image = sample.image
        if (scaled_height, scaled_width) != (height, width):
            image = _resized(image, scaled_height, scaled_width)
        rows, columns = nearest_indices(height, scaled_height), nearest_indices(width, scaled_width)
        part = slice(top, top + self.crop), slice(left, left + self.crop)
        outside: NDArray[np.bool_] | None = None
        if degrees:
            label = sample.label[rows[:, None], columns]
            image, label, outside = self._turned(image, label, part, degrees)
        else:
            # The same pixels as Pillow's NEAREST, but only those of the crop.
            image, label = image[part], sample.label[rows[part[0], None], columns[part[1]]]
        for change in self.photometric:
            image = change(image, generator)
        pixels = to_network(image, self.mean_bgr)
        if outside is not None:
            pixels[:, torch.from_numpy(outside)] = 0

        x = torch.zeros(3, self.crop, self.crop)
        x[:, : label.shape[0], : label.shape[1]] = pixels
        y = torch.full((self.crop, self.crop), self.ignore_index, dtype=torch.int64)
        y[: label.shape[0], : label.shape[1]] = torch.from_numpy(label)
        return (x.flip(-1), y.flip(-1)) if mirrored else (x, y)

    def _turned(
        self, image: NDArray[np.uint8], label: NDArray[np.int64], part: tuple[slice, slice], degrees: float
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_]]:
        """Image and labels of a part that is turned, and where it lies outside the image."""
        top, left = part[0].start, part[1].start
        height, width = label[part].shape
        box = left, top, width, height
        red, green, blue = (round(mean) for mean in self.mean_bgr[::-1])
        nearest, bilinear = Image.Resampling.NEAREST, Image.Resampling.BILINEAR
        turned = rotated(Image.fromarray(image), box, degrees, bilinear, (red, green, blue))
        labels = rotated(Image.fromarray(label.astype(np.int32)), box, degrees, nearest, self.ignore_index)
        inside = rotated(Image.new("L", label.shape[::-1], 255), box, degrees, nearest, 0)
        return np.array(turned), np.array(labels).astype(np.int64), np.array(inside) == 0


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
