"""Gradients of gradients: where there are none, an error says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import deeplab_fast

OPS: dict[str, Callable[..., Tensor]] = {
    "aspp_sum": lambda x, weight, features: deeplab_fast.aspp_sum(x, [weight, weight], None, [1, 2]),
    "atrous_conv2d": lambda x, weight, features: deeplab_fast.atrous_conv2d(x, weight, padding=1),
    "dense_crf": lambda x, weight, features: deeplab_fast.dense_crf(x, features, 1.0, 2),
    "permutohedral_filter": lambda x, weight, features: deeplab_fast.permutohedral_filter(x, features),
    "upsample_softmax": lambda x, weight, features: deeplab_fast.upsample_softmax(x, (9, 9)),
}


@pytest.mark.parametrize("name", OPS)
def test_a_second_derivative_that_is_not_there_is_an_error(name: str, backend: str):
    generator = torch.Generator().manual_seed(0)
    x, features = (torch.rand(1, channels, 5, 6, generator=generator, requires_grad=True) for channels in (3, 2))
    weight = torch.rand(2, 3, 3, 3, generator=generator, requires_grad=True)
    inputs = (x, weight, features)
    out = OPS[name](*inputs)
    first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True, allow_unused=True)
    total = sum(grad.square().sum() for grad in first if grad is not None)
    with pytest.raises(NotImplementedError, match=f"{name} has no second derivative"):
        torch.autograd.grad(total, inputs, allow_unused=True)
