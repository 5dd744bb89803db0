"""One image through the dense CRF."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_fast.crf.parameters import CRFParameters, parameters
from deeplab_fast.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

# A label without any support still gets this probability, so that its energy -log(p) stays finite.
CLIP = 1e-5


def refine(image: NDArray[np.uint8], prob: ArrayLike, params: str | CRFParameters = "deeplab") -> NDArray[np.float32]:
    """Refine class probabilities with a fully connected CRF.

    Args:
        image: uint8 (H, W, 3), the photo in RGB, values 0..255.
        prob: (K, H, W), any float dtype: probabilities of the K classes at each pixel.
        params: a :class:`CRFParameters` or the name of a preset.

    Returns:
        Q, float32 (K, H, W), C-contiguous: the mean-field marginals; they sum to 1 over K.

    Raises:
        TypeError: for an image that is not uint8.
        ValueError: for shapes that do not fit, or values of ``prob`` outside 0..1 (NaN included).
    """
    return build(image, prob, params).infer()


def densecrf(image: NDArray[np.uint8], prob: ArrayLike, params: str | CRFParameters = "deeplab") -> NDArray[np.float32]:
    """The former name of :func:`refine`; deprecated."""
    warnings.warn("deeplab_fast.crf.densecrf is now called refine", DeprecationWarning, stacklevel=2)
    return refine(image, prob, params)


@dataclass(frozen=True)
class BuiltCRF:
    """A CRF whose energies and kernels are set up: ``crf`` is the ``DenseCRF2D``, ``shape`` is (K, H, W)."""

    crf: Any
    shape: tuple[int, int, int]
    iterations: int

    def infer(self, iterations: int | None = None) -> NDArray[np.float32]:
        """Q, float32 (K, H, W), after ``iterations`` mean-field iterations (default: the parameters')."""
        count = self.iterations if iterations is None else int(iterations)
        Q = np.asarray(self.crf.inference(count), dtype=np.float32)
        return np.ascontiguousarray(Q.reshape(self.shape))


def build(image: NDArray[np.uint8], prob: ArrayLike, params: str | CRFParameters = "deeplab") -> BuiltCRF:
    """The first half of :func:`refine`: check the input and build the CRF. Same arguments, same errors.

    Apart, so that a caller can time the halves, or infer more than once.
    """
    from deeplab_fast.pydensecrf import densecrf as dcrf
    from deeplab_fast.pydensecrf import utils

    params = parameters(params)
    image = _checked_image(image)
    if isinstance(params.bi_rgb_std, tuple) and len(params.bi_rgb_std) != 3:
        raise ArgumentError("bi_rgb_std", params.bi_rgb_std, "a number or three, one for each of R, G and B")
    prob = _checked_probabilities(prob, image.shape[:2])
    classes, height, width = prob.shape
    crf = dcrf.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(utils.unary_from_softmax(prob, clip=CLIP)))
    # A kernel of weight 0 adds nothing to the energy: its lattice need not be built.
    if params.pos_w != 0:
        crf.addPairwiseGaussian(sxy=params.pos_xy_std, compat=params.pos_w)
    if params.bi_w != 0:
        crf.addPairwiseBilateral(sxy=params.bi_xy_std, srgb=params.bi_rgb_std, rgbim=image, compat=params.bi_w)
    return BuiltCRF(crf, (classes, height, width), params.iterations)


def probabilities_from_labels(
    labels: ArrayLike, classes: int, gt_prob: float = 0.7, unsure: int | Iterable[int] = (255,)
) -> NDArray[np.float32]:
    """Class probabilities from a label map that is right with probability ``gt_prob``.

    A pixel labelled k gets ``gt_prob`` for k and an equal share of the rest for every other class; an unsure
    pixel gets the same probability for every class. An unsure value below ``classes`` is no class: it gets
    probability 0 everywhere (for maps in which, say, 0 means "not drawn on").

    Args:
        labels: (H, W), any integer dtype.
        classes: K, the number of classes; labels are 0..K-1.
        gt_prob: confidence in the labels, strictly between 0 and 1.
        unsure: label value or values that mean "could be any class".

    Returns:
        float32 (K, H, W).

    Raises:
        TypeError: if ``labels`` are no integers.
        ValueError: for another number of axes, a label outside the classes, or arguments out of range.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iub":
        raise ArgumentTypeError("labels", labels.dtype, "integers", what="dtype")
    if labels.ndim != 2 or labels.size == 0:
        raise ArgumentError("labels", labels.shape, "(H, W), not empty", what="shape")
    if classes < 1:
        raise ArgumentError("classes", classes, "at least 1")
    if not 0 < gt_prob < 1:
        raise ArgumentError("gt_prob", gt_prob, "strictly between 0 and 1")
    unsure = {int(value) for value in ([unsure] if isinstance(unsure, (int, np.integer)) else unsure)}
    present = [int(value) for value in np.unique(labels)]
    outside = [value for value in present if not 0 <= value < classes and value not in unsure]
    if outside:
        names = ", ".join(map(str, outside[:5])) + (", …" if len(outside) > 5 else "")
        raise ArgumentError(
            "labels", names, f"in 0..{classes - 1}, there being {classes} classes, or unsure", what="values"
        )

    usable = [k for k in range(classes) if k not in unsure]
    if not usable:
        raise ArgumentError("unsure", sorted(unsure), f"such that one of the {classes} classes is left")
    prob = np.zeros((classes, *labels.shape), np.float32)
    prob[usable] = (1 - gt_prob) / max(len(usable) - 1, 1)
    for k in usable:
        prob[k][labels == k] = gt_prob if len(usable) > 1 else 1
    is_unsure = np.isin(labels, list(unsure))
    for k in usable:
        prob[k][is_unsure] = 1 / len(usable)
    return prob


def _checked_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image = np.asarray(image)
    if image.dtype != np.uint8:
        raise ArgumentTypeError("image", image.dtype, "uint8", what="dtype")
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ArgumentError("image", image.shape, "(H, W, 3), not empty", what="shape")
    return np.ascontiguousarray(image)


def _checked_probabilities(prob: ArrayLike, size: tuple[int, int]) -> NDArray[np.float32]:
    prob = np.asarray(prob)
    if prob.ndim != 3 or prob.shape[0] == 0 or prob.shape[1:] != size:
        raise ArgumentError("prob", prob.shape, f"(K, {size[0]}, {size[1]}), as the image", what="shape")
    low, high = float(prob.min()), float(prob.max())
    # Written so that NaN, for which every comparison is false, fails it.
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ArgumentError("prob", f"{low:.4g} to {high:.4g}", "in 0..1", what="values")
    return np.ascontiguousarray(prob, np.float32)
