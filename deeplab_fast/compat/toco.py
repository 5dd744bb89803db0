"""The class `DenseCRF` of ToCo, SeCo, DuPL and afa, which have it from DeepLab's reimplementations in PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_fast.compat._inference import energies, infer, rgb
from deeplab_fast.crf.parameters import CRFParameters

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DenseCRF"]


class DenseCRF:
    """A dense CRF with its parameters, called with a photo and class probabilities.

    In scripts: `DenseCRF(iter_max=10, pos_w=1, pos_xy_std=1, bi_w=4, bi_xy_std=121, bi_rgb_std=5)(image, prob)`, in a
    joblib pool over saved logits. It may be pickled.

    Args:
        iter_max: mean-field iterations.
        pos_w, pos_xy_std: weight and standard deviation of the spatial kernel, pixels.
        bi_w, bi_xy_std, bi_rgb_std: weight and standard deviations of the bilateral kernel, pixels and grey levels.

    Raises:
        TypeError, ValueError: as `deeplab_fast.crf.CRFParameters`.
    """

    def __init__(
        self, iter_max: int, pos_w: float, pos_xy_std: float, bi_w: float, bi_xy_std: float, bi_rgb_std: float
    ):
        self.iter_max = iter_max
        self.pos_w = pos_w
        self.pos_xy_std = pos_xy_std
        self.bi_w = bi_w
        self.bi_xy_std = bi_xy_std
        self.bi_rgb_std = bi_rgb_std
        self._parameters()  # wrong ones are refused here

    def _parameters(self) -> CRFParameters:
        """Made when they are needed: scripts set the attributes."""
        return CRFParameters(
            self.pos_w, self.pos_xy_std, self.bi_w, self.bi_xy_std, self.bi_rgb_std, iterations=self.iter_max
        )

    def __call__(self, image: Any, probmap: Any) -> NDArray[np.float32]:
        """Refine.

        Args:
            image: uint8 (H, W, 3), any strides.
            probmap: (C, H, W), real numbers: probabilities, which are clipped to 1e-5..1.

        Returns:
            Q, float32 (C, H, W): marginals, which sum to 1 over C.

        Raises:
            TypeError: for an image that is not uint8.
            ValueError: for shapes that do not fit, or NaN.
        """
        photo = rgb("image", image)
        return infer(photo, energies("probmap", probmap, photo.shape[:2]), self._parameters())
