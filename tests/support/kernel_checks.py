"""What the launchers of Triton kernels have to give; checked in the interpreter and on a GPU alike."""

from __future__ import annotations

import torch
from conv_samples import (
    AsppSample,
    AtrousSample,
    assert_accurate,
    centred,
    stock_aspp,
    stock_atrous,
    stock_conv2d_gradients,
)
from torch import Tensor

from deeplab_fast._conv_arguments import Epilogue, Geometry, check_atrous_arguments, format_of, output_size
from deeplab_fast.kernels import aspp_sum, atrous_conv2d
from deeplab_fast.kernels.choices import Tile
from deeplab_fast.reference.aspp_sum import same_geometry


def check_aspp(sample: AsppSample, device: str, path: str, tile: Tile | None = None) -> None:
    x, weights, bias, rates = sample.inputs(device)
    out = aspp_sum.forward(x, weights, bias, rates, path=path, tile=tile)
    assert_like(out, x)
    assert_accurate(out, stock_aspp(rates), [x, bias, *weights])


def check_aspp_gradients(sample: AsppSample, device: str) -> None:
    x, weights, _, rates = sample.inputs(device)
    grad = _grad(x, (x.shape[0], weights[0].shape[0], *x.shape[2:]))

    def stock_x(grad: Tensor, *weights: Tensor) -> Tensor:
        pairs, maps = zip(weights, rates, strict=True), grad.new_zeros(x.shape)
        return sum(stock_conv2d_gradients(maps, w, grad, same_geometry(w, r))[0] for w, r in pairs)

    to_x = aspp_sum.backward_x(grad, weights, rates)
    assert_like(to_x, grad)
    if x.shape[0] > 0:
        assert_accurate(to_x, stock_x, [grad, *weights], "x")

    to_weights = aspp_sum.backward_weights(grad, x, weights, rates)
    for b, (gradient, weight, rate) in enumerate(zip(to_weights, weights, rates, strict=True)):
        assert gradient.shape == weight.shape
        assert gradient.is_contiguous()
        assert gradient.dtype == weight.dtype
        if x.shape[0] == 0:
            assert gradient.eq(0).all()
            continue

        def stock_weight(grad: Tensor, x: Tensor, weight=weight, rate=rate) -> Tensor:
            return stock_conv2d_gradients(x, weight.to(x.dtype), grad, same_geometry(weight, rate))[1]

        assert_accurate(gradient, stock_weight, [grad, x], f"weights[{b}]")


def check_atrous(sample: AtrousSample, device: str, path: str, tile: Tile | None = None) -> None:
    (x, weight, bias, *_), extra = sample.inputs(device)
    geometry, epilogue = geometry_of(sample, device), Epilogue(bias, **extra)
    out = atrous_conv2d.forward(x, weight, geometry, epilogue, path=path, tile=tile)
    assert_like(out, x)
    assert_accurate(out, stock_atrous(*geometry, epilogue.relu), [x, weight, *epilogue[:3]])


def check_atrous_gradients(sample: AtrousSample, device: str, path: str, tile: Tile | None = None) -> None:
    """Of the convolution with its scale."""
    (x, weight, *_), extra = sample.inputs(device)
    geometry, scale = geometry_of(sample, device), extra["scale"]

    def stock_x(grad: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
        scaled = weight if scale is None else weight * scale[:, None, None, None]
        return stock_conv2d_gradients(grad.new_zeros(x.shape), scaled, grad, geometry)[0]

    def stock_weight(grad: Tensor, x: Tensor) -> Tensor:
        return stock_conv2d_gradients(x, weight.to(x.dtype), grad, geometry)[1]

    grad, (to_x, to_weight) = _atrous_gradients(sample, device, path, tile)
    assert_like(to_x, x)
    assert to_weight.is_contiguous()
    assert to_weight.dtype == weight.dtype
    if x.shape[0] == 0:
        assert to_weight.eq(0).all()
        return
    assert_accurate(to_x, stock_x, [grad, weight, scale], "x")
    assert_accurate(to_weight, stock_weight, [grad, x], "weight")


def check_atrous_gradients_alone(sample: AtrousSample, device: str, path: str) -> None:
    """Each of the gradients without the other is the same, and none is none."""
    _, (to_x, to_weight) = _atrous_gradients(sample, device, path)
    _, (alone_x,) = _atrous_gradients(sample, device, path, need_weight=False)
    _, (alone_weight,) = _atrous_gradients(sample, device, path, need_x=False)
    assert torch.equal(alone_x, to_x)
    assert torch.equal(alone_weight, to_weight)
    assert _atrous_gradients(sample, device, path, need_x=False, need_weight=False)[1] == []


def _atrous_gradients(
    sample: AtrousSample,
    device: str,
    path: str,
    tile: Tile | None = None,
    need_x: bool = True,
    need_weight: bool = True,
) -> tuple[Tensor, list[Tensor]]:
    """A gradient to the result, and what becomes of it."""
    (x, weight, *_), extra = sample.inputs(device)
    geometry = geometry_of(sample, device)
    grad = _grad(x, (x.shape[0], weight.shape[0], *output_size(x, weight, geometry)))
    gradients = atrous_conv2d.backward(
        grad, x, weight, extra["scale"], geometry, need_x, need_weight, path_x=path, path_weight=path, tile=tile
    )
    return grad, gradients


def check_backward_relu(sample: AtrousSample, device: str) -> None:
    (out, *_), _ = sample.inputs(device)
    grad = _grad(out, out.shape)
    masked, sums = atrous_conv2d.backward_relu(grad, out)
    assert_like(masked, out)
    assert torch.equal(masked, torch.where(out > 0, grad, 0))
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums.double(), masked.double().sum((0, 2, 3)), rtol=1e-5, atol=1e-5)


def geometry_of(sample: AtrousSample, device: str) -> Geometry:
    """As the op hands it to its kernels."""
    (x, weight, bias, *geometry), extra = sample.inputs(device)
    return check_atrous_arguments(x, weight, *geometry, Epilogue(bias, **extra))


def assert_like(result: Tensor, maps: Tensor) -> None:
    """In the dtype and format of the maps."""
    assert result.dtype == maps.dtype
    assert result.is_contiguous(memory_format=format_of(maps))


def _grad(like: Tensor, size: torch.Size) -> Tensor:
    return centred(21, *size).to(like.device, like.dtype).contiguous(memory_format=format_of(like))
