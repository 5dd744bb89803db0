"""`permutohedral_filter` and its gradient in plain PyTorch.

The gradient to features written out is what compiled kernels compute; it equals what autograd makes of the filter.
Letters, and shapes of tables, are as in `deeplab_fast.reference.lattice`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from deeplab_fast._arguments import check_filter_arguments, check_query_features, lattice_dtype, sum_dtype
from deeplab_fast.reference.lattice import Lattice, build_lattice, elevate, embedding_scales, find_simplex


def permutohedral_filter(
    values: Tensor, features: Tensor, reverse: bool = False, query_features: Tensor | None = None
) -> Tensor:
    """Gaussian filtering on the permutohedral lattice: about sum_j exp(-|f_i - f_j|²/2) v_j, times a constant.

    What pydensecrf computes between its normalisations: alpha is included, nothing is divided by.

    Args:
        values: (N, C, *S), floating.
        features: (N, D, *S), floating, in units of standard deviations. The lattice is built in float64 if values and
            features are both float64, else in float32.
        reverse: blur the axes in reverse order, which is the adjoint.
        query_features: (N, D, *T), floating, where to slice, if not at `features`. The lattice is that of both.

    Returns:
        (N, C, *S), dtype and memory format of `values`, or (N, C, *T), contiguous, with `query_features`. Sums are in
        the dtype of `values`, but for 16-bit ones in float32.

    Raises:
        TypeError: for a tensor that is not floating.
        ValueError: for shapes or devices that do not fit, NaN or infinite features, and lattice coordinates beyond
            ±32767.
    """
    check_filter_arguments(values, features)
    images = values.flatten(2).to(sum_dtype(values))
    if query_features is not None:
        check_query_features(query_features, features)
        return _filter_at(values, features, query_features, reverse)
    features = features.to(lattice_dtype(features, values))
    filtered = [
        build_lattice(image_features).filter(image, reverse)
        for image, image_features in zip(images, features.flatten(2), strict=True)
    ]
    return in_shape_of(values, filtered)


def _filter_at(values: Tensor, features: Tensor, query_features: Tensor, reverse: bool) -> Tensor:
    """Splat at one set of points, slice at another, on the lattice of both."""
    everywhere = torch.cat([features.flatten(2), query_features.flatten(2)], dim=2)
    everywhere = everywhere.to(lattice_dtype(everywhere, values))
    points = math.prod(features.shape[2:])
    filtered = []
    for image, image_features in zip(values.flatten(2).to(sum_dtype(values)), everywhere, strict=True):
        lattice = build_lattice(image_features)
        given = replace(lattice, vertices=lattice.vertices[:points], barycentric=lattice.barycentric[:points])
        asked = replace(lattice, vertices=lattice.vertices[points:], barycentric=lattice.barycentric[points:])
        rows = asked.slice(lattice.blur(given.splat(image.t()), reverse)) / (1 + 2.0 ** -image_features.shape[0])
        filtered.append(rows.t())
    return in_shape_of(values.new_empty(*values.shape[:2], *query_features.shape[2:]), filtered)


def in_shape_of(like: Tensor, images: list[Tensor]) -> Tensor:
    """The images, (C, P) each, as one tensor of shape, dtype and memory format of `like`."""
    out = torch.empty_like(like)
    return out.copy_(torch.stack(images).reshape(like.shape)) if images else out


# --- Gradient to features ------------------------------------------------------------------------------------------


def permutohedral_filter_backward_features(
    grad: Tensor, values: Tensor, features: Tensor, reverse: bool = False
) -> Tensor:
    """Gradient of sum(grad · permutohedral_filter(values, features, reverse)) to the features.

    Args:
        grad, values: (N, C, *S), floating.
        features: (N, D, *S), floating.
        reverse: as the filter's.

    Returns:
        (N, D, *S), dtype of `features`, or float32 for 16-bit ones.
    """
    dtype = sum_dtype(values)
    gradients = []
    for image_grad, image, image_features in zip(
        grad.flatten(2).to(dtype), values.flatten(2).to(dtype), features.flatten(2), strict=True
    ):
        lattice = build_lattice(image_features)
        weights = filter_backward_weights(lattice, image.t(), image_grad.t(), reverse)
        gradients.append(weights_backward_features(weights, image_features))
    return in_shape_of(features.to(sum_dtype(features)), gradients)


def filter_backward_weights(lattice: Lattice, rows: Tensor, grad: Tensor, reverse: bool = False) -> Tensor:
    """Gradient of sum(grad · filter(rows)), both (P, C), to the barycentric weights: (P, D+1).

    The weights occur twice: slicing a vertex, its gradient meets the vertex's blurred value; splatting to it, the value
    meets the gradient that comes back to the vertex.
    """
    blurred = lattice.blur(lattice.splat(rows), reverse)
    back = lattice.blur(lattice.splat(grad), not reverse)
    by_remainder = [
        (grad * blurred[vertex]).sum(dim=1) + (rows * back[vertex]).sum(dim=1) for vertex in lattice.vertices.t()
    ]
    return torch.stack(by_remainder, dim=1) / (1 + 2.0 ** -lattice.keys.shape[1])


def weights_backward_features(weights_grad: Tensor, features: Tensor) -> Tensor:
    """From a gradient to barycentric weights (P, D+1) to one to features: (D, P), dtype of the lattice.

    Within its simplex a point's weights are linear in its features, by the steps of `build_lattice` in reverse.
    """
    features = features.to(sum_dtype(features))
    size = len(features) + 1
    _, rank = find_simplex(elevate(features))
    by_vertex = weights_grad.to(features.dtype).t().flip(0)
    by_rank = by_vertex - by_vertex.roll(1, dims=0)
    elevated = by_rank.gather(0, rank) / size
    axis = torch.arange(1, size, device=features.device, dtype=features.dtype)[:, None]
    scaled = elevated.cumsum(dim=0)[:-1] - axis * elevated[1:]
    return scaled * scaled.new_tensor(embedding_scales(size - 1, features.dtype))[:, None]
