"""atrous_conv2d: convolution, batch norm, maybe a residual, ReLU: the layers of DeepLab-v2 against stock PyTorch."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d

import deeplab_fast
from bench.case import Backend, Case, Target, installed
from bench.cases.common import (
    CHANNELS_LAST,
    COMPILED,
    LAST,
    NCHW,
    OURS,
    THREADS,
    TRITON,
    by_path,
    compiled,
    dtypes,
    formatted,
    name_of,
    relative_error,
    seeded,
    stock_layouts,
)
from deeplab_fast._conv_arguments import Epilogue, Geometry


class Layer(NamedTuple):
    """A convolution of ResNet-101 DeepLab-v2, at a 513 x 513 image."""

    channels: int
    out: int
    kernel: int
    stride: int
    rate: int
    side: int
    residual: bool

    def __str__(self) -> str:
        parts = [f"{self.kernel}x{self.kernel} {self.channels}->{self.out}", f"{self.side}x{self.side}"]
        parts += [f"rate {self.rate}"] * (self.rate > 1) + [f"stride {self.stride}"] * (self.stride > 1)
        return ", ".join(parts + ["residual"] * self.residual)

    @property
    def padding(self) -> int:
        return self.rate * (self.kernel // 2)

    @property
    def out_side(self) -> int:
        return (self.side - 1) // self.stride + 1

    def tiny(self) -> Layer:
        return self._replace(channels=min(self.channels, 32), out=min(self.out, 32), side=9)


LAYERS = [
    Layer(3, 64, 7, 2, 1, 513, False),
    Layer(64, 64, 3, 1, 1, 129, False),
    Layer(64, 256, 1, 1, 1, 129, True),
    Layer(256, 128, 1, 2, 1, 129, False),
    Layer(1024, 256, 1, 1, 1, 65, False),
    Layer(256, 256, 3, 1, 2, 65, False),
    Layer(256, 1024, 1, 1, 1, 65, True),
    Layer(2048, 512, 1, 1, 1, 65, False),
    Layer(512, 512, 3, 1, 4, 65, False),
    Layer(512, 2048, 1, 1, 1, 65, True),
]
GPU_PASSES = ("forward", "gradient to x", "gradient to weight", "ReLU backward", "forward + backward")


def cases(target: Target) -> Iterator[Case]:
    if target.gpu:
        for layer, what in itertools.product((layer for layer in LAYERS if layer.side == 65), GPU_PASSES):
            for name, dtype in dtypes(target).items():
                yield _gpu_case(target, layer, what, name, dtype)
        return
    for what, layer in itertools.product(("forward", "forward + backward"), LAYERS):
        for name, dtype in dtypes(target).items():
            if dtype == torch.float32 or what == "forward":
                yield _cpu_case(target, layer, what, name, dtype)


def _sizes(layer: Layer, dtype: torch.dtype) -> dict[str, Any]:
    return {"batch": 1, **layer._asdict(), "dtype": name_of(dtype)}


# --- On a CPU ------------------------------------------------------------------------------------------------------


def _cpu_case(target: Target, layer: Layer, what: str, name: str, dtype: torch.dtype) -> Case:
    actual = target.pick(layer, layer.tiny())
    run = _unit_forward if what == "forward" else _unit_forward_and_backward
    layouts = (*stock_layouts(dtype), OURS)
    return Case(
        op="atrous_conv2d",
        size=f"{what}, {layer}, {name}",
        inputs=functools.partial(_unit_inputs, actual, dtype),
        backends={layout: Backend(run, takes=layout, threads=THREADS) for layout in layouts},
        error=relative_error,
        allowed=0.03,
        quick=layer.side == 65 and name == "float32" and what == "forward",
        sizes=_sizes(actual, dtype),
    )


class Unit(nn.Module):
    """The layer in stock modules, its batch norm frozen."""

    def __init__(self, layer: Layer):
        super().__init__()
        sizes = (layer.channels, layer.out, layer.kernel, layer.stride, layer.padding, layer.rate)
        self.conv = nn.Conv2d(*sizes, bias=False)
        self.bn = nn.BatchNorm2d(layer.out)
        self.eval()

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        out = self.bn(self.conv(x))
        return torch.relu_(out if residual is None else out + residual)


class FusedUnit(Unit):
    """The same as one op."""

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        assert self.bn.running_mean is not None
        assert self.bn.running_var is not None
        scale = self.bn.weight * (self.bn.running_var + self.bn.eps).rsqrt()
        bias = self.bn.bias - self.bn.running_mean * scale
        conv = self.conv
        return deeplab_fast.atrous_conv2d(
            x, conv.weight, bias, conv.stride, conv.padding, conv.dilation, scale=scale, residual=residual, relu=True
        )


UnitInputs = tuple[Unit, Tensor, Tensor | None, Tensor]  # unit, x, residual, gradient to the result


def _unit_inputs(layer: Layer, dtype: torch.dtype) -> dict[str, UnitInputs]:
    seeded()
    units = {CHANNELS_LAST: Unit(layer), NCHW: Unit(layer), OURS: FusedUnit(layer)}
    shapes = (layer.channels, layer.side), (layer.out, layer.out_side)
    x, grad = (torch.randn(1, channels, side, side, dtype=dtype) for channels, side in shapes)
    residual = torch.randn_like(grad) if layer.residual else None
    result: dict[str, UnitInputs] = {}
    for layout, unit in units.items():
        memory_format = torch.contiguous_format if layout == NCHW else LAST
        unit.load_state_dict(units[NCHW].state_dict())
        own_residual = None if residual is None else residual.contiguous(memory_format=memory_format)
        own_x, own_grad = (tensor.contiguous(memory_format=memory_format) for tensor in (x, grad))
        result[layout] = (formatted(unit.to(dtype), memory_format), own_x, own_residual, own_grad)
    return result


@torch.inference_mode()
def _unit_forward(inputs: UnitInputs) -> Tensor:
    unit, x, residual, _ = inputs
    return unit(x, residual)


def _unit_forward_and_backward(inputs: UnitInputs) -> list[Tensor]:
    unit, x, residual, grad = inputs
    x = x.detach().requires_grad_()
    return list(torch.autograd.grad(unit(x, residual), [x, *unit.parameters()], grad))


# --- On a GPU ------------------------------------------------------------------------------------------------------


class GpuInputs(NamedTuple):
    layer: Layer
    x: Tensor
    weight: Tensor
    bias: Tensor
    scale: Tensor
    mean: Tensor  # of the batch norm, 0
    variance: Tensor  # 1
    residual: Tensor | None
    grad: Tensor  # to the result
    packed: Tensor | None  # the weight as the Triton kernel takes it

    @property
    def geometry(self) -> Geometry:
        return Geometry([self.layer.stride] * 2, [self.layer.padding] * 2, [self.layer.rate] * 2)


def _gpu_case(target: Target, layer: Layer, what: str, name: str, dtype: torch.dtype) -> Case:
    actual = target.pick(layer, layer.tiny())
    return Case(
        op="atrous_conv2d",
        size=f"{what}, {layer}, {name}",
        inputs=functools.partial(_gpu_inputs, target, actual, dtype),
        backends=_gpu_backends(what, target),
        error=relative_error,
        allowed=8 * torch.finfo(dtype).eps,
        quick=True,
        sizes=_sizes(actual, dtype),
        device="cuda",
    )


def _gpu_inputs(target: Target, layer: Layer, dtype: torch.dtype) -> GpuInputs:
    seeded()

    def random(*shape: int) -> Tensor:
        return torch.randn(shape).to(target.device, dtype).contiguous(memory_format=LAST)

    weight = random(layer.out, layer.channels, layer.kernel, layer.kernel) / (layer.channels * layer.kernel**2) ** 0.5
    bias, scale = (torch.randn(layer.out, device=target.device) for _ in range(2))
    grad = random(1, layer.out, layer.out_side, layer.out_side)
    packed = None
    if installed("triton"):
        from deeplab_fast.kernels.atrous_conv2d import pack

        packed = pack(weight, dtype)
    return GpuInputs(
        layer=layer,
        x=random(1, layer.channels, layer.side, layer.side),
        weight=weight,
        bias=bias,
        scale=scale,
        mean=torch.zeros_like(bias),
        variance=torch.ones_like(bias),
        residual=random(*grad.shape) if layer.residual else None,
        grad=grad,
        packed=packed,
    )


def _gpu_backends(what: str, target: Target) -> dict[str, Backend]:
    in_graph = functools.partial(Backend, clock="graph")
    if what.startswith("gradient"):
        return {
            path: in_graph(functools.partial(_gradient, path, what == "gradient to x"), needs=TRITON)
            for path in ("cudnn", "triton")
        }
    if what == "ReLU backward":
        return {CHANNELS_LAST: in_graph(_stock_relu_backward), OURS: in_graph(_relu_backward, needs=TRITON)}
    if what == "forward + backward":
        return {
            CHANNELS_LAST: in_graph(functools.partial(_forward_and_backward, _stock)),
            OURS: in_graph(functools.partial(_forward_and_backward, _ours)),
        }
    backends = {
        CHANNELS_LAST: in_graph(functools.partial(_forward, _stock)),
        OURS: in_graph(functools.partial(_forward, _ours)),
    }
    backends |= by_path(_kernel, None, ("triton", "cudnn"), "triton", target)
    backends[COMPILED] = in_graph(functools.partial(_forward, compiled(_stock)), compiles=True)
    return backends


def _stock(x: Tensor, weight: Tensor, inputs: GpuInputs) -> Tensor:
    out = conv2d(x, weight, None, *inputs.geometry)
    out = batch_norm(out, inputs.mean, inputs.variance, inputs.scale, inputs.bias, eps=0.0)
    return torch.relu(out if inputs.residual is None else out + inputs.residual)


def _ours(x: Tensor, weight: Tensor, inputs: GpuInputs) -> Tensor:
    return deeplab_fast.atrous_conv2d(
        x, weight, inputs.bias, *inputs.geometry, scale=inputs.scale, residual=inputs.residual, relu=True
    )


@torch.inference_mode()
def _forward(function: Callable[..., Tensor], inputs: GpuInputs) -> Tensor:
    return function(inputs.x, inputs.weight, inputs)


def _forward_and_backward(function: Callable[..., Tensor], inputs: GpuInputs) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in (inputs.x, inputs.weight)]
    return list(torch.autograd.grad(function(*leaves, inputs), leaves, inputs.grad))


def _kernel(path: str, tile: Any, inputs: GpuInputs) -> Tensor:
    from deeplab_fast.kernels import atrous_conv2d

    return atrous_conv2d.forward(
        inputs.x, inputs.weight, inputs.geometry, Epilogue(inputs.bias, inputs.scale, inputs.residual, relu=True),
        packed=inputs.packed, path=path, tile=tile,
    )  # fmt: skip


def _gradient(path: str, to_x: bool, inputs: GpuInputs) -> list[Tensor]:
    from deeplab_fast.kernels import atrous_conv2d

    return atrous_conv2d.backward(
        inputs.grad, inputs.x, inputs.weight, None, inputs.geometry, to_x, not to_x, path_x=path, path_weight=path
    )


def _stock_relu_backward(inputs: GpuInputs) -> list[Tensor]:
    masked = torch.where(inputs.x > 0, inputs.x, 0)
    return [masked, masked.sum((0, 2, 3), dtype=torch.float32)]


def _relu_backward(inputs: GpuInputs) -> list[Tensor]:
    from deeplab_fast.kernels import atrous_conv2d

    return list(atrous_conv2d.backward_relu(inputs.x, inputs.x))
