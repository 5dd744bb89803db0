"""Convolution in plain PyTorch as the sum over taps that the paper defines, and its gradients.

Not `torch.nn.functional.conv2d`: on a CPU that is oneDNN's, which some shapes and strides crash or make wrong
(deeplab_fast.ops.onednn).

Chen, Papandreou, Kokkinos, Murphy and Yuille, "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets,
Atrous Convolution, and Fully Connected CRFs", TPAMI 2018 (here: Chen).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from deeplab_fast._conv_arguments import Geometry, axes, live_taps, output_size

Index = tuple[slice, ...]


def conv2d(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Sum over taps (i, j) of weight[:, :, i, j] · x, where output (y, x) looks at input (y, x) · stride + (i, j) ·
    dilation - padding (Chen, equation 2).

    x (N, C, H, W), weight (K, C, kh, kw), of one dtype -> (N, K, H', W')
    """
    size = output_size(x, weight, geometry)
    out = x.new_zeros(x.shape[0], weight.shape[0], *size)
    for (i, j), outputs, inputs in _live_taps_of_both_axes(x, weight, geometry):
        out[outputs] += _product("kc,nchw->nkhw", weight[:, :, i, j], x[inputs])
    return out


def conv2d_backward_x(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Gradient of `conv2d` to x, in the dtype of grad; of x only the shape is looked at."""
    to_x = grad.new_zeros(x.shape)
    for (i, j), outputs, inputs in _live_taps_of_both_axes(x, weight, geometry):
        to_x[inputs] += _product("kc,nkhw->nchw", weight[:, :, i, j], grad[outputs])
    return to_x


def conv2d_backward_weight(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Gradient of `conv2d` to the weight, in the dtype of grad; of the weight only the shape is looked at."""
    to_weight = grad.new_zeros(weight.shape)
    for (i, j), outputs, inputs in _live_taps_of_both_axes(x, weight, geometry):
        to_weight[:, :, i, j] = _product("nkhw,nchw->kc", grad[outputs], x[inputs])
    return to_weight


def _live_taps_of_both_axes(
    x: Tensor, weight: Tensor, geometry: Geometry
) -> Iterator[tuple[tuple[int, int], Index, Index]]:
    """Every tap (i, j) that lies inside the map for some outputs: these outputs, and the inputs that they look at."""
    rows, columns = (list(live_taps(*axis)) for axis in axes(x, weight, geometry))
    everything = (slice(None), slice(None))
    if not (rows and columns):  # nothing of one tap, so that there are gradients: of 0
        nothing = (*everything, slice(0), slice(0))
        yield (0, 0), nothing, nothing
    for i, out_rows, in_rows in rows:
        for j, out_columns, in_columns in columns:
            yield (i, j), (*everything, out_rows, out_columns), (*everything, in_rows, in_columns)


def _product(equation: str, a: Tensor, b: Tensor) -> Tensor:
    with torch.autocast(a.device.type, enabled=False):  # it would compute in 16 bits
        return torch.einsum(equation, a, b)
