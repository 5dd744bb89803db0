"""The pairwise energy of scores, in plain PyTorch: what `deeplab_fast.nn.DenseCRFLoss` is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from deeplab_fast.reference.permutohedral_filter import permutohedral_filter


def scaled(values: Tensor, factor: float) -> Tensor:
    """Maps (N, C, H, W) resized bilinearly by `factor`: (N, C, int(H·factor), int(W·factor))."""
    return values if factor == 1 else interpolate(values, scale_factor=factor, mode="bilinear", align_corners=False)


def pairwise_energy(
    values: Tensor,
    features: Tensor,
    inside: Tensor | None = None,
    factor: float = 1.0,
    both_ways: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """sum_c S_cᵀ A S_c of every image, with S = inside · scaled(values) and A the permutohedral filter; its gradient.

    Args:
        values: (N, C, H, W), floating.
        features: (N, D, h, w), h = int(H·factor) and w likewise.
        inside: (N, 1, h, w), or None for 1.
        factor: by which values are resized, bilinearly.
        both_ways: what computes (A + Aᵀ) S from S and features, instead of two filterings here.

    Returns:
        The energies (N,), and the gradient to scaled(values), inside · (A + Aᵀ) S, (N, C, h, w).
    """
    S = scaled(values, factor)
    S = S if inside is None else S * inside
    both = (both_ways or _both_ways)(S, features)
    energy = torch.linalg.vecdot(S.flatten(1), both.flatten(1)) / 2  # Sᵀ(A + Aᵀ)S is twice SᵀAS
    return energy, both if inside is None else both * inside


def _both_ways(S: Tensor, features: Tensor) -> Tensor:
    return permutohedral_filter(S, features) + permutohedral_filter(S, features, reverse=True)


def pairwise_energy_backward(grad: Tensor, gradient: Tensor, size: Sequence[int], factor: float) -> Tensor:
    """The gradient to values, (N, C, *size), from that to the energies, (N,), and what `pairwise_energy` returned."""
    gradient = gradient * grad[:, None, None, None]
    if factor == 1:
        return gradient
    shape = [*gradient.shape[:2], *size]
    return torch.ops.aten.upsample_bilinear2d_backward(gradient, gradient.shape[2:], shape, False, factor, factor)
