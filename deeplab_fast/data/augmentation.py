"""Augmentation beside that of the published recipe: colours, sharpness and orientation of a photo, by Pillow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from deeplab_fast.errors import ArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A photo, uint8 (H, W, 3), RGB, and random numbers -> the photo changed, of the same shape; its labels stay.
Photometric = Callable[["NDArray[np.uint8]", np.random.Generator], "NDArray[np.uint8]"]


class ColorJitter:
    """Brightness, contrast, saturation and hue, each changed at random, in this order.

    Four random numbers are drawn, whatever the arguments.

    Args:
        brightness, contrast, saturation: the factor is drawn uniformly from 1 - x to 1 + x, but at least 0.
        hue: the shift is drawn uniformly from -x to x, in turns of the colour wheel; at most 0.5.

    Raises:
        ValueError: if an argument is negative, or `hue` larger than 0.5.
    """

    def __init__(self, brightness: float = 0, contrast: float = 0, saturation: float = 0, hue: float = 0):
        given = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
        for name, value in given.items():
            if not 0 <= value < math.inf:
                raise ArgumentError(name, value, "0 or more")
        if hue > 0.5:
            raise ArgumentError("hue", hue, "at most 0.5, half a turn")
        self.strengths, self.hue = (brightness, contrast, saturation), hue

    def __call__(self, image: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
        """uint8 (H, W, 3), RGB -> the same."""
        draws = generator.uniform(-1, 1, 4)
        picture = Image.fromarray(image)
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for enhancer, strength, draw in zip(enhancers, self.strengths, draws, strict=False):
            if strength:
                picture = enhancer(picture).enhance(max(0.0, 1 + strength * float(draw)))
        shift = round(256 * self.hue * float(draws[3]))
        if shift:
            hue, *others = picture.convert("HSV").split()
            turned = hue.point([(value + shift) % 256 for value in range(256)])
            picture = Image.merge("HSV", (turned, *others)).convert("RGB")
        return np.array(picture)


class Blur:
    """A Gaussian blur, now and then.

    Two random numbers are drawn, whether it blurs or not.

    Args:
        probability: of a blur.
        sigma: least and largest standard deviation, pixels, drawn uniformly.

    Raises:
        ValueError: if `probability` is not in 0..1, or `sigma` no two numbers of at least 0, in order.
    """

    def __init__(self, probability: float = 0.5, sigma: tuple[float, float] = (0.1, 2.0)):
        if not 0 <= probability <= 1:
            raise ArgumentError("probability", probability, "in 0..1")
        if not (len(sigma) == 2 and 0 <= sigma[0] <= sigma[1] < math.inf):
            raise ArgumentError("sigma", sigma, "two numbers of at least 0, the smaller first")
        self.probability, self.sigma = probability, sigma

    def __call__(self, image: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
        """uint8 (H, W, 3), RGB -> the same."""
        drawn, sigma = generator.random(), generator.uniform(*self.sigma)
        if drawn >= self.probability:
            return image
        return np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def rotated(
    picture: Image.Image,
    box: tuple[int, int, int, int],
    degrees: float,
    resample: Image.Resampling,
    fill: int | tuple[int, int, int],
) -> Image.Image:
    """The part of a picture in a box that is turned about its centre.

    Args:
        picture: in any mode.
        box: left, top, width and height, pixels.
        degrees: counter-clockwise.
        resample: NEAREST or BILINEAR.
        fill: the colour of what lies outside the picture.
    """
    left, top, width, height = box
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # Where a point (x, y) of the result lies in the picture; y points down.
    x, y = left + width / 2, top + height / 2
    matrix = (cos, -sin, x - cos * width / 2 + sin * height / 2, sin, cos, y - sin * width / 2 - cos * height / 2)
    return picture.transform((width, height), Image.Transform.AFFINE, matrix, resample, fillcolor=fill)
