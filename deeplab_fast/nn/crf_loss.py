"""The dense-CRF regularised loss of weakly supervised segmentation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from deeplab_fast import ops
from deeplab_fast._arguments import shape_of
from deeplab_fast.crf.features import bilateral_features
from deeplab_fast.crf.parameters import deviations
from deeplab_fast.errors import ArgumentError, ArgumentTypeError
from deeplab_fast.nn.crf_inputs import (
    check_channels,
    check_sizes,
    check_values,
    image_tensor,
    prob_tensor,
)
from deeplab_fast.reference.pairwise_energy import scaled

__all__ = ["DenseCRFLoss"]


class DenseCRFLoss(nn.Module):
    """Penalises probabilities that differ where the image does not: the pairwise energy of a dense CRF, relaxed.

    Tang et al., "On Regularized Losses for Weakly-supervised CNN Segmentation", ECCV 2018, equation 3. With S_k the
    probabilities of class k inside the region of interest m (0 outside), and A the bilateral Gaussian filter
    exp(-|f_i - f_j|²/2) as the permutohedral lattice computes it:

        weight / N · -sum_k S_kᵀ A S_k

    the form in use, not normalised: it is negative, and grows with the image. With `normalized=True`

        weight · sum_k S_kᵀ (Â m - Â S_k) / sum m,   Â = D^-1/2 A D^-1/2,  D = A 1

    which is about the chance that a pixel inside m and one of its neighbours, drawn by the kernel, are of different
    classes: 0 to about 1, whatever the size of image and batch.

    The lattice's filter is not exactly symmetric. The gradient is exact all the same, -(A + Aᵀ) S; implementations in
    use take it for -2 A S.

    Args:
        weight: of the loss.
        sigma_rgb: standard deviation of the kernel in colour, grey levels of 0..255; a number, or one for each channel
            of the images, in the channel's unit.
        sigma_xy: in position, pixels of the images given.
        scale_factor: by which everything is resized first (0.5 takes a quarter of the time): images and regions to the
            nearest pixel, probabilities bilinearly; `sigma_xy` is scaled with them.
        normalized: see above.

    Raises:
        TypeError: if `sigma_rgb` is neither a number nor several.
        ValueError: if a standard deviation or the scale is not positive, or anything is not finite.

    Example:
        >>> loss = DenseCRFLoss(weight=2e-9, sigma_rgb=15, sigma_xy=100, scale_factor=0.5)
        >>> loss(images, torch.softmax(logits, dim=1), rois).backward()
    """

    def __init__(
        self,
        weight: float,
        sigma_rgb: float | Sequence[float],
        sigma_xy: float,
        scale_factor: float,
        normalized: bool = False,
    ):
        super().__init__()
        sigma_rgb = deviations("sigma_rgb", sigma_rgb)
        colours = [("sigma_rgb", sigma) for sigma in (sigma_rgb if isinstance(sigma_rgb, tuple) else (sigma_rgb,))]
        for name, value in (*colours, ("sigma_xy", sigma_xy), ("scale_factor", scale_factor)):
            if not (value > 0 and math.isfinite(value)):
                raise ArgumentError(name, value, "positive and finite")
        if not math.isfinite(weight):
            raise ArgumentError("weight", weight, "finite")
        self.weight = weight
        self.sigma_rgb = sigma_rgb
        self.sigma_xy = sigma_xy
        self.scale_factor = scale_factor
        self.normalized = normalized

    def extra_repr(self) -> str:
        names = ("weight", "sigma_rgb", "sigma_xy", "scale_factor", "normalized")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def forward(self, images: Tensor, segmentations: Tensor, rois: Tensor | None = None) -> Tensor:
        """The loss of a batch, all images and classes in one filtering.

        Args:
            images: (N, C, H, W), uint8 or floating. Three channels are RGB in 0..255; any other number of them (one of
                grey, twelve of a satellite) may have any values.
            segmentations: (N, K, H, W), floating: probabilities.
            rois: (N, H, W), 1 (or True) inside the region of interest and 0 outside; or None for everything. A region
                that is empty adds nothing.

        Returns:
            A number, (), float32; differentiable to `segmentations`, and to `images` if they require a gradient.

        Raises:
            TypeError: for other kinds or dtypes.
            ValueError: for shapes or devices that do not fit, a number of `sigma_rgb` that is not that of the channels,
                and values outside 0..255 and 0..1.
        """
        names = ("images", "segmentations")
        images, segmentations = image_tensor(images, names[0]), prob_tensor(segmentations, names[1])
        if segmentations.ndim != 4:
            raise ArgumentError("segmentations", shape_of(segmentations), "(N, K, H, W)", what="shape")
        check_sizes(images, segmentations, names)
        check_channels(images, self.sigma_rgb, "sigma_rgb")
        _check_rois(rois, segmentations)
        if min(int(size * self.scale_factor) for size in segmentations.shape[2:]) < 1:
            wanted = f"larger, scaling by {self.scale_factor} leaves nothing"
            raise ArgumentError("segmentations", shape_of(segmentations), wanted, what="shape")
        check_values(images, segmentations, names)
        with torch.autocast(segmentations.device.type, enabled=False):
            images = self._nearest(images.float())
            inside = None if rois is None else self._nearest(rois[:, None].float())
            features = bilateral_features(images, self.sigma_xy * self.scale_factor, self.sigma_rgb)
            energy = _normalized_energy if self.normalized else _energy
            return self.weight * energy(segmentations, inside, features, self.scale_factor).float()

    def _nearest(self, maps: Tensor) -> Tensor:
        if self.scale_factor == 1:
            return maps
        return interpolate(maps, scale_factor=self.scale_factor, mode="nearest")


def _energy(segmentations: Tensor, inside: Tensor | None, features: Tensor, factor: float) -> Tensor:
    return -ops.pairwise_energy(segmentations, features, inside, factor).sum() / max(len(segmentations), 1)


def _normalized_energy(segmentations: Tensor, inside: Tensor | None, features: Tensor, factor: float) -> Tensor:
    S = scaled(segmentations.float(), factor)
    m = torch.ones_like(S[:, :1]) if inside is None else inside
    S = S * m
    normalization = (ops.permutohedral_filter(torch.ones_like(m), features) + 1e-20).rsqrt()
    filtered = normalization * ops.permutohedral_filter(normalization * torch.cat([S, m], dim=1), features)
    disagreement = S * (filtered[:, -1:] - filtered[:, :-1])
    return disagreement.sum() / m.sum().clamp(min=1)


def _check_rois(rois: Tensor | None, segmentations: Tensor) -> None:
    if rois is None:
        return
    if not isinstance(rois, Tensor):
        raise ArgumentTypeError("rois", type(rois), "a tensor or None")
    wanted = (segmentations.shape[0], *segmentations.shape[2:])
    if shape_of(rois) != wanted:
        raise ArgumentError("rois", shape_of(rois), f"{wanted}, to go with segmentations", what="shape")
    if rois.device != segmentations.device:
        raise ArgumentError("rois", rois.device, f"{segmentations.device}, that of segmentations", what="device")
