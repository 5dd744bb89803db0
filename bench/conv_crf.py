"""A convolutional CRF in plain PyTorch: the dense CRF's energies, but only of pixels within a window of each other.

Teichmann and Cipolla, "Convolutional CRFs for Semantic Segmentation" (BMVC 2019), written from the paper: exact
Gaussians, truncated, instead of all pairs, approximately.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

TINY = 1e-15  # what is less changes nothing, and its products are subnormal: ten times as long on a CPU


def conv_crf(
    image: Tensor,
    prob: Tensor,
    radius: int = 5,
    iterations: int = 10,
    pos_w: float = 3,
    pos_xy_std: float = 3,
    bi_w: float = 10,
    bi_xy_std: float = 50,
    bi_rgb_std: float = 5,
) -> Tensor:
    """Q (K, H, W) of an image (3, H, W), float in 0..255, and probabilities (K, H, W).

    `radius` is that of the window in pixels, whose side is 2·radius + 1; the rest as in the dense CRF.
    """
    unary = -prob.clamp(1e-5, 1).log()
    # Weights of each shift, (H, W): symmetrically normalised, as pydensecrf's.
    kernels = [
        _normalised(_weights(image, radius, pos_xy_std, None)),
        _normalised(_weights(image, radius, bi_xy_std, bi_rgb_std)),
    ]
    factors = [pos_w * spatial + bi_w * bilateral for spatial, bilateral in zip(*kernels, strict=True)]
    Q = torch.softmax(-unary, dim=0)
    for _ in range(iterations):
        message = torch.zeros_like(Q)
        for factor, shifted in zip(factors, _shifted(Q, radius), strict=True):
            message.addcmul_(factor, shifted)
        Q = torch.softmax(message - unary, dim=0).clamp(min=TINY)
    return Q


def _shifts(radius: int) -> Iterator[tuple[int, int]]:
    side = range(-radius, radius + 1)
    return itertools.product(side, side)


def _shifted(maps: Tensor, radius: int) -> Iterator[Tensor]:
    """Maps (C, H, W), moved by each shift of the window; zero from outside."""
    height, width = maps.shape[1:]
    padded = pad(maps, (radius,) * 4)
    for down, right in _shifts(radius):
        top, left = radius + down, radius + right
        yield padded[:, top : top + height, left : left + width]


def _weights(image: Tensor, radius: int, xy_std: float, rgb_std: float | None) -> list[Tensor]:
    """exp(-|f_i - f_j|²/2) of each pixel and that at each shift, 0 outside the image."""
    inside = torch.ones_like(image[:1])
    found = []
    for (down, right), there, other in zip(
        _shifts(radius), _shifted(inside, radius), _shifted(image, radius), strict=True
    ):
        distance = torch.full_like(inside[0], (down**2 + right**2) / xy_std**2)
        if rgb_std is not None:
            distance = distance + ((image - other) / rgb_std).square().sum(dim=0)
        weight = torch.exp(-0.5 * distance) * there[0]
        found.append(torch.where(weight < TINY, 0, weight))
    return found


def _normalised(weights: list[Tensor]) -> list[Tensor]:
    total = sum(weights, torch.zeros_like(weights[0]))
    factor = total.rsqrt()
    radius = (round(len(weights) ** 0.5) - 1) // 2
    return [weight * factor * other[0] for weight, other in zip(weights, _shifted(factor[None], radius), strict=True)]
