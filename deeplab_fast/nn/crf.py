"""The dense CRF behind a segmentation network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deeplab_fast import ops
from deeplab_fast._arguments import shape_of
from deeplab_fast.crf import CLIP, PRESETS, CRFParameters, parameters
from deeplab_fast.crf.features import bilateral_features, spatial_features
from deeplab_fast.crf.parameters import deviations
from deeplab_fast.crf.refining import checked_spacing
from deeplab_fast.errors import ArgumentError
from deeplab_fast.nn.crf_inputs import (
    check_channels,
    check_sizes,
    check_values,
    image_tensor,
    prob_tensor,
)

__all__ = ["DenseCRF"]


LAYER_OPTIONS = ("learnable", "num_classes", "recompute", "spacing")  # arguments that are no CRFParameters


class DenseCRF(nn.Module):
    """Refine a network's class probabilities with a fully connected CRF, as DeepLab does with pydensecrf.

    A bilateral (appearance) and a spatial (smoothness) kernel over energies -log(prob), probabilities clipped to
    1e-5..1. Paper: Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials",
    2011, equation 3 and algorithm 1. Inference is in float32. Differentiable to `prob`, and to a floating `image`.

    Of photos and, with three spatial axes, of volumes; the kernels' features are those of `deeplab_fast.crf.refine`:
    (x, y, channels) of a photo, (z, y, x, channels) of a volume.

    With `learnable=True` it is the layer of Zheng et al., "Conditional Random Fields as Recurrent Neural Networks",
    ICCV 2015: matrices W of each kernel, and the compatibility matrix M that they share, are parameters, and the
    kernel's energy is M W F(Q), F(Q) being the filtered Q. Of M W its symmetric part counts, as of any compatibility
    in pydensecrf. They start as W = weight · I and M = -I: the layer without.

    Args:
        iterations: mean-field iterations, 0 or more.
        pos_w: weight of the spatial kernel; 0 leaves it out, unless it is learnable.
        pos_xy_std: its standard deviation, pixels, or the unit of `spacing`.
        bi_w: weight of the bilateral kernel; 0 leaves it out, unless it is learnable.
        bi_xy_std: its standard deviation in position, in the same unit.
        bi_rgb_std: its standard deviation in colour, grey levels of 0..255; a number, or one for each channel of the
            images, in the channel's unit.
        learnable: make `spatial_weight`, `bilateral_weight` and `compatibility`, all (K, K), parameters.
        num_classes: K; for learnable layers only, which need it.
        recompute: hold no Q of the iterations for the backward pass, but infer again there; see `dense_crf`.
        normalization: of both kernels: "symmetric", "before", "after" or "none".
        spacing: distance of neighbours along each spatial axis: (height, width), which makes images photos, or (depth,
            height, width), which makes them volumes. Default: 1 each, for photos and batches of volumes.

    Raises:
        TypeError: if `iterations` is no whole number, or a standard deviation is no number.
        ValueError: if a standard deviation is not positive, iterations are negative, anything is not finite, or
            `num_classes` is missing or out of place.

    Example:
        >>> crf = DenseCRF.preset("deeplab")
        >>> Q = crf(image, torch.softmax(logits, dim=1))  # image (N, 3, H, W) in 0..255, logits (N, K, H, W)
    """

    def __init__(
        self,
        iterations: int = 10,
        pos_w: float = 3,
        pos_xy_std: float = 1,
        bi_w: float = 4,
        bi_xy_std: float = 67,
        bi_rgb_std: float | Sequence[float] = 3,
        learnable: bool = False,
        *,
        num_classes: int | None = None,
        recompute: bool = False,
        normalization: str = "symmetric",
        spacing: Sequence[float] | None = None,
    ):
        super().__init__()
        self.params = CRFParameters(
            pos_w=pos_w,
            pos_xy_std=pos_xy_std,
            bi_w=bi_w,
            bi_xy_std=bi_xy_std,
            bi_rgb_std=deviations("bi_rgb_std", bi_rgb_std),
            iterations=iterations,
            normalization=normalization,
        )
        self.recompute = recompute
        if spacing is not None and len(spacing) not in (2, 3):
            raise ArgumentError("spacing", spacing, "two positive numbers for photos, or three for volumes")
        self.spacing = None if spacing is None else checked_spacing(spacing, len(spacing))
        self.learnable = learnable
        if learnable != (num_classes is not None) or (num_classes is not None and num_classes < 1):
            wanted = "the number of classes, at least 1, with learnable=True" if learnable else "left out"
            raise ArgumentError("num_classes", num_classes, wanted)
        if num_classes is not None:
            identity = torch.eye(num_classes)
            self.spatial_weight = nn.Parameter(self.params.pos_w * identity)
            self.bilateral_weight = nn.Parameter(self.params.bi_w * identity)
            self.compatibility = nn.Parameter(-identity)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> DenseCRF:
        """The parameters in use with a published method.

        Args:
            name: of the preset: one of `deeplab_fast.crf.PRESETS`, whose sources `deeplab_fast.crf.parameters` names.
            **overrides: arguments of the constructor that replace the preset's, for example `iterations=5`.

        Raises:
            ValueError: for an unknown name, and as the constructor does.
        """
        if name not in PRESETS:
            raise ArgumentError("name", name, f"one of {', '.join(map(repr, PRESETS))}")
        options = {key: overrides.pop(key) for key in LAYER_OPTIONS if key in overrides}
        return cls(**vars(parameters(name, **overrides)), **options)

    def extra_repr(self) -> str:
        shown = vars(self.params).items() - {("normalization", "symmetric")}
        text = ", ".join(
            f"{name}={_text(value)}" for name, value in vars(self.params).items() if (name, value) in shown
        )
        if self.spacing:
            text += f", spacing={_text(self.spacing)}"
        return f"{text}, learnable=True, num_classes={len(self.compatibility)}" if self.learnable else text

    def forward(self, image: Tensor | np.ndarray, prob: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """Infer the marginals Q.

        Args:
            image: uint8 or floating: a tensor (C, H, W) or (N, C, H, W), or an array (H, W, C) or (N, H, W, C). Three
                channels are RGB in 0..255; any other number of them (one of grey, twelve of a satellite) may have any
                values. Or a tensor or an array of volumes, (N, C, D, H, W), with a `spacing` of three also one volume,
                (C, D, H, W); channels in any unit.
            prob: probabilities of the K classes, floating: a tensor or an array (K, H, W), or (N, K, H, W) with a batch
                of images; (K, D, H, W) or (N, K, D, H, W) of volumes. A tensor must be on the image's device.

        Returns:
            Q, of the shape, dtype, device and kind (tensor or array) of `prob`; it sums to 1 over the classes.

        Raises:
            TypeError: for other kinds or dtypes.
            ValueError: for shapes or devices that do not fit, a number of standard deviations that is not that of the
                channels, values outside 0..255 and 0..1, or standard deviations so small that lattice coordinates are
                beyond ±32767.
        """
        as_array = isinstance(prob, np.ndarray)
        axes = len(self.spacing) if self.spacing else 3 if getattr(image, "ndim", 0) == 5 else 2
        image, prob = image_tensor(image, axes=axes), prob_tensor(prob, axes=axes)
        check_sizes(image, prob, axes=axes)
        check_channels(image, self.params.bi_rgb_std, "bi_rgb_std", axes)
        if self.learnable and prob.shape[-1 - axes] != len(self.compatibility):
            wanted = f"that of the layer's {len(self.compatibility)} classes"
            raise ArgumentError("prob", shape_of(prob), wanted, what="shape")
        check_values(image, prob, axes=axes)
        batched = prob.ndim == 2 + axes
        if not batched:
            image, prob = image[None], prob[None]
        with torch.autocast(prob.device.type, enabled=False):
            unary = -torch.log(prob.float().clamp(CLIP, 1))
            features, compat = self._kernels(image)
            params = self.params
            Q = ops.dense_crf(
                unary, features, compat, params.iterations, params.normalization, recompute=self.recompute
            )
            Q = Q.to(prob.dtype)
        Q = Q if batched else Q[0]
        return Q.detach().numpy() if as_array else Q

    def _kernels(self, image: Tensor) -> tuple[list[Tensor], list[Any]]:
        """Features and compatibilities of the kernels.

        A kernel of weight 0 adds nothing to the energy: its lattice need not be built.
        """
        params = self.params
        features, compat = [], []
        if params.pos_w != 0 or self.learnable:
            features.append(spatial_features(image, params.pos_xy_std, self.spacing))
            compat.append(self.compatibility @ self.spatial_weight if self.learnable else float(params.pos_w))
        if params.bi_w != 0 or self.learnable:
            features.append(bilateral_features(image, params.bi_xy_std, params.bi_rgb_std, self.spacing))
            compat.append(self.compatibility @ self.bilateral_weight if self.learnable else float(params.bi_w))
        return features, compat


def _text(value: float | str | tuple[float, ...]) -> str:
    if isinstance(value, str):
        return repr(value)
    return f"({', '.join(map(_text, value))})" if isinstance(value, tuple) else f"{value:g}"
