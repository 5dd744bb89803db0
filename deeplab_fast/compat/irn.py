"""`crf_inference_label` of IRN, and `crf_inference` of psa and MCTformer, which many projects copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_fast.compat._inference import energies, infer, rgb
from deeplab_fast.crf.parameters import parameters
from deeplab_fast.errors import ArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["crf_inference", "crf_inference_inf", "crf_inference_label"]


def crf_inference_label(
    img: Any, labels: Any, t: int = 10, n_labels: int = 21, gt_prob: float = 0.7
) -> NDArray[np.int64]:
    """Refine a label map: IRN's, preset "irn", on labels that are right with probability `gt_prob`.

    Args:
        img: uint8 (H, W, 3), any strides.
        labels: (H, W), integers 0..n_labels-1; 0 is a class as any other.
        t: mean-field iterations.
        n_labels: number of classes.
        gt_prob: between 0 and 1.

    Returns:
        Labels, int64 (H, W).

    Raises:
        TypeError: for an image that is not uint8, or labels that are no integers.
        ValueError: for shapes that do not fit, labels outside the classes, or numbers out of range.
    """
    from deeplab_fast.pydensecrf import utils

    photo, labels = rgb("img", img), np.asarray(labels)
    if labels.shape != photo.shape[:2]:
        raise ArgumentError("labels", labels.shape, f"{photo.shape[:2]}, as img", what="shape")
    energy = utils.unary_from_labels(labels, n_labels, gt_prob=gt_prob, zero_unsure=False)
    return infer(photo, energy, parameters("irn", iterations=t)).argmax(axis=0)


def crf_inference(img: Any, probs: Any, t: int = 10, scale_factor: float = 1, labels: int = 21) -> NDArray[np.float32]:
    """Refine probabilities: psa's and MCTformer's on class activation maps, preset "psa".

    Args:
        img: uint8 (H, W, 3), any strides.
        probs: (labels, H, W), real numbers: probabilities, which are clipped to 1e-5..1.
        t: mean-field iterations.
        scale_factor: by which the standard deviations in position are divided.
        labels: number of classes.

    Returns:
        Q, float32 (labels, H, W): marginals, which sum to 1 over the classes.

    Raises:
        TypeError: for an image that is not uint8.
        ValueError: for shapes or a number of classes that do not fit, NaN, or numbers out of range.
    """
    return _inference("psa", img, probs, t, scale_factor, labels)


def crf_inference_inf(
    img: Any, probs: Any, t: int = 10, scale_factor: float = 1, labels: int = 21
) -> NDArray[np.float32]:
    """As `crf_inference`, with MCTformer's parameters on the final scores, preset "mctformer"."""
    return _inference("mctformer", img, probs, t, scale_factor, labels)


def _inference(preset: str, img: Any, probs: Any, t: int, scale_factor: float, labels: int) -> NDArray[np.float32]:
    if not scale_factor > 0:
        raise ArgumentError("scale_factor", scale_factor, "a positive number")
    params = parameters(preset, iterations=t)
    xy_std = {name: getattr(params, name) / scale_factor for name in ("pos_xy_std", "bi_xy_std")}
    photo = rgb("img", img)
    energy = energies("probs", probs, photo.shape[:2])
    if len(energy) != labels:
        raise ArgumentError("labels", labels, f"{len(energy)}, the number of classes in probs")
    return infer(photo, energy, parameters(params, **xy_std))
