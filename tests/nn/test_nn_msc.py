"""`nn.MSC`: agreement with the published reimplementation, sizes, modes, bad input."""

from __future__ import annotations

import pytest
import torch
from conv_samples import centred
from torch import Tensor
from torch import nn as torch_nn
from torch.nn.functional import interpolate

from deeplab_fast import nn


def base() -> torch_nn.Module:
    torch.manual_seed(0)
    return torch_nn.Sequential(torch_nn.Conv2d(3, 4, 3, stride=8, padding=1), torch_nn.Tanh())


def published(module: nn.MSC, x: Tensor, scales=(0.5, 0.75)) -> list[Tensor]:
    """[full, scaled…, maximum], as the PyTorch DeepLab-v2 in common use computes them."""
    logits = module.base(x)
    pyramid = []
    for scale in scales:
        pyramid.append(module.base(interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)))
    resized = [interpolate(one, logits.shape[2:], mode="bilinear", align_corners=False) for one in pyramid]
    return [logits, *pyramid, torch.max(torch.stack([logits, *resized]), dim=0)[0]]


@pytest.mark.parametrize("size", [(321, 321), (65, 97), (50, 33)])
def test_as_published(size: tuple[int, int]):
    module = nn.MSC(base())
    x = centred(1, 2, 3, *size)
    expected = published(module, x)
    torch.testing.assert_close(module(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(module.eval()(x), expected[-1], rtol=0, atol=0)


def test_sizes_of_a_crop():
    outs = nn.MSC(base())(torch.zeros(1, 3, 321, 321))
    assert [out.shape[-1] for out in outs] == [41, 20, 30, 41]


def test_gradient():
    module = nn.MSC(base())
    results = []
    for run in (module, lambda x: published(module, x)):
        module.zero_grad()
        x = centred(1, 1, 3, 40, 30).requires_grad_()
        sum(out.square().sum() for out in run(x)).backward()
        results.append((x.grad, [p.grad for p in module.parameters()]))
    torch.testing.assert_close(*results)


def test_a_larger_scale_sets_the_size():
    module = nn.MSC(base(), scales=(2,)).eval()
    x = centred(1, 1, 3, 40, 40)
    full, scaled = module.base(x), module.base(interpolate(x, scale_factor=2, mode="bilinear"))
    expected = torch.maximum(interpolate(full, scaled.shape[2:], mode="bilinear"), scaled)
    torch.testing.assert_close(module(x), expected)


def test_without_scales():
    module = nn.MSC(base(), scales=())
    x = centred(1, 1, 3, 40, 40)
    assert torch.equal(module.eval()(x), module.base(x))
    assert len(module.train()(x)) == 2


def test_parameters_are_behind_base():
    module = nn.MSC(nn.ASPP(3, 2, rates=(1,)))
    assert list(module.state_dict()) == ["base.c0.weight", "base.c0.bias"]
    assert repr(module).startswith("MSC(\n  scales=(0.5, 0.75)")


def test_refuses():
    with pytest.raises(TypeError, match=r"base: is a function, should be a torch\.nn\.Module"):
        nn.MSC(published)
    for scale in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"scales: is \(0\.5, .*\), should be positive numbers"):
            nn.MSC(base(), scales=(0.5, scale))
    module = nn.MSC(base())
    with pytest.raises(TypeError, match=r"x: dtype is torch\.uint8, should be floating"):
        module(torch.zeros(1, 3, 9, 9, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"x: shape is \(3, 9, 9\), should be \(N, C, H, W\)"):
        module(torch.zeros(3, 9, 9))
    with pytest.raises(ValueError, match=r"x: shape is \(1, 3, 9, 1\), .* at least 1 at scales \(0\.5, 0\.75\)"):
        module(torch.zeros(1, 3, 9, 1))
    module.base = nn.MSC(base())  # a list, in training
    with pytest.raises(TypeError, match="base: output is a list, should be a tensor"):
        module(torch.zeros(1, 3, 33, 33))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_every_scale_comes_in_the_memory_format_of_the_image(memory_format: torch.memory_format):
    seen = []

    class Base(torch_nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x

    nn.MSC(Base())(torch.rand(1, 3, 20, 30).contiguous(memory_format=memory_format))
    assert len(seen) == 3
    assert all(x.is_contiguous(memory_format=memory_format) for x in seen)
