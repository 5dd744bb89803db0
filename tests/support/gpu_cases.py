"""Everything public, called once with small tensors: on fake tensors of a GPU, and on a GPU before all other tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import deeplab_fast
from deeplab_fast import models, nn, ops
from deeplab_fast.crf import batched_crf

LAST = torch.channels_last


def rand(*shape: int) -> Tensor:
    return torch.rand(*shape)


def last(*shape: int) -> Tensor:
    return rand(*shape).contiguous(memory_format=LAST)


class Case:
    """A module or function, and what it is called with; both made on the default device of the moment."""

    def __init__(self, make: Callable[[], Any], *inputs: Callable[[], Any]):
        self.make, self.inputs = make, inputs


def calls(function: Callable[..., Any], *inputs: Callable[[], Any]) -> Case:
    class Calls(torch.nn.Module):
        def forward(self, *arguments: Any) -> Any:
            return function(*arguments)

    return Case(Calls, *inputs)


CASES: dict[str, Case] = {
    "aspp_sum": calls(
        lambda x, w, b: ops.aspp_sum(x, [w, w], b, (1, 2)),
        lambda: rand(2, 8, 9, 9), lambda: rand(4, 8, 3, 3), lambda: rand(4),
    ),
    "aspp_sum, channels_last": calls(
        lambda x, w: ops.aspp_sum(x, [w, w], None, (1, 2)), lambda: last(2, 8, 9, 9), lambda: rand(4, 8, 3, 3)
    ),
    "atrous_conv2d": calls(
        lambda x, w, v: ops.atrous_conv2d(x, w, v, scale=v, relu=True),
        lambda: rand(2, 8, 9, 9), lambda: rand(4, 8, 3, 3), lambda: rand(4),
    ),
    "atrous_conv2d, channels_last": calls(
        lambda x, w, r: ops.atrous_conv2d(x, w, residual=r, padding=2, dilation=2, stride=2),
        lambda: last(2, 8, 9, 9), lambda: rand(4, 8, 3, 3), lambda: last(2, 4, 5, 5),
    ),
    "permutohedral_filter": calls(ops.permutohedral_filter, lambda: rand(2, 4, 9, 9), lambda: rand(2, 3, 9, 9)),
    "permutohedral_filter, channels_last": calls(
        ops.permutohedral_filter, lambda: last(2, 4, 9, 9), lambda: rand(2, 3, 9, 9)
    ),
    "permutohedral_filter, queries": calls(
        ops.permutohedral_filter, lambda: rand(2, 4, 9, 9), lambda: rand(2, 3, 9, 9), lambda: rand(2, 3, 5)
    ),
    "dense_crf": calls(
        lambda u, f, g: ops.dense_crf(u, [f, g], [3.0, 4], 2), lambda: rand(2, 4, 9, 9), lambda: rand(2, 5, 9, 9),
        lambda: rand(2, 2, 9, 9),
    ),
    "dense_crf, a matrix": calls(
        lambda u, f, m: ops.dense_crf(u.half(), f, m, 2, "before"), lambda: last(2, 4, 9, 9),
        lambda: rand(2, 5, 9, 9), lambda: rand(4, 4),
    ),
    "pairwise_energy": calls(
        lambda v, f, i: ops.pairwise_energy(v, f, i, 0.5), lambda: rand(2, 4, 9, 9), lambda: rand(2, 5, 4, 4),
        lambda: rand(2, 1, 4, 4),
    ),
    "upsample_argmax": calls(lambda x: ops.upsample_argmax(x, (20, 21)), lambda: rand(2, 4, 9, 9)),
    "upsample_softmax": calls(lambda x: ops.upsample_softmax(x, 20), lambda: rand(2, 4, 9, 9)),
    "upsample_softmax, channels_last": calls(lambda x: ops.upsample_softmax(x.half(), 20), lambda: last(2, 4, 9, 9)),
    "nn.ASPP": Case(lambda: nn.ASPP(8, 4), lambda: rand(2, 8, 9, 9)),
    "nn.AtrousConv2d": Case(lambda: nn.AtrousConv2d(8, 4, 3, padding=2, dilation=2), lambda: last(2, 8, 9, 9)),
    "nn.ConvBnReLU": Case(lambda: nn.ConvBnReLU(8, 4, 3).eval(), lambda: rand(2, 8, 9, 9)),
    "nn.MSC": Case(lambda: nn.MSC(models.deeplabv2_small(4, msc=False)).eval(), lambda: rand(1, 3, 65, 65)),
    "nn.DenseCRF": Case(lambda: nn.DenseCRF(iterations=2), lambda: rand(2, 3, 9, 9), lambda: rand(2, 4, 9, 9)),
    "nn.DenseCRF, learnable": Case(
        lambda: nn.DenseCRF(2, learnable=True, num_classes=4, bi_rgb_std=(3, 4, 5)), lambda: rand(3, 9, 9),
        lambda: rand(4, 9, 9),
    ),
    "nn.DenseCRF, volumes": Case(
        lambda: nn.DenseCRF.preset("psa", iterations=2, spacing=(2, 1, 1)), lambda: rand(1, 1, 4, 5, 6),
        lambda: rand(1, 2, 4, 5, 6),
    ),
    "nn.DenseCRFLoss": Case(
        lambda: nn.DenseCRFLoss(1e-9, 15, 100, 0.5), lambda: rand(2, 3, 9, 9), lambda: rand(2, 4, 9, 9),
        lambda: torch.ones(2, 9, 9),
    ),
    "nn.DenseCRFLoss, normalized": Case(
        lambda: nn.DenseCRFLoss(1, (15, 14, 13), 100, 1, normalized=True), lambda: rand(2, 3, 9, 9),
        lambda: rand(2, 4, 9, 9),
    ),
    **{
        name: Case(lambda name=name: models.create(name, 4).eval(), lambda: rand(1, 3, 65, 65))
        for name in ("deeplabv2_small", "unet")
    },
}  # fmt: skip
# They keep something of, or look at, the values given, so they are called, but not compiled.
EAGER: dict[str, Case] = {
    "Lattice": calls(
        lambda f, v: deeplab_fast.Lattice(f).filter(v, reverse=True), lambda: rand(2, 3, 9, 9), lambda: last(2, 4, 9, 9)
    ),
    "dense_crf, an array": calls(
        lambda u, f: ops.dense_crf(u, f, np.ones(4), 2), lambda: rand(2, 4, 9, 9), lambda: rand(2, 5, 9, 9)
    ),
    "batched_crf": calls(
        lambda i, u: batched_crf(i, u, "psa", image_range="normalized"), lambda: rand(2, 3, 9, 9),
        lambda: rand(2, 4, 5, 5),
    ),
}  # fmt: skip
