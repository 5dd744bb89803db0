"""`atrous_conv2d`: the function that users call, its custom ops and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from types import ModuleType
from typing import Any

from torch import Tensor

from deeplab_fast import reference
from deeplab_fast._arguments import sum_dtype
from deeplab_fast._conv_arguments import Epilogue, Geometry, Pair, check_atrous_arguments, output_size
from deeplab_fast.ops import cuda
from deeplab_fast.ops.cpu import atrous_conv2d as cpu
from deeplab_fast.ops.define import OPS, autocast, define, empty_maps, format_of, is_inference


def atrous_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    *,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """relu(scale · conv2d(x, weight) + bias + residual): convolution, frozen batch norm, residual, ReLU in one pass.

    Atrous convolution: Chen et al., "DeepLab", TPAMI 2018, equation 2. Arguments otherwise as in
    `torch.nn.functional.conv2d`, with groups=1. Differentiable with respect to x, weight, bias, scale and residual.
    Under autocast, x and residual are taken in the dtype of autocast and parameters as they are.

    Args:
        x: (N, C, H, W), floating.
        weight: (K, C, kh, kw); dtype of x, or float32 with x in 16 bits.
        bias, scale: (K,), one number an output channel.
        stride, padding, dilation: one integer, or vertical and horizontal; padding may be "same" or "valid".
        residual: (N, K, H', W'), added before the ReLU.
        relu: whether negative results become 0.

    Returns:
        (N, K, H', W'), dtype of x; channels_last if x is. Sums are in float32 for 16-bit x.

    Raises:
        TypeError: for a tensor that is not floating, or dtypes that do not go together.
        ValueError: for shapes, devices or numbers that do not fit.
    """
    geometry = check_atrous_arguments(x, weight, stride, padding, dilation, Epilogue(bias, scale, residual, relu))
    x = autocast(x)
    if residual is not None:
        residual = residual.to(x.dtype)
    inference = is_inference(x, weight, bias, scale, residual)
    op = OPS["atrous_conv2d_inference" if inference else "atrous_conv2d"]
    return op(x, weight, bias, scale, residual, *geometry, relu)


# --- Ops -----------------------------------------------------------------------------------------------------------


def _forward(function: Callable[[Tensor, Tensor, Geometry, Epilogue], Tensor]) -> Callable[..., Tensor]:
    """`function` with the arguments as in the schema, which knows no groups of them."""

    @wraps(function)
    def run(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
        residual: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        relu: bool,
    ) -> Tensor:
        return function(x, weight, Geometry(stride, padding, dilation), Epilogue(bias, scale, residual, relu))

    return run


def _gradient(function: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """The same for the gradient's: `function` takes grad, x, weight, scale, geometry, need_x and need_weight."""

    @wraps(function)
    def run(
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        scale: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        need_x: bool,
        need_weight: bool,
    ) -> list[Tensor]:
        return function(grad, x, weight, scale, Geometry(stride, padding, dilation), need_x, need_weight)

    return run


def _forward_fake(x: Tensor, weight: Tensor, geometry: Geometry, epilogue: Epilogue) -> Tensor:
    return empty_maps(x, weight.shape[0], output_size(x, weight, geometry))


def _packed_on_gpu(kernels: ModuleType, x: Tensor, weight: Tensor) -> Tensor:
    if kernels.is_packed(weight, x.dtype):  # nothing to keep: a tensor that is kept of itself would never be freed
        return weight
    return cuda.kept(x, [weight], lambda: kernels.pack(weight, x.dtype))


def _relu_backward_fake(grad: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    sums = grad.new_empty(grad.shape[1], dtype=sum_dtype(grad))
    return grad.new_empty(grad.shape).contiguous(memory_format=format_of(out)), sums


def _backward_conv_fake(
    grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor | None, geometry: Geometry, need_x: bool, need_weight: bool
) -> list[Tensor]:
    result = [empty_maps(x, x.shape[1], x.shape[2:])] if need_x else []
    return [*result, weight.new_empty(weight.shape)] if need_weight else result


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, bias, scale, _, *ctx.geometry, ctx.relu = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight, scale, output if ctx.relu else None)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, scale, out = ctx.saved_tensors
    need_x, need_weight, need_bias, need_scale, need_residual, *_ = ctx.needs_input_grad
    sums = None
    if ctx.relu:
        grad, sums = OPS["atrous_conv2d_backward_relu"](grad, out)
    elif need_bias:
        sums = grad.sum((0, 2, 3), dtype=sum_dtype(grad))
    gradients = OPS["atrous_conv2d_backward"](grad, x, weight, scale, *ctx.geometry, need_x, need_weight or need_scale)
    to_x = gradients[0] if need_x else None
    to_weight = to_scale = None
    if need_weight or need_scale:
        # d/dscale of scale · conv2d(x, w), summed over pixels against grad, is <w, d/dw of conv2d(x, w) against grad>:
        # the convolution need not be kept.
        unscaled = gradients[-1]
        if need_scale:
            to_scale = (unscaled * weight).sum((1, 2, 3)).to(scale.dtype)
        if need_weight:
            to_weight = unscaled if scale is None else unscaled * scale.to(unscaled.dtype)[:, None, None, None]
    to_bias = sums.to(ctx.bias_dtype) if need_bias and sums is not None else None
    to_residual = grad if need_residual else None
    return to_x, to_weight, to_bias, to_scale, to_residual, None, None, None, None


define(
    "atrous_conv2d_backward_relu",
    reference=reference.relu_backward,
    fake=_relu_backward_fake,
    cpu=cpu.atrous_conv2d_backward_relu,
    cuda=cuda.kernel_of("atrous_conv2d", "backward_relu", reference.relu_backward),
)
define(
    "atrous_conv2d_backward",
    reference=_gradient(reference.atrous_conv2d_backward),
    fake=_gradient(_backward_conv_fake),
    cpu=_gradient(cpu.atrous_conv2d_backward),
    cuda=_gradient(cuda.kernel_of("atrous_conv2d", "backward", reference.atrous_conv2d_backward)),
)
define(
    "atrous_conv2d_inference",
    reference=_forward(reference.atrous_conv2d_forward),
    fake=_forward(_forward_fake),
    cpu=_forward(partial(cpu.atrous_conv2d, keep_packed=True)),
    cuda=_forward(cuda.inference_kernel_of("atrous_conv2d", _packed_on_gpu, reference.atrous_conv2d_forward)),
)
define(
    "atrous_conv2d",
    reference=_forward(reference.atrous_conv2d_forward),
    fake=_forward(_forward_fake),
    cpu=_forward(cpu.atrous_conv2d),
    cuda=_forward(cuda.kernel_of("atrous_conv2d", "forward", reference.atrous_conv2d_forward)),
    setup_context=_setup_context,
    backward=_backward,
)
