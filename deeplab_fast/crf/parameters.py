"""The parameters of the dense CRF, and the sets of them that well-known segmentation projects publish."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deeplab_fast.errors import ArgumentError, ArgumentTypeError, one_of

NORMALIZATIONS = ("none", "before", "after", "symmetric")  # each at the place that is pydensecrf's number for it


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
        normalization: of both kernels, as `deeplab_fast.dense_crf` has it: "symmetric", "before", "after" or "none".

    Raises:
        TypeError: if ``iterations`` is no whole number, or a standard deviation is no number.
        ValueError: if a standard deviation is not positive, anything is not finite, or the normalization is unknown.
    """

    pos_w: float = 3.0
    pos_xy_std: float = 1.0
    bi_w: float = 4.0
    bi_xy_std: float = 67.0
    bi_rgb_std: float | tuple[float, ...] = 3.0
    iterations: int = 10
    normalization: str = "symmetric"

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
        if self.normalization not in NORMALIZATIONS:
            raise ArgumentError("normalization", self.normalization, one_of(NORMALIZATIONS))


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


# Sources are in the docstring of `parameters`.
PRESETS: dict[str, CRFParameters] = {
    "deeplab": CRFParameters(pos_w=3, pos_xy_std=1, bi_w=4, bi_xy_std=67, bi_rgb_std=3),
    "irn": CRFParameters(pos_w=3, pos_xy_std=3, bi_w=10, bi_xy_std=50, bi_rgb_std=5),
    "psa": CRFParameters(pos_w=3, pos_xy_std=3, bi_w=10, bi_xy_std=80, bi_rgb_std=13),
    "afa": CRFParameters(pos_w=3, pos_xy_std=3, bi_w=4, bi_xy_std=64, bi_rgb_std=5),
    "toco": CRFParameters(pos_w=1, pos_xy_std=1, bi_w=4, bi_xy_std=121, bi_rgb_std=5),
    "toco-cam": CRFParameters(pos_w=3, pos_xy_std=3, bi_w=4, bi_xy_std=36, bi_rgb_std=3),
    "cutler": CRFParameters(pos_w=7, pos_xy_std=3, bi_w=10, bi_xy_std=50, bi_rgb_std=5),
    "mctformer": CRFParameters(pos_w=3, pos_xy_std=4, bi_w=3, bi_xy_std=83, bi_rgb_std=5),
    "fma": CRFParameters(pos_w=2, pos_xy_std=2, bi_w=4, bi_xy_std=65, bi_rgb_std=3),
    "stego": CRFParameters(pos_w=3, pos_xy_std=1, bi_w=4, bi_xy_std=67, bi_rgb_std=3),
    "scenedino": CRFParameters(pos_w=3, pos_xy_std=0.3, bi_w=4, bi_xy_std=20, bi_rgb_std=3),
    "manga": CRFParameters(
        pos_w=3, pos_xy_std=1, bi_w=20, bi_xy_std=23, bi_rgb_std=7, iterations=5, normalization="none"
    ),
}


def parameters(preset: str | CRFParameters = "deeplab", **overrides: Any) -> CRFParameters:
    """A preset by name, with some of its parameters replaced; an override of ``None`` is left out.

    A preset is what a method's published code calls pydensecrf with:

    - "deeplab": Chen et al., "DeepLab" (TPAMI 2018), as its reimplementations in PyTorch have it; CLIP-ES, ExCEL.
    - "irn": Ahn, Cho and Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations" (CVPR
      2019): labels made of class activation maps.
    - "psa": Ahn and Kwak, "Learning Pixel-level Semantic Affinity" (CVPR 2018); MCTformer on class activation maps.
    - "afa": Ru et al., "Learning Affinity from Attention" (CVPR 2022), and WeCLIP+.
    - "toco", "toco-cam": Ru et al., "Token Contrast" (CVPR 2023): on a network's scores, and on class activation maps.
      The first in SeCo and DuPL, too.
    - "cutler": Wang et al., "Cut and Learn for Unsupervised Object Detection and Instance Segmentation" (CVPR 2023),
      on the masks of MaskCut; UnionCut.
    - "mctformer": Xu et al., "Multi-class Token Transformer" (CVPR 2022), on the final scores.
    - "fma": Yang and Gong, "Foundation Model Assisted Weakly Supervised Semantic Segmentation" (WACV 2024).
    - "stego": Hamilton et al., "Unsupervised Semantic Segmentation by Distilling Feature Correspondences" (ICLR 2022),
      and HP, EAGLE, CAUSE, PriMaPs and CUPS; the numbers of "deeplab".
    - "scenedino": Jevtić et al., "Feed-Forward SceneDINO" (ICCV 2025).
    - "manga": manga-image-translator, on masks of text; kernels that are not normalised.

    Raises:
        ValueError: for an unknown name, and as `CRFParameters` does.
        TypeError: as it does.
    """
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise ArgumentError("preset", preset, one_of([*PRESETS]))
        preset = PRESETS[preset]
    return replace(preset, **{name: value for name, value in overrides.items() if value is not None})
