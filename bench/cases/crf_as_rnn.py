"""The CRF as a layer whose kernel weights and compatibility learn, `nn.DenseCRF(learnable=True)`, with gradients."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bench.case import Backend, Case, Target
from bench.cases.common import (
    OURS,
    PLAIN,
    THREADS,
    gpu_and_cpu,
    image_tensor,
    photo_batch,
    plain,
    relative_error,
)
from deeplab_fast import nn
from tests.support.photos import photo, scores

CLASSES, ITERATIONS = 21, 5


def cases(target: Target) -> Iterator[Case]:
    for recompute in (False, True):
        run = functools.partial(_run, recompute)
        if target.gpu:
            batch, height, width = target.pick((8, 321, 321), (2, 12, 12))
            images, backends = "8 images 321x321", gpu_and_cpu(run)
        else:
            batch, height, width = target.pick((1, 375, 500), (1, 12, 16))
            images = "500x375"
            backends = {
                PLAIN: Backend(plain(run), takes="cpu", threads=THREADS),
                OURS: Backend(run, takes="cpu", threads=THREADS),
            }
        text = f"{images}, {CLASSES} classes, {ITERATIONS} iterations, forward + backward"
        yield Case(
            op="crf_as_rnn",
            size=f"{text}{', recompute' if recompute else ''}",
            inputs=functools.partial(_inputs, target, batch, height, width),
            backends=backends,
            error=relative_error,
            allowed=1e-2,
            quick=target.gpu and not recompute,
            sizes={
                "batch": batch,
                "height": height,
                "width": width,
                "classes": CLASSES,
                "iterations": ITERATIONS,
                "recompute": recompute,
            },
            device="cuda" if target.gpu else "cpu",
        )


def _inputs(target: Target, batch: int, height: int, width: int) -> dict[str, Any]:
    if batch == 1:
        image = photo("coffee", height, width)
        images, prob = image_tensor(image), torch.from_numpy(scores(image, CLASSES)).float()[None]
    else:
        images, prob = photo_batch(batch, height, CLASSES)
    inputs = images, prob, torch.rand(prob.shape, generator=torch.Generator().manual_seed(0))
    return {"cpu": inputs, "gpu": tuple(tensor.to(target.device) for tensor in inputs)}


def _run(recompute: bool, inputs: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    images, prob, grad = inputs
    layer = nn.DenseCRF(iterations=ITERATIONS, learnable=True, num_classes=CLASSES, recompute=recompute)
    layer.to(prob.device)
    prob = prob.detach().requires_grad_()
    layer(images, prob).backward(grad)
    return [tensor.grad for tensor in (prob, *layer.parameters()) if tensor.grad is not None]
