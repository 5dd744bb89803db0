"""`aspp_sum`: the function that users call, its custom ops and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import ModuleType
from typing import Any

from torch import Tensor

from deeplab_fast import reference
from deeplab_fast._arguments import sum_dtype
from deeplab_fast._conv_arguments import check_aspp_arguments
from deeplab_fast.ops import cuda
from deeplab_fast.ops.cpu import aspp_sum as cpu
from deeplab_fast.ops.define import OPS, autocast, define, empty_maps, is_inference


def aspp_sum(
    x: Tensor, weights: Sequence[Tensor], bias: Tensor | None = None, rates: Sequence[int] = (6, 12, 18, 24)
) -> Tensor:
    """Atrous spatial pyramid pooling, summed: over branches b, conv2d(x, weights[b], dilation=rates[b]), + bias.

    Padding is "same". DeepLab-v2's classifier: Chen et al., "DeepLab", TPAMI 2018, figure 7. Differentiable with
    respect to x, weights and bias. Under autocast, x is taken in the dtype of autocast and weights as they are.

    Args:
        x: (N, C, H, W), floating.
        weights: one (K, C, kh, kw) a branch, kh and kw odd; dtype of x, or float32 with x in 16 bits.
        bias: (K,), the sum of the branches' biases.
        rates: the dilation of each branch, 1 or more.

    Returns:
        (N, K, H, W), dtype of x; channels_last if x is. Sums are in float32 for 16-bit x.

    Raises:
        TypeError: for a tensor that is not floating, or dtypes that do not go together.
        ValueError: for shapes, devices or rates that do not fit.
    """
    check_aspp_arguments(x, weights, bias, rates)
    name = "aspp_sum_inference" if is_inference(x, bias, *weights) else "aspp_sum"
    return OPS[name](autocast(x), list(weights), bias, list(rates))


# --- Ops -----------------------------------------------------------------------------------------------------------


def _forward_fake(x: Tensor, weights: Sequence[Tensor], bias: Tensor | None, rates: Sequence[int]) -> Tensor:
    return empty_maps(x, weights[0].shape[0], x.shape[2:])


def _backward_x_fake(grad: Tensor, weights: Sequence[Tensor], rates: Sequence[int]) -> Tensor:
    return empty_maps(grad, weights[0].shape[1], grad.shape[2:])


def _backward_weights_fake(grad: Tensor, x: Tensor, weights: Sequence[Tensor], rates: Sequence[int]) -> list[Tensor]:
    return [weight.new_empty(weight.shape) for weight in weights]


def _packed_on_gpu(kernels: ModuleType, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return cuda.kept(x, weights, lambda: kernels.pack(weights, x.dtype))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weights, bias, ctx.rates = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, *weights)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, list[Tensor | None], Tensor | None, None]:
    x, *weights = ctx.saved_tensors
    need_x, need_weights, need_bias, *_ = ctx.needs_input_grad
    to_x = OPS["aspp_sum_backward_x"](grad, weights, ctx.rates) if need_x else None
    to_weights: list[Tensor | None] = [None] * len(weights)
    if any(need_weights):
        to_weights = OPS["aspp_sum_backward_weights"](grad, x, weights, ctx.rates)
    to_bias = grad.sum((0, 2, 3), dtype=sum_dtype(grad)).to(ctx.bias_dtype) if need_bias else None
    return to_x, to_weights, to_bias, None


define(
    "aspp_sum_backward_x",
    reference=reference.aspp_sum_backward_x,
    fake=_backward_x_fake,
    cpu=cpu.aspp_sum_backward_x,
    cuda=cuda.kernel_of("aspp_sum", "backward_x", reference.aspp_sum_backward_x),
)
define(
    "aspp_sum_backward_weights",
    reference=reference.aspp_sum_backward_weights,
    fake=_backward_weights_fake,
    cpu=cpu.aspp_sum_backward_weights,
    cuda=cuda.kernel_of("aspp_sum", "backward_weights", reference.aspp_sum_backward_weights),
)
define(
    "aspp_sum_inference",
    reference=reference.aspp_sum,
    fake=_forward_fake,
    cpu=partial(cpu.aspp_sum, keep_packed=True),
    cuda=cuda.inference_kernel_of("aspp_sum", _packed_on_gpu, reference.aspp_sum),
)
define(
    "aspp_sum",
    reference=reference.aspp_sum,
    fake=_forward_fake,
    cpu=cpu.aspp_sum,
    cuda=cuda.kernel_of("aspp_sum", "forward", reference.aspp_sum),
    setup_context=_setup_context,
    backward=_backward,
)
