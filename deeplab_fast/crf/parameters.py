"""The parameters of the dense CRF, and the sets of them that well-known segmentation projects publish."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deeplab_fast.errors import ArgumentError, ArgumentTypeError, one_of


@dataclass(frozen=True)
class CRFParameters:
    """Parameters of the two kernels and the number of mean-field iterations.

    Attributes:
        pos_w: weight of the spatial (smoothness) kernel.
        pos_xy_std: its standard deviation, pixels.
        bi_w: weight of the bilateral (appearance) kernel.
        bi_xy_std: its standard deviation in position, pixels.
        bi_rgb_std: its standard deviation in colour, grey levels of 0..255; a number, or one for each channel, which
            are kept as a tuple.
        iterations: mean-field iterations; 0 returns the probabilities given.

    Raises:
        TypeError: if ``iterations`` is no whole number, or a standard deviation is no number.
        ValueError: if a standard deviation is not positive, or anything is not finite.
    """

    pos_w: float = 3.0
    pos_xy_std: float = 1.0
    bi_w: float = 4.0
    bi_xy_std: float = 67.0
    bi_rgb_std: float | tuple[float, ...] = 3.0
    iterations: int = 10

    def __post_init__(self) -> None:
        for name in ("pos_w", "bi_w"):
            value = getattr(self, name)
            if not math.isfinite(value):
                raise ArgumentError(name, value, "a finite number")
        object.__setattr__(self, "bi_rgb_std", deviations("bi_rgb_std", self.bi_rgb_std))
        for name in ("pos_xy_std", "bi_xy_std", "bi_rgb_std"):
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                if not (math.isfinite(number) and number > 0):
                    raise ArgumentError(name, number, "a positive number")
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, (int, np.integer)):
            raise ArgumentTypeError("iterations", self.iterations, "a whole number")
        if self.iterations < 0:
            raise ArgumentError("iterations", self.iterations, "at least 0")


def deviations(name: str, value: float | Iterable[float]) -> float | tuple[float, ...]:
    """Standard deviations of an image's channels: one for all as it is, one for each as a tuple of floats.

    Raises:
        TypeError: if it is neither.
    """
    given: Any = value  # to type checkers, `ndim` tells nothing
    numbers: tuple[float, ...] = ()
    with contextlib.suppress(TypeError, ValueError):
        numbers = (float(given),) if np.ndim(given) == 0 else tuple(float(number) for number in given)
    if not numbers or isinstance(value, str):
        raise ArgumentTypeError(name, value, "a number or one for each channel")
    return given if np.ndim(given) == 0 else numbers


PRESETS: dict[str, CRFParameters] = {
    "deeplab": CRFParameters(pos_w=3, pos_xy_std=1, bi_w=4, bi_xy_std=67, bi_rgb_std=3),
    "irn": CRFParameters(pos_w=3, pos_xy_std=3, bi_w=10, bi_xy_std=50, bi_rgb_std=5),
    "psa": CRFParameters(pos_w=3, pos_xy_std=3, bi_w=10, bi_xy_std=80, bi_rgb_std=13),
    "afa": CRFParameters(pos_w=3, pos_xy_std=3, bi_w=4, bi_xy_std=64, bi_rgb_std=5),
}


def parameters(preset: str | CRFParameters = "deeplab", **overrides: Any) -> CRFParameters:
    """A preset by name, with some of its parameters replaced; an override of ``None`` is left out."""
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise ArgumentError("preset", preset, one_of([*PRESETS]))
        preset = PRESETS[preset]
    return replace(preset, **{name: value for name, value in overrides.items() if value is not None})
