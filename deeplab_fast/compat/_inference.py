"""What the functions here share: a photo and its energies, as they hand them to pydensecrf."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_fast.crf.parameters import CRFParameters
from deeplab_fast.crf.refining import BuiltCRF, photo_model
from deeplab_fast.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def infer(image: NDArray[np.uint8], energy: NDArray[np.float32], params: CRFParameters) -> NDArray[np.float32]:
    """Q, float32 (K, H, W), of a photo uint8 (H, W, 3) and energies (K, H·W)."""
    height, width, _ = image.shape
    model = photo_model(image, len(energy), params)
    model.setUnaryEnergy(energy)
    return BuiltCRF(model, (len(energy), height, width), params.iterations).infer()


def rgb(name: str, image: Any) -> NDArray[np.uint8]:
    """A photo, checked.

    Raises:
        TypeError: if it is not uint8.
        ValueError: unless it is (H, W, 3), not empty.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8:
        raise ArgumentTypeError(name, image.dtype, "uint8", what="dtype")
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ArgumentError(name, image.shape, "(H, W, 3), not empty", what="shape")
    return np.ascontiguousarray(image)


def energies(name: str, prob: Any, size: tuple[int, ...]) -> NDArray[np.float32]:
    """-log of probabilities (K, H, W), clipped to 1e-5..1: (K, H·W), as pydensecrf's `unary_from_softmax`.

    Raises:
        TypeError: for numbers that are not real.
        ValueError: for another shape, or NaN.
    """
    from deeplab_fast.pydensecrf import utils

    prob = np.asarray(prob)
    if prob.ndim != 3 or prob.shape[0] == 0 or prob.shape[1:] != size:
        wanted = f"(K, {size[0]}, {size[1]}), of the image's height and width"
        raise ArgumentError(name, prob.shape, wanted, what="shape")
    if prob.dtype.kind == "f" and np.isnan(prob).any():
        raise ArgumentError(name, "NaN in places", "probabilities", what="values")
    return utils.unary_from_softmax(prob)
