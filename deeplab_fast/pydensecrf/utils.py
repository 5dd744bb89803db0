"""Unary energies and features for dense CRFs, with the names, arguments and results of `pydensecrf.utils`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Number
from typing import cast

import numpy as np
from numpy.typing import ArrayLike

from ._errors import Refused

__all__ = [
    "compute_unary",
    "create_pairwise_bilateral",
    "create_pairwise_gaussian",
    "softmax_to_unary",
    "unary_from_labels",
    "unary_from_softmax",
]


def unary_from_labels(labels: ArrayLike, n_labels: int, gt_prob: float, zero_unsure: bool = True) -> np.ndarray:
    """Energy (n_labels, points) float32 of an annotation that is right with probability `gt_prob`.

    labels: integers of any shape, flattened. The energy is -log(gt_prob) for a point's label, and -log((1 -
    gt_prob) / (n_labels - 1)) for the others. With `zero_unsure`, label 0 means "unknown", which gives -log(1
    / n_labels) for all labels, and label i is row i - 1 (n_labels does not count the 0). Raises ValueError
    for gt_prob outside (0, 1) and labels outside 0..n_labels (0..n_labels-1 without `zero_unsure`).
    """
    if not 0 < gt_prob < 1:
        raise Refused("gt_prob", gt_prob, "between 0 and 1, exclusive")
    if n_labels < 1:
        raise Refused("n_labels", n_labels, "at least 1")
    labels = np.asarray(labels).ravel()
    if labels.dtype.kind not in "biu":
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    last = n_labels if zero_unsure else n_labels - 1
    if labels.size and not 0 <= labels.min() <= labels.max() <= last:
        wanted = f"in 0..{last} (n_labels={n_labels}, zero_unsure={zero_unsure})"
        raise Refused("labels", f"{labels.min()}..{labels.max()}", wanted, what="values")
    labels = labels.astype(np.int64)

    other = -np.log((1.0 - gt_prob) / (n_labels - 1)) if n_labels > 1 else 0.0
    energy = np.full((n_labels, labels.size), other, np.float32)
    # Unknown points write into the last row (-1) here, and are overwritten below.
    energy[labels - 1 if zero_unsure else labels, np.arange(labels.size)] = -np.log(gt_prob)
    if zero_unsure:
        energy[:, labels == 0] = -np.log(1.0 / n_labels)
    return energy


def unary_from_softmax(sm: np.ndarray, scale: float | None = None, clip: float | None = 1e-5) -> np.ndarray:
    """Energy -log(sm), (classes, points) float32, of class probabilities sm (classes, *points).

    scale: certainty of the probabilities, in (0, 1]: scale·sm + (1 - scale)/classes is used. clip: smallest
    probability; None leaves zeros, whose energy is infinite.
    """
    sm = np.asarray(sm)
    if sm.ndim < 1 or sm.shape[0] < 1:
        raise Refused("sm", sm.shape, "(classes, *points)", what="shape")
    if sm.dtype.kind not in "biuf":
        raise TypeError(f"sm must hold real numbers, got {sm.dtype}")
    classes = sm.shape[0]
    if scale is not None:
        if not 0 < scale <= 1:
            raise Refused("scale", scale, "in (0, 1]")
        # An array of ones, as in the original: it makes float32 input float64, which shows in the last digit.
        sm = scale * sm + (1 - scale) * (np.ones(sm.shape) / classes)
    if clip is not None:
        if not 0 <= clip <= 1:
            raise Refused("clip", clip, "in [0, 1]")
        sm = np.clip(sm, clip, 1.0)
    with np.errstate(divide="ignore"):
        energy = -np.log(sm)
    return np.ascontiguousarray(energy.reshape(classes, -1), np.float32)


def create_pairwise_gaussian(sdims: Sequence[float], shape: Sequence[int]) -> np.ndarray:
    """Features (len(shape), points) float32 of a grid: coordinates, slowest axis first, divided by `sdims`.

    For an image that is (y/sy, x/sx), the other axis order than `DenseCRF2D.addPairwiseGaussian`, hence
    another lattice and slightly other results. Raises ValueError unless there is one positive sigma for each
    axis.
    """
    if len(sdims) != len(shape):
        raise Refused("sdims", len(sdims), f"{len(shape)}, one value for each axis of shape", what="length")
    _check_sigmas("sdims", sdims)
    mesh = _grid(shape)
    _divide(mesh, sdims)
    return mesh.reshape(len(mesh), -1)


def create_pairwise_bilateral(
    sdims: Sequence[float], schan: float | Sequence[float], img: np.ndarray, chdim: int = -1
) -> np.ndarray:
    """Features (axes + channels, points) float32: grid coordinates / sdims, then channels / schan.

    img: (*grid) with one channel (chdim=-1), or with its channels along axis `chdim`. schan: a number for all
    channels, or a sequence. As in the original, axes and channels beyond the end of `sdims` and `schan` are
    not scaled; more values than axes or channels raise ValueError.
    """
    img = np.asarray(img)
    if img.dtype.kind not in "biuf":
        raise TypeError(f"img must hold real numbers, got {img.dtype}")
    if chdim != -1 and not -img.ndim <= chdim < img.ndim:
        raise Refused("chdim", chdim, f"-1 (no channels) or an axis of img, whose shape is {img.shape}")
    channels = img[np.newaxis] if chdim == -1 else np.moveaxis(img, chdim, 0)
    channels = channels.astype(np.float32)
    grid = channels.shape[1:]
    # No number is a `Number` to type checkers.
    per_channel = cast("Sequence[float]", [schan] * len(channels) if isinstance(schan, Number) else schan)
    if len(per_channel) > len(channels):
        raise Refused("schan", len(per_channel), f"of at most {len(channels)}, one value a channel", what="a length")
    if len(sdims) > len(grid):
        raise Refused("sdims", len(sdims), f"of at most {len(grid)}, one value an axis of img", what="a length")
    _check_sigmas("schan", per_channel)
    _check_sigmas("sdims", sdims)

    _divide(channels, per_channel)
    mesh = _grid(grid)
    _divide(mesh, sdims)
    features = np.concatenate([mesh, channels])
    return features.reshape(len(features), -1)


def compute_unary(labels: ArrayLike, M: int, GT_PROB: float = 0.5) -> np.ndarray:
    """Deprecated: `unary_from_labels(labels, M, GT_PROB)`."""
    warnings.warn("compute_unary is deprecated, use unary_from_labels", DeprecationWarning, stacklevel=2)
    return unary_from_labels(labels, M, GT_PROB)


def softmax_to_unary(sm: np.ndarray, GT_PROB: float = 1) -> np.ndarray:
    """Deprecated: `unary_from_softmax(sm, scale=None if GT_PROB == 1 else GT_PROB, clip=None)`."""
    warnings.warn("softmax_to_unary is deprecated, use unary_from_softmax", DeprecationWarning, stacklevel=2)
    return unary_from_softmax(sm, None if GT_PROB == 1 else GT_PROB, clip=None)


def _grid(shape: Sequence[int]) -> np.ndarray:
    return np.array(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), np.float32)


def _divide(features: np.ndarray, sigmas: Sequence[float]) -> None:
    # In place, one after the other, and not by reciprocals: the rounding decides ties in the lattice.
    for feature, sigma in zip(features, sigmas, strict=False):
        feature /= sigma


def _check_sigmas(name: str, sigmas: Sequence[float]) -> None:
    values = np.asarray(sigmas, np.float64)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise Refused(name, sigmas, "positive and finite")
