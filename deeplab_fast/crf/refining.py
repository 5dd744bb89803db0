"""One image, or one volume, through the dense CRF."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_fast.crf.parameters import NORMALIZATIONS, CRFParameters, parameters
from deeplab_fast.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from deeplab_fast.pydensecrf.densecrf import DenseCRF, DenseCRF2D

# A label without any support still gets this probability, so that its energy -log(p) stays finite.
CLIP = 1e-5


def refine(
    image: ArrayLike,
    prob: ArrayLike,
    params: str | CRFParameters = "deeplab",
    *,
    spacing: Sequence[float] | None = None,
) -> NDArray[np.float32]:
    """Refine class probabilities of a photo or a volume with a fully connected CRF.

    A photo's features are (x, y, channels), as those of pydensecrf's two-dimensional methods; a volume's are (z, y, x,
    channels), as pydensecrf's ``create_pairwise_gaussian`` and ``create_pairwise_bilateral`` make them.

    Args:
        image: a photo (H, W, C), uint8 if its three channels are RGB, else any real dtype in any unit. Or a volume
            (C, D, H, W), C modalities in any unit and any real dtype, or (D, H, W) for one; or a batch of such,
            (N, C, D, H, W). ``bi_rgb_std`` is the channels' standard deviation, or there is one for each.
        prob: (K, H, W), or (K, D, H, W) for a volume, or (N, K, D, H, W), any float dtype: probabilities of the K
            classes at each pixel or voxel.
        params: a `CRFParameters` or the name of a preset.
        spacing: distance of neighbours along each spatial axis, in the array's order: (height, width) or (depth,
            height, width), say in millimetres. ``pos_xy_std`` and ``bi_xy_std`` are in that unit then: each axis'
            deviation in pixels or voxels is the deviation divided by its spacing. Default: 1, so they are in pixels.

    Returns:
        Q, float32, the shape of ``prob``, C-contiguous: the mean-field marginals; they sum to 1 over K.

    Raises:
        TypeError: for a photo of three channels that is not uint8, or an image of no real numbers.
        ValueError: for shapes that do not fit, a number of deviations or spacings that is not that of the channels or
            axes, NaN or Inf in the image, or values of ``prob`` outside 0..1 (NaN included).
    """
    if np.ndim(prob) != 5:
        return build(image, prob, params, spacing).infer()
    volumes, prob = np.asarray(image), np.asarray(prob)
    if volumes.ndim != 5 or len(volumes) != len(prob):
        raise ArgumentError("image", volumes.shape, f"(N, C, D, H, W) with N = {len(prob)}, as prob", what="shape")
    Q = np.empty(prob.shape, np.float32)
    for n, (volume, one) in enumerate(zip(volumes, prob, strict=True)):
        Q[n] = build(volume, one, params, spacing).infer()
    return Q


def densecrf(image: NDArray[np.uint8], prob: ArrayLike, params: str | CRFParameters = "deeplab") -> NDArray[np.float32]:
    """The former name of `refine`; deprecated."""
    warnings.warn("deeplab_fast.crf.densecrf is now called refine", DeprecationWarning, stacklevel=2)
    return refine(image, prob, params)


@dataclass(frozen=True)
class BuiltCRF:
    """A CRF whose energies and kernels are set up: ``crf``, a ``DenseCRF``, and ``shape``, that of Q."""

    crf: Any
    shape: tuple[int, ...]
    iterations: int

    def infer(self, iterations: int | None = None) -> NDArray[np.float32]:
        """Q, float32 of that shape, after ``iterations`` mean-field iterations (default: the parameters')."""
        count = self.iterations if iterations is None else int(iterations)
        Q = np.asarray(self.crf.inference(count), dtype=np.float32)
        return np.ascontiguousarray(Q.reshape(self.shape))


def build(
    image: ArrayLike,
    prob: ArrayLike,
    params: str | CRFParameters = "deeplab",
    spacing: Sequence[float] | None = None,
) -> BuiltCRF:
    """The first half of `refine`: check the input and build the CRF. Same arguments, but no batch; same errors.

    Apart, so that a caller can time the halves, or infer more than once.
    """
    from deeplab_fast.pydensecrf import utils

    params = parameters(params)
    photo = np.ndim(prob) != 4
    checked = _checked_photo(image) if photo else _checked_volume(image)
    prob = _checked_probabilities(prob, checked.shape[:2] if photo else checked.shape[1:])
    model = (photo_model if photo else volume_model)(checked, len(prob), params, spacing)
    model.setUnaryEnergy(np.ascontiguousarray(utils.unary_from_softmax(prob, clip=CLIP)))
    return BuiltCRF(model, prob.shape, params.iterations)


def photo_model(
    image: NDArray[Any], classes: int, params: CRFParameters, spacing: Sequence[float] | None = None
) -> DenseCRF2D:
    """The CRF of a photo (H, W, C), without a unary: one can be set and inferred again and again on the same lattices.

    Three channels are RGB, uint8.
    """
    from deeplab_fast.pydensecrf import densecrf as dcrf
    from deeplab_fast.pydensecrf import utils

    height, width, channels = image.shape
    across = checked_spacing(spacing, 2)
    schan = _of_each_channel(params.bi_rgb_std, channels)
    normalization = NORMALIZATIONS.index(params.normalization)
    model = dcrf.DenseCRF2D(width, height, classes)
    # A kernel of weight 0 adds nothing to the energy: its lattice need not be built.
    if params.pos_w != 0:
        sxy = (params.pos_xy_std / across[1], params.pos_xy_std / across[0])
        model.addPairwiseGaussian(sxy, params.pos_w, normalization=normalization)
    if params.bi_w != 0:
        sxy = (params.bi_xy_std / across[1], params.bi_xy_std / across[0])
        if channels == 3:
            model.addPairwiseBilateral(sxy, schan, image, params.bi_w, normalization=normalization)
        else:
            features = utils.create_pairwise_bilateral(sxy[::-1], schan, image, chdim=2)
            features[[0, 1]] = features[[1, 0]]  # x before y, as for three channels
            model.addPairwiseEnergy(features, params.bi_w, normalization=normalization)
    return model


def volume_model(
    volume: NDArray[Any], classes: int, params: CRFParameters, spacing: Sequence[float] | None = None
) -> DenseCRF:
    """The CRF of a volume (C, D, H, W), without a unary, as `photo_model`."""
    from deeplab_fast.pydensecrf import densecrf as dcrf
    from deeplab_fast.pydensecrf import utils

    grid = volume.shape[1:]
    along = checked_spacing(spacing, len(grid))
    schan = _of_each_channel(params.bi_rgb_std, len(volume))
    normalization = NORMALIZATIONS.index(params.normalization)
    model = dcrf.DenseCRF(math.prod(grid), classes)
    if params.pos_w != 0:
        sdims = [params.pos_xy_std / one for one in along]
        model.addPairwiseEnergy(utils.create_pairwise_gaussian(sdims, grid), params.pos_w, normalization=normalization)
    if params.bi_w != 0:
        sdims = [params.bi_xy_std / one for one in along]
        features = utils.create_pairwise_bilateral(sdims, schan, volume, chdim=0)
        model.addPairwiseEnergy(features, params.bi_w, normalization=normalization)
    return model


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


def checked_spacing(spacing: Sequence[float] | None, axes: int) -> tuple[float, ...]:
    """One positive number for each of some spatial axes; 1 each by default.

    Raises:
        ValueError: for another number of them, or what is not positive and finite.
    """
    if spacing is None:
        return (1.0,) * axes
    numbers = tuple(map(float, np.ravel(spacing)))
    if len(numbers) != axes or not all(math.isfinite(number) and number > 0 for number in numbers):
        raise ArgumentError("spacing", spacing, f"{axes} positive numbers, one for each spatial axis")
    return numbers


def _of_each_channel(std: float | tuple[float, ...], channels: int) -> tuple[float, ...]:
    if not isinstance(std, tuple):
        return (std,) * channels
    if len(std) != channels:
        raise ArgumentError("bi_rgb_std", std, f"one number, or {channels}, one for each channel of the image")
    return std


def _checked_photo(image: ArrayLike) -> NDArray[Any]:
    image = np.asarray(image)
    if image.ndim != 3 or image.size == 0:
        raise ArgumentError("image", image.shape, "(H, W, C), not empty", what="shape")
    if image.shape[2] == 3 and image.dtype != np.uint8:
        raise ArgumentTypeError("image", image.dtype, "uint8, being RGB", what="dtype")
    return np.ascontiguousarray(_finite(image))


def _checked_volume(image: ArrayLike) -> NDArray[Any]:
    image = np.asarray(image)
    if image.ndim not in (3, 4) or image.size == 0:
        raise ArgumentError("image", image.shape, "(C, D, H, W) or (D, H, W), not empty", what="shape")
    return _finite(image if image.ndim == 4 else image[None])


def _finite(image: NDArray[Any]) -> NDArray[Any]:
    if image.dtype.kind not in "biuf":
        raise ArgumentTypeError("image", image.dtype, "one of real numbers", what="dtype")
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise ArgumentError("image", "NaN or Inf in places", "finite", what="values")
    return image


def _checked_probabilities(prob: ArrayLike, size: tuple[int, ...]) -> NDArray[np.float32]:
    prob = np.asarray(prob)
    if prob.ndim != 1 + len(size) or prob.shape[0] == 0 or prob.shape[1:] != size:
        wanted = f"(K, {', '.join(map(str, size))}), as the image"
        raise ArgumentError("prob", prob.shape, wanted, what="shape")
    low, high = float(prob.min()), float(prob.max())
    # Written so that NaN, for which every comparison is false, fails it.
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ArgumentError("prob", f"{low:.4g} to {high:.4g}", "in 0..1", what="values")
    return np.ascontiguousarray(prob, np.float32)
