"""Batches of images and a network's logits through the dense CRF: tensors in and out, no pool of processes."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import overload

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from deeplab_fast import ops
from deeplab_fast._arguments import may_look_at_values, shape_of
from deeplab_fast.crf.features import bilateral_features, spatial_features
from deeplab_fast.crf.parameters import CRFParameters, parameters
from deeplab_fast.crf.refining import CLIP, photo_model
from deeplab_fast.errors import ArgumentError, ArgumentTypeError, one_of

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "IMAGE_RANGES", "batched_crf"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in 0..1
IMAGE_RANGES = ("auto", "0..255", "0..1", "normalized")
KINDS = ("logits", "probabilities")
# What ImageNet's mean and deviation make of 0..1 lies in -2.12..2.64; resizing with a cubic filter may exceed it.
LOWEST, HIGHEST = -3.0, 3.5


@overload
def batched_crf(
    images: Tensor,
    logits: Tensor,
    params: str | CRFParameters = "deeplab",
    *,
    kind: str = "logits",
    image_range: str = "auto",
) -> Tensor: ...
@overload
def batched_crf(
    images: Tensor,
    logits: Sequence[Tensor],
    params: str | CRFParameters = "deeplab",
    *,
    kind: str = "logits",
    image_range: str = "auto",
) -> list[Tensor]: ...
def batched_crf(
    images: Tensor,
    logits: Tensor | Sequence[Tensor],
    params: str | CRFParameters = "deeplab",
    *,
    kind: str = "logits",
    image_range: str = "auto",
) -> Tensor | list[Tensor]:
    """Refine a batch: upsamples, takes the softmax and infers; the result is on the device of the logits.

    There is no pool: on a CPU images are taken in turn, each on all threads (`torch.get_num_threads`); on a GPU the
    batch is one call. It may be called in a worker of a `DataLoader` or of a forked pool, whatever parent and worker
    did with torch: in worker processes it computes on one thread, as torch's threads do not survive a fork
    (`deeplab_fast.pydensecrf.set_num_threads` gives inference more). No gradient; `deeplab_fast.nn.DenseCRF` has one.

    Several score maps of an image, such as those of a linear and a cluster probe, or of several networks, share the
    image's lattices on a CPU: as an axis after the batch's where they are of one shape, else as a list of tensors. (On
    a GPU lattices are built for each map.)

    Args:
        images: (N, 3, H, W), RGB on any device: uint8, or floating and then what `image_range` says. Rounded to grey
            levels, so that an image that was normalised gives what the photo gives.
        logits: (N, K, h, w), floating, of any size: upsampled bilinearly (align_corners=False) to the images' before
            the softmax. Or (N, M, K, h, w), M maps of each image; or a list of (N, K_m, h_m, w_m).
        params: a `CRFParameters` or the name of a preset.
        kind: "logits", or "probabilities", which are upsampled as they are.
        image_range: of floating images: "0..255", "0..1", or "normalized" by ImageNet's mean and deviation; "auto"
            goes by the lowest and highest value of the batch, where these tell.

    Returns:
        Q, of the logits' dtype and device: (N, K, H, W), or (N, M, K, H, W), or a list of (N, K_m, H, W).

    Raises:
        TypeError: for other kinds or dtypes.
        ValueError: for shapes or values that do not fit, NaN, or images whose range is not clear.
    """
    with threads_of_this_process(), torch.no_grad():
        params = parameters(params)
        if kind not in KINDS:
            raise ArgumentError("kind", kind, one_of(KINDS))
        photos = _photos(images, image_range)
        maps = [logits] if isinstance(logits, Tensor) else list(logits)
        for number, one in enumerate(maps):
            _check_scores("logits" if isinstance(logits, Tensor) else f"logits[{number}]", one, photos, kind)
        # (N, M, K, h, w) each
        found = _infer(photos, [one if one.ndim == 5 else one[:, None] for one in maps], params, kind)
        results = [Q if one.ndim == 5 else Q[:, 0] for Q, one in zip(found, maps, strict=True)]
        return results[0] if isinstance(logits, Tensor) else results


def _infer(photos: Tensor, maps: Sequence[Tensor], params: CRFParameters, kind: str) -> list[Tensor]:
    """Q (N, M, K, H, W) of each maps (N, M, K, h, w); photos are uint8 (N, 3, H, W)."""
    results = [one.new_empty(*one.shape[:3], *photos.shape[2:]) for one in maps]
    pairs = list(zip(maps, results, strict=True))
    on_cpu = [pair for pair in pairs if pair[0].device.type == "cpu"]
    for n, photo in enumerate(photos.cpu().permute(0, 2, 3, 1).numpy() if on_cpu else ()):
        _infer_image(photo, [(one[n], result[n]) for one, result in on_cpu], params, kind)
    for one, result in pairs:
        if one.device.type != "cpu":
            features, compat = _kernels(photos.to(one.device), params)
            for m in range(one.shape[1]):
                energy = _energies(one[:, m], kind, photos.shape[2:])
                result[:, m] = ops.dense_crf(energy, features, compat, params.iterations, params.normalization)
    return results


def _infer_image(photo: np.ndarray, pairs: Sequence[tuple[Tensor, Tensor]], params: CRFParameters, kind: str) -> None:
    """Q of scores (M, K, h, w) into results (M, K, H, W), of several such pairs and one photo uint8 (H, W, 3)."""
    size = torch.Size(photo.shape[:2])
    classes = max(scores.shape[1] for scores, _ in pairs)
    model = photo_model(np.ascontiguousarray(photo), classes, params)
    for scores, results in pairs:
        for one, result in zip(scores, results, strict=True):
            energy = _energies(one[None], kind, size)[0].flatten(1).numpy()
            # Classes that this map lacks are forbidden, which changes nothing for the others.
            missing = np.full((classes - len(energy), energy.shape[1]), np.inf, np.float32)
            model.setUnaryEnergy(np.concatenate([energy, missing]) if len(missing) else energy)
            Q = model.inference(params.iterations)[: len(energy)]
            result.copy_(torch.from_numpy(Q).reshape(result.shape))


def _kernels(images: Tensor, params: CRFParameters) -> tuple[list[Tensor], list[float]]:
    """Features and compatibilities of images (N, C, H, W). A kernel of weight 0 adds nothing: its lattice is spared."""
    features, compat = [], []
    if params.pos_w != 0:
        features.append(spatial_features(images, params.pos_xy_std))
        compat.append(float(params.pos_w))
    if params.bi_w != 0:
        features.append(bilateral_features(images, params.bi_xy_std, params.bi_rgb_std))
        compat.append(float(params.bi_w))
    return features, compat


def _energies(scores: Tensor, kind: str, size: torch.Size) -> Tensor:
    """Of scores (N, K, h, w), float32 (N, K, H, W)."""
    scores = scores.float()
    if kind == "logits":
        prob = ops.upsample_softmax(scores, tuple(size))
    elif scores.shape[2:] == size:
        prob = scores
    else:
        prob = interpolate(scores, size, mode="bilinear", align_corners=False)
    return -torch.log(prob.clamp(CLIP, 1))


# --- Input ---------------------------------------------------------------------------------------------------------


def _check_scores(name: str, scores: Tensor, photos: Tensor, kind: str) -> None:
    if not isinstance(scores, Tensor):
        raise ArgumentTypeError(name, type(scores), "a tensor")
    if not scores.is_floating_point():
        raise ArgumentTypeError(name, scores.dtype, "floating", what="dtype")
    if scores.ndim not in (4, 5) or len(scores) != len(photos) or 0 in scores.shape[1:]:
        wanted = f"(N, K, h, w) or (N, M, K, h, w), not empty, with N = {len(photos)}, that of images"
        raise ArgumentError(name, shape_of(scores), wanted, what="shape")
    if scores.numel() == 0 or not may_look_at_values(scores):
        return
    low, high = (bound.item() for bound in scores.aminmax())
    if kind == "probabilities" and not (low >= -1e-2 and high <= 1 + 1e-2):
        raise ArgumentError(name, f"{low:.4g} to {high:.4g}", "probabilities in 0..1", what="values")
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ArgumentError(name, f"{low:.4g} to {high:.4g}", "finite", what="values")


def _photos(images: Tensor, image_range: str) -> Tensor:
    """Images as uint8 (N, 3, H, W)."""
    if not isinstance(images, Tensor):
        raise ArgumentTypeError("images", type(images), "a tensor")
    if image_range not in IMAGE_RANGES:
        raise ArgumentError("image_range", image_range, one_of(IMAGE_RANGES))
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ArgumentError("images", shape_of(images), "(N, 3, H, W), not empty", what="shape")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ArgumentTypeError("images", images.dtype, "uint8 or floating", what="dtype")
    images = images.float()
    if images.numel() == 0:
        return images.to(torch.uint8)
    if may_look_at_values(images):
        image_range = _checked_range(images, image_range)
    elif image_range == "auto":
        raise ArgumentError("image_range", image_range, f"{one_of(IMAGE_RANGES[1:])} where images have no values")
    if image_range == "normalized":
        mean, std = (images.new_tensor(numbers)[:, None, None] for numbers in (IMAGENET_MEAN, IMAGENET_STD))
        images = images * std + mean
    levels = images if image_range == "0..255" else 255 * images
    return levels.round().clamp(0, 255).to(torch.uint8)


def _checked_range(images: Tensor, image_range: str) -> str:
    """The range that the images are in, by their values if it is "auto"."""
    low, high = (bound.item() for bound in images.aminmax())
    if image_range == "auto":
        image_range = _range_of(low, high)
    lowest, highest = {"0..255": (0.0, 255.0), "0..1": (0.0, 1.0), "normalized": (LOWEST, HIGHEST)}[image_range]
    if not (low >= lowest - 1e-3 and high <= highest + 1e-3):
        wanted = f"in {lowest:g}..{highest:g}, being {image_range}"
        raise ArgumentError("images", f"{low:.4g} to {high:.4g}", wanted, what="values")
    return image_range


def _range_of(low: float, high: float) -> str:
    """The range of a batch, by its lowest and highest value.

    Raises:
        ValueError: where it could be several.
    """
    if low < 0:
        return "normalized"
    if high > HIGHEST or low == high:  # an image of one colour is that in every range
        return "0..255"
    wanted = f"of a range that is clear; image_range says which: {one_of(IMAGE_RANGES[1:])}"
    raise ArgumentError("images", f"{low:.4g} to {high:.4g}", wanted, what="values")


# --- Processes -----------------------------------------------------------------------------------------------------


class _OneThread:
    """While any Python thread is inside, torch computes on one thread; then on as many as before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = 1

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = torch.get_num_threads()
            torch.set_num_threads(1)  # OpenMP keeps a number for each of Python's threads
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                torch.set_num_threads(self._before)


_one_thread = _OneThread()
_forked = False


def _after_fork() -> None:
    global _forked, _one_thread
    _forked, _one_thread = True, _OneThread()  # another thread may have held the lock when this process was forked


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def threads_of_this_process() -> AbstractContextManager[None]:
    """In a worker process, forked or not, torch computes on one thread within.

    A forked child has its parent's list of OpenMP's threads, but not the threads: to share work with them is to wait
    for ever.
    """
    # The child of a pool may have imported this only after it was forked.
    worker = _forked or multiprocessing.parent_process() is not None
    return _one_thread if worker else nullcontext()
