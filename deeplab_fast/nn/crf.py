"""The dense CRF behind a segmentation network."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deeplab_fast import ops
from deeplab_fast._arguments import shape_of
from deeplab_fast.crf import CLIP, PRESETS, CRFParameters, parameters

__all__ = ["DenseCRF"]


class DenseCRF(nn.Module):
    """Refine a network's class probabilities with a fully connected CRF, as DeepLab does with pydensecrf.

    A bilateral (appearance) and a spatial (smoothness) kernel, normalised symmetrically, over energies -log(prob) with
    probabilities clipped to 1e-5..1. Paper: Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with
    Gaussian Edge Potentials", 2011, equation 3 and algorithm 1. Inference is in float32. Not differentiable yet.

    Args:
        iterations: mean-field iterations, 0 or more.
        pos_w: weight of the spatial kernel; 0 leaves it out.
        pos_xy_std: its standard deviation, pixels.
        bi_w: weight of the bilateral kernel; 0 leaves it out.
        bi_xy_std: its standard deviation in position, pixels.
        bi_rgb_std: its standard deviation in colour, grey levels of 0..255.
        learnable: must be False; parameters that learn need gradients, which are yet to come.

    Raises:
        TypeError: if `iterations` is no whole number.
        ValueError: if a standard deviation is not positive, iterations are negative, or anything is not finite.
        NotImplementedError: for `learnable=True`.

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
        bi_rgb_std: float = 3,
        learnable: bool = False,
    ):
        super().__init__()
        if learnable:
            raise NotImplementedError(
                "learnable: is True, should be False: learnable kernel weights and compatibilities come with the "
                "gradients of dense_crf, which are not there yet"
            )
        self.params = CRFParameters(
            pos_w=pos_w,
            pos_xy_std=pos_xy_std,
            bi_w=bi_w,
            bi_xy_std=bi_xy_std,
            bi_rgb_std=bi_rgb_std,
            iterations=iterations,
        )

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> DenseCRF:
        """The parameters in use with a published method: "deeplab", "irn", "psa" or "afa".

        Args:
            name: of the preset.
            **overrides: parameters of the constructor that replace the preset's, for example `iterations=5`.

        Raises:
            ValueError: for an unknown name, and as the constructor does.
        """
        if name not in PRESETS:
            raise ValueError(f"name: is {name!r}, should be one of {', '.join(map(repr, PRESETS))}")
        learnable = overrides.pop("learnable", False)
        return cls(**vars(parameters(name, **overrides)), learnable=learnable)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value:g}" for name, value in vars(self.params).items())

    def forward(self, image: Tensor | np.ndarray, prob: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """Infer the marginals Q.

        Args:
            image: RGB in 0..255, uint8 or floating: a tensor (3, H, W) or (N, 3, H, W), or an array (H, W, 3) or
                (N, H, W, 3).
            prob: probabilities of the K classes, floating: a tensor or an array (K, H, W), or (N, K, H, W) with a batch
                of images. A tensor must be on the image's device.

        Returns:
            Q, of the shape, dtype, device and kind (tensor or array) of `prob`; it sums to 1 over the classes.

        Raises:
            TypeError: for other kinds or dtypes.
            ValueError: for shapes or devices that do not fit, values outside 0..255 and 0..1, or standard deviations
                so small that lattice coordinates are beyond ±32767.
        """
        as_array = isinstance(prob, np.ndarray)
        image, prob = _image_tensor(image), _prob_tensor(prob)
        _check_sizes(image, prob)
        if not torch.compiler.is_compiling():  # these look at values
            _check_values(image, prob)
        batched = prob.ndim == 4
        if not batched:
            image, prob = image[None], prob[None]
        unary = -torch.log(prob.float().clamp(CLIP, 1))
        Q = ops.dense_crf(unary, *self._kernels(image), self.params.iterations).to(prob.dtype)
        Q = Q if batched else Q[0]
        return Q.numpy() if as_array else Q

    def _kernels(self, image: Tensor) -> tuple[list[Tensor], list[float]]:
        """Features and weights of the kernels; features in float32, as pydensecrf's two-dimensional methods make them.

        A kernel of weight 0 adds nothing to the energy: its lattice need not be built.
        """
        size, device = image.shape[2:], image.device
        y, x = torch.meshgrid(
            *(torch.arange(length, device=device, dtype=torch.float32) for length in size), indexing="ij"
        )
        position = torch.stack([x, y]).expand(len(image), 2, *size)
        features, weights = [], []
        if self.params.pos_w != 0:
            features.append(_divide(position, self.params.pos_xy_std))
            weights.append(float(self.params.pos_w))
        if self.params.bi_w != 0:
            scaled = _divide(position, self.params.bi_xy_std), _divide(image.float(), self.params.bi_rgb_std)
            features.append(torch.cat(scaled, dim=1))
            weights.append(float(self.params.bi_w))
        return features, weights


def _divide(tensor: Tensor, number: float) -> Tensor:
    # By a number on the host, a GPU would multiply with its reciprocal, which rounds differently.
    return tensor / torch.full((), number, dtype=tensor.dtype, device=tensor.device)


def _image_tensor(image: Tensor | np.ndarray) -> Tensor:
    """As a tensor (3, H, W) or (N, 3, H, W), sharing memory."""
    channels = -3
    if isinstance(image, np.ndarray):
        image, channels = _from_numpy("image", image), -1
    if not isinstance(image, Tensor):
        raise TypeError(f"image: is a {type(image).__name__}, should be a tensor or a numpy array")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise TypeError(f"image: dtype is {image.dtype}, should be uint8 or floating")
    if image.ndim not in (3, 4) or image.shape[channels] != 3:
        wanted = (
            "(3, H, W) or (N, 3, H, W) for a tensor" if channels == -3 else "(H, W, 3) or (N, H, W, 3) for an array"
        )
        raise ValueError(f"image: shape is {shape_of(image)}, should be {wanted}")
    return image if channels == -3 else image.movedim(-1, -3)


def _prob_tensor(prob: Tensor | np.ndarray) -> Tensor:
    if isinstance(prob, np.ndarray):
        prob = _from_numpy("prob", prob)
    if not isinstance(prob, Tensor):
        raise TypeError(f"prob: is a {type(prob).__name__}, should be a tensor or a numpy array")
    if not prob.is_floating_point():
        raise TypeError(f"prob: dtype is {prob.dtype}, should be floating")
    if prob.ndim not in (3, 4) or 0 in prob.shape[-3:]:
        raise ValueError(
            f"prob: shape is {shape_of(prob)}, should be (K, H, W) or (N, K, H, W) with K, H and W at least 1"
        )
    return prob


def _from_numpy(name: str, array: np.ndarray) -> Tensor:
    # torch refuses negative strides and other byte orders, and warns of arrays that cannot be written.
    if not array.dtype.isnative or any(stride < 0 for stride in array.strides) or not array.flags.writeable:
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise TypeError(f"{name}: dtype is {array.dtype}, should be floating") from error


def _check_sizes(image: Tensor, prob: Tensor) -> None:
    if image.ndim != prob.ndim or image.shape[:-3] != prob.shape[:-3] or image.shape[-2:] != prob.shape[-2:]:
        raise ValueError(
            f"prob: shape is {shape_of(prob)}, should have the batch, height and width of the image, whose shape is "
            f"{shape_of(image)} with channels before height and width"
        )
    if image.device != prob.device:
        raise ValueError(f"prob: device is {prob.device}, should be {image.device}, that of the image")


def _check_values(image: Tensor, prob: Tensor) -> None:
    if prob.numel() == 0:
        return
    slack = 1e-3 if prob.dtype.itemsize > 2 else 1e-2  # what rounding explains
    low, high = (bound.item() for bound in prob.detach().aminmax())
    if not (low >= -slack and high <= 1 + slack):
        raise ValueError(f"prob: values are {low:.4g} to {high:.4g}, should be probabilities in 0..1")
    if image.dtype == torch.uint8:
        return
    low, high = (bound.item() for bound in image.detach().aminmax())
    if not (low >= 0 and high <= 255):
        raise ValueError(f"image: values are {low:.4g} to {high:.4g}, should be in 0..255, not normalised")
    if 0 < high <= 1:
        warnings.warn(f"image: no value is above {high:.4g}; colours are expected in 0..255, not in 0..1", stacklevel=4)
