"""pairwise_energy: as `nn.DenseCRFLoss`, the dense-CRF regularised loss, against pydensecrf's filter class by class."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from bench.case import Backend, Case, Target
from bench.cases.common import OURS, PYDENSECRF, THREADS, gpu_and_cpu, photo_batch
from deeplab_fast import nn

CLASSES = 21
SIGMA_RGB, SIGMA_XY, SCALE = 15.0, 100.0, 0.5  # as the loss is used with DeepLab


def cases(target: Target) -> Iterator[Case]:
    count, side = target.pick((8, 321), (2, 32))
    peer = Backend(_loss_of_peer, takes="cpu", threads=1, needs=PYDENSECRF, once=target.gpu)
    ours = gpu_and_cpu(_loss_of_ours) if target.gpu else {OURS: Backend(_loss_of_ours, takes="cpu", threads=THREADS)}
    yield Case(
        op="pairwise_energy",
        size=f"dense_crf_loss of 8 images 321x321, scale {SCALE}, {CLASSES} classes, forward + backward",
        inputs=functools.partial(_inputs, target, count, side),
        backends={"pydensecrf, class by class": peer} | ours,
        error=_relative_difference,
        allowed=1e-4,
        quick=True,
        sizes={"batch": count, "height": side, "width": side, "scale": SCALE, "classes": CLASSES},
        device="cuda" if target.gpu else "cpu",
    )


def _inputs(target: Target, count: int, side: int) -> dict[str, Any]:
    inputs = photo_batch(count, side, CLASSES)
    return {"cpu": inputs, "gpu": tuple(tensor.to(target.device) for tensor in inputs)}


def _loss_of_ours(inputs: tuple[Tensor, Tensor]) -> Tensor:
    images, prob = inputs
    prob = prob.detach().requires_grad_()
    loss = nn.DenseCRFLoss(1.0, SIGMA_RGB, SIGMA_XY, SCALE)(images, prob)
    loss.backward()
    return loss.detach()


def _loss_of_peer(inputs: tuple[Tensor, Tensor]) -> Tensor:
    """Sum of S_k' A S_k as codes in use compute it: the lattice once an image, then a filtering for each class.

    pydensecrf has no filter to call, but its KL divergence of a single label without energies is sum Q log Q - Q' A Q,
    with one filtering of whatever stands in Q. What these codes do in the backward pass, multiply, is left out.
    """
    import pydensecrf.densecrf as dcrf

    images, prob = inputs
    small = interpolate(images.float(), scale_factor=SCALE).byte().permute(0, 2, 3, 1).contiguous().numpy()
    small_prob = interpolate(prob, scale_factor=SCALE, mode="bilinear", align_corners=False).numpy()
    total = 0.0
    for image, classes in zip(small, small_prob, strict=True):
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
    return torch.tensor(total / len(images))


def _relative_difference(result: Tensor, expected: Tensor) -> float:
    return (abs(result.cpu() - expected.cpu()) / abs(expected.cpu())).item()
