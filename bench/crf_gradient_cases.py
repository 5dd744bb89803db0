"""The cases of the dense CRF's gradients: the regularised loss against one class at a time, and the CRF as a layer."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from deeplab_fast import nn
from deeplab_fast.ops import define
from tests.photos import PHOTOS, photo, scores

from .cases import Case

THREADS = 2
CLASSES = 21
SIGMA_RGB, SIGMA_XY, SCALE = 15.0, 100.0, 0.5  # as the loss is used with DeepLab
PEER, REFERENCE, OURS = "pydensecrf, class by class", "plain PyTorch", "deeplab_fast"


def crf_gradient_cases() -> Iterator[Case]:
    yield Case(
        op="dense_crf_loss",
        size=f"8 images 321x321, scale {SCALE}, {CLASSES} classes, forward + backward",
        inputs=functools.partial(_loss_inputs, 8, 321),
        backends={PEER: _loss_of_peer, OURS: _loss_of_ours},
        peer=PEER,
        agree=_same_number,
        quick=True,
        imports=("torch", "pydensecrf.densecrf", "deeplab_fast.nn"),
        details={"threads": THREADS, "classes": CLASSES},
    )
    for recompute in (False, True):
        yield Case(
            op="crf_as_rnn",
            size=f"500x375, {CLASSES} classes, 5 iterations, forward + backward{', recompute' if recompute else ''}",
            inputs=_layer_inputs,
            backends={
                REFERENCE: functools.partial(_layer, False, recompute),
                OURS: functools.partial(_layer, True, recompute),
            },
            peer=REFERENCE,
            agree=_same_gradient,
            imports=("torch", "deeplab_fast.nn"),
            details={"threads": THREADS, "classes": CLASSES},
        )


# --- The loss ------------------------------------------------------------------------------------------------------


def _loss_inputs(count: int, side: int) -> tuple[Tensor, Tensor]:
    torch.set_num_threads(THREADS)
    images = [photo(PHOTOS[n % len(PHOTOS)], side + n, side)[:side] for n in range(count)]
    prob = [scores(image, CLASSES, seed=n) for n, image in enumerate(images)]
    image_batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return image_batch, torch.from_numpy(np.stack(prob)).float()


def _loss_of_ours(inputs: tuple[Tensor, Tensor]) -> float:
    images, prob = inputs
    prob = prob.detach().requires_grad_()
    loss = nn.DenseCRFLoss(1.0, SIGMA_RGB, SIGMA_XY, SCALE)(images, prob)
    loss.backward()
    return loss.item()


def _loss_of_peer(inputs: tuple[Tensor, Tensor]) -> float:
    """Sum of S_k' A S_k as codes in use compute it: the lattice once an image, then a filtering for each class.

    pydensecrf has no filter to call, but its KL divergence of a single label without energies is sum Q log Q - Q' A Q,
    with one filtering of whatever stands in Q. What these codes do in the backward pass, multiply, is left out.
    """
    import pydensecrf.densecrf as dcrf

    images, prob = inputs
    images = interpolate(images.float(), scale_factor=SCALE).byte().permute(0, 2, 3, 1).contiguous().numpy()
    prob = interpolate(prob, scale_factor=SCALE, mode="bilinear", align_corners=False).numpy()
    total = 0.0
    for image, classes in zip(images, prob, strict=True):
        height, width = image.shape[:2]
        crf = dcrf.DenseCRF2D(width, height, 1)
        crf.setUnaryEnergy(np.zeros((1, height * width), np.float32))
        crf.addPairwiseBilateral(
            sxy=SIGMA_XY * SCALE, srgb=SIGMA_RGB, rgbim=image, compat=1, normalization=dcrf.NO_NORMALIZATION
        )
        belief, _, _ = crf.startInference()
        for one in classes:
            np.asarray(belief)[0] = one.ravel()
            entropy = np.sum(one * np.log(np.maximum(one, 1e-20)), dtype=np.float64)
            total += crf.klDivergence(belief) - entropy
    return total / len(images)


def _same_number(result: float, expected: float) -> bool:
    return abs(result - expected) <= 1e-4 * abs(expected)


# --- The layer -----------------------------------------------------------------------------------------------------


def _layer_inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.set_num_threads(THREADS)
    image = photo("coffee", 375, 500)
    prob = torch.from_numpy(scores(image, CLASSES)).float()[None]
    grad = torch.rand(prob.shape, generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None], prob, grad


def _layer(kernels: bool, recompute: bool, inputs: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    image, prob, grad = inputs
    layer = nn.DenseCRF(iterations=5, learnable=True, num_classes=CLASSES, recompute=recompute)
    prob = prob.detach().requires_grad_()
    wanted, define.kernels_wanted = define.kernels_wanted, lambda: kernels
    try:
        layer(image, prob).backward(grad)
    finally:
        define.kernels_wanted = wanted
    return [prob.grad, *(p.grad for p in layer.parameters())]


def _same_gradient(result: Any, expected: Any) -> bool:
    return all((a - b).norm() <= 1e-2 * b.norm() for a, b in zip(result, expected, strict=True))
