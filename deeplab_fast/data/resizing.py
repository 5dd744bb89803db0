"""Label maps at another size, by the rule of Pillow's nearest neighbour."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from deeplab_fast._arguments import shape_of
from deeplab_fast.data._checks import checked_count
from deeplab_fast.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def nearest_indices(source: int, size: int) -> NDArray[np.int64]:
    """For each of `size` pixels, which of `source` pixels Pillow's NEAREST takes; int64 (size,).

    In exact numbers that is floor((i + 1/2) source / size). Pillow adds the step up in double precision (ImagingScale-
    Affine in its Geometry.c), and where the exact position is a whole number the rounding of the sum decides; so the
    same sum is taken here, in the same order.
    """
    step = source / size
    positions = np.full(size, step)
    positions[0] = step * 0.5
    return np.add.accumulate(positions).astype(np.int64)


# A training has few sizes; the indices of each are made, and brought to the device, once.
@lru_cache(maxsize=256)
def _indices_on(source: int, size: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.from_numpy(nearest_indices(source, size)).to(device)


def resize_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Label maps at another size, each pixel that of `PIL.Image.resize` with NEAREST.

    DeepLab-v2's labels were scaled so in training; other libraries round elsewhere, and shift the labels by up to a
    pixel of the source.

    Args:
        labels: int64, uint8 or another integer dtype, (N, H, W), on any device.
        size: (h, w) of the result; Pillow's own order is (width, height).

    Returns:
        (N, h, w) of the same dtype and device.

    Raises:
        TypeError: if labels is no integer tensor, or size holds no integers.
        ValueError: if labels does not have three axes, or a size is less than 1.
    """
    if not isinstance(labels, Tensor):
        raise ArgumentTypeError("labels", type(labels), "a tensor")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ArgumentTypeError("labels", labels.dtype, "an integer one", what="dtype")
    if labels.ndim != 3 or 0 in labels.shape[1:]:
        raise ArgumentError("labels", shape_of(labels), "(N, H, W) with H and W at least 1", what="shape")
    if len(size) != 2:
        raise ArgumentError("size", tuple(size), "(h, w)")
    height, width = (checked_count("size", side, 1) for side in size)
    rows = _indices_on(labels.shape[1], height, labels.device)
    columns = _indices_on(labels.shape[2], width, labels.device)
    return labels.index_select(1, rows).index_select(2, columns)
