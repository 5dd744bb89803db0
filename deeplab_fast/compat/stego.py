"""`dense_crf` and `batched_crf` of STEGO, which HP, EAGLE, CAUSE, PriMaPs and CUPS have, too.

Preset "stego". As there, images are normalised by ImageNet's mean and deviation, and their channels are taken in the
order blue, green, red.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_fast.compat._inference import infer
from deeplab_fast.crf.parameters import PRESETS
from deeplab_fast.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["batched_crf", "dense_crf"]


def dense_crf(image_tensor: Tensor, output_logits: Tensor) -> NDArray[np.float32]:
    """Refine the logits of one image.

    Args:
        image_tensor: (3, H, W), floating, RGB normalised by ImageNet's mean and deviation, on any device.
        output_logits: (K, h, w), floating, of any size and on any device; upsampled bilinearly to the image's.

    Returns:
        Q, float32 (K, H, W): marginals, which sum to 1 over K.

    Raises:
        TypeError: for what is no floating tensor.
        ValueError: for another shape, or NaN.
    """
    import torch

    from deeplab_fast import ops
    from deeplab_fast.crf.batched import threads_of_this_process
    from deeplab_fast.pydensecrf import utils

    for name, tensor in (("image_tensor", image_tensor), ("output_logits", output_logits)):
        if not isinstance(tensor, torch.Tensor):
            raise ArgumentTypeError(name, type(tensor), "a tensor")
        if not tensor.is_floating_point():
            raise ArgumentTypeError(name, tensor.dtype, "floating", what="dtype")
        if tensor.ndim != 3 or 0 in tensor.shape or (name == "image_tensor" and len(tensor) != 3):
            wanted = "(3, H, W)" if name == "image_tensor" else "(K, h, w)"
            raise ArgumentError(name, tuple(tensor.shape), f"{wanted}, not empty", what="shape")
    with threads_of_this_process(), torch.no_grad():
        photo = _blue_green_red(image_tensor.detach().cpu().float())
        logits = output_logits.detach().cpu().float()
        if not torch.isfinite(logits).all():
            raise ArgumentError("output_logits", "NaN or Inf in places", "finite", what="values")
        prob = ops.upsample_softmax(logits[None], photo.shape[:2])[0].numpy()
        return infer(photo, utils.unary_from_softmax(prob), PRESETS["stego"])


def batched_crf(pool: Any, img_tensor: Tensor, prob_tensor: Tensor) -> Tensor:
    """`dense_crf` of each image of a batch, one after the other, on all threads.

    Args:
        pool: of processes, ignored: nothing is sent there, so nothing hangs there.
        img_tensor: (N, 3, H, W), as `dense_crf` takes them.
        prob_tensor: logits (N, K, h, w), whatever their name in scripts.

    Returns:
        Q, float32 (N, K, H, W), on the CPU.

    Raises:
        TypeError, ValueError: as `dense_crf`, and for batches of different or no length.
    """
    import torch

    if len(img_tensor) != len(prob_tensor) or len(img_tensor) == 0:
        raise ArgumentError("prob_tensor", len(prob_tensor), f"{len(img_tensor)}, that of img_tensor", what="length")
    refined = [dense_crf(image, logits) for image, logits in zip(img_tensor, prob_tensor, strict=True)]
    return torch.from_numpy(np.stack(refined))


def _blue_green_red(image: Tensor) -> NDArray[np.uint8]:
    """The photo (H, W, 3) of an image (3, H, W), its fractions cut off."""
    from deeplab_fast.crf.batched import IMAGENET_MEAN, IMAGENET_STD

    if not bool(image.isfinite().all()):
        raise ArgumentError("image_tensor", "NaN or Inf in places", "finite", what="values")
    # One channel after the other, in this order of operations: another rounding would cut off another fraction.
    channels = [channel * std + mean for channel, mean, std in zip(image, IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    levels = [(255 * channel).clamp(0, 255).byte().numpy() for channel in reversed(channels)]
    return np.stack(levels, axis=-1)
