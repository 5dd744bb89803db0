"""permutohedral_filter: Gaussian filtering on the lattice, its build included, with and without gradients."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import deeplab_fast
from bench.case import Backend, Case, Target
from bench.cases.common import OURS, PLAIN, THREADS, gpu_and_cpu, image_tensor, plain, relative_error
from deeplab_fast.crf.features import bilateral_features, spatial_features
from tests.support.photos import photo

# name: (standard deviation in position, in colour): the kernels of preset deeplab, and psa's wider bilateral one.
KERNELS = {"spatial 1": (1, None), "bilateral 67, 3": (67, 3), "bilateral 80, 13": (80, 13)}
CHANNELS = (1, 21)


def cases(target: Target) -> Iterator[Case]:
    for backward, (kernel, (xy_std, rgb_std)), channels in itertools.product((False, True), KERNELS.items(), CHANNELS):
        height, width = target.pick((375, 500), (12, 16))
        run = _forward_and_backward if backward else _forward
        yield Case(
            op="permutohedral_filter",
            size=f"{'forward + backward' if backward else 'forward'}, 500x375, {kernel}, {channels} channels",
            inputs=functools.partial(_inputs, target, height, width, xy_std, rgb_std, channels),
            backends=gpu_and_cpu(run, graph=not backward) if target.gpu else _cpu_backends(run),
            error=relative_error,
            allowed=1e-3,
            quick=channels == 21 and kernel != "bilateral 80, 13",
            sizes={
                "height": height,
                "width": width,
                "dimensions": 2 if rgb_std is None else 5,
                "xy_std": xy_std,
                "rgb_std": rgb_std,
                "channels": channels,
                "dtype": "float32",
            },
            device="cuda" if target.gpu else "cpu",
        )


def _cpu_backends(run: Any) -> dict[str, Backend]:
    return {
        PLAIN: Backend(plain(run), takes="cpu", threads=THREADS, once=True),
        f"{OURS}, 1 thread": Backend(run, takes="cpu", threads=1),
        f"{OURS}, {THREADS} threads": Backend(run, takes="cpu", threads=THREADS),
    }


def _inputs(
    target: Target, height: int, width: int, xy_std: float, rgb_std: float | None, channels: int
) -> dict[str, tuple[Tensor, ...]]:
    image = image_tensor(photo("coffee", height, width))
    features = spatial_features(image, xy_std) if rgb_std is None else bilateral_features(image, xy_std, rgb_std)
    generator = torch.Generator().manual_seed(0)
    values, grad = (torch.rand(1, channels, height, width, generator=generator) for _ in range(2))
    inputs = values, features, grad
    return {"cpu": inputs, "gpu": tuple(tensor.to(target.device) for tensor in inputs)}


@torch.inference_mode()
def _forward(inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    values, features, _ = inputs
    return deeplab_fast.permutohedral_filter(values, features)


def _forward_and_backward(inputs: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    values, features, grad = inputs
    values, features = values.detach().requires_grad_(), features.detach().requires_grad_()
    filtered = deeplab_fast.permutohedral_filter(values, features)
    return list(torch.autograd.grad(filtered, [values, features], grad))
