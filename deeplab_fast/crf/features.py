"""The features of pydensecrf's two kernels, as tensors: bit for bit those of `deeplab_fast.crf.refine`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def spatial_features(image: Tensor, std: float, spacing: Sequence[float] | None = None) -> Tensor:
    """Positions in units of `std`, float32, of images (N, C, *S): (N, 2 or 3, *S).

    Of photos (x, y), as pydensecrf's two-dimensional methods make them; of volumes (z, y, x), as its
    `create_pairwise_gaussian` does. `spacing` is that of each spatial axis, in the tensor's order.
    """
    size, device = image.shape[2:], image.device
    coordinates = [torch.arange(length, device=device, dtype=torch.float32) for length in size]
    steps = (1.0,) * len(size) if spacing is None else spacing
    grid = torch.meshgrid(
        *(_divide(one, std / step) for one, step in zip(coordinates, steps, strict=True)), indexing="ij"
    )
    return torch.stack(grid[::-1] if len(size) == 2 else grid).expand(len(image), len(size), *size)


def bilateral_features(
    image: Tensor, xy_std: float, rgb_std: float | Sequence[float], spacing: Sequence[float] | None = None
) -> Tensor:
    """Positions / xy_std and each channel / its rgb_std, of images (N, C, *S): float32 (N, 2 or 3 + C, *S)."""
    return torch.cat([spatial_features(image, xy_std, spacing), _divide(image.float(), rgb_std)], dim=1)


def _divide(tensor: Tensor, by: float | Sequence[float]) -> Tensor:
    # By a number on the host, a GPU would multiply with its reciprocal, which rounds differently.
    def on_device(number: float) -> Tensor:
        return torch.full((), number, dtype=tensor.dtype, device=tensor.device)

    if isinstance(by, Sequence):  # filled in there, too: a copy to it could not be captured in a CUDA graph
        divisors = torch.stack([on_device(number) for number in by])
        return tensor / divisors.reshape(-1, *[1] * (tensor.ndim - 2))
    return tensor / on_device(by)
