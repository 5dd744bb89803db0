"""When convolutions and batch norms may be computed by one op in their stead, and that op on their parameters.

Parameters are read from the modules at every call, and a batch norm is folded anew, so that a weight changed by any
means is seen. That costs a few operations on vectors of channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.batchnorm import _BatchNorm

from deeplab_fast import ops
from deeplab_fast._arguments import sum_dtype
from deeplab_fast.nn.convolution import AtrousConv2d

CONVOLUTIONS = (nn.Conv2d, AtrousConv2d)
BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_Kind = TypeVar("_Kind", bound=nn.Module)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling `module` does more than its forward: if so, it must be called."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def has_global_hooks() -> bool:
    """Whether hooks are set that every module calls (some profilers do)."""
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


def is_plain(module: nn.Module, types: Sequence[type[_Kind]]) -> TypeGuard[_Kind]:
    """Whether `module` is of one of `types`, no subclass of them, and does what they do, nothing else.

    Parametrized modules (weight norm and the like) are of another type; the older weight norm is a hook.
    """
    return type(module) in types and not has_hooks(module) and "forward" not in vars(module)


def fits_op(conv: nn.Conv2d) -> bool:
    """Whether the ops have what this convolution does."""
    return conv.groups == 1 and conv.padding_mode == "zeros"


def is_frozen(bn: _BatchNorm) -> bool:
    """Whether the batch norm uses running statistics, and so is a scale and a bias."""
    return not bn.training and bn.running_mean is not None and bn.running_var is not None


def is_branch(conv: nn.Conv2d) -> bool:
    """Whether the convolution can be a branch of `aspp_sum`: stride 1, one rate, padding that keeps the size."""
    (rate, other), (height, width) = conv.dilation, conv.kernel_size
    if rate != other or conv.stride != (1, 1) or height % 2 == 0 or width % 2 == 0 or not fits_op(conv):
        return False
    return conv.padding == "same" or conv.padding == (rate * (height // 2), rate * (width // 2))


def sum_of_branches(x: Tensor, convs: Sequence[nn.Conv2d]) -> Tensor:
    """The sum of convolutions of x, for all of which `is_branch` holds: one `aspp_sum`.

    x (N, C, H, W), weights (K, C, kh, kw) -> (N, K, H, W)
    """
    biases = [conv.bias for conv in convs if conv.bias is not None]
    if biases:  # in the dtype of sums, where the biases are not rounded once more
        biases = [bias.to(sum_dtype(bias)) for bias in biases]
    bias = reduce(torch.add, biases) if biases else None
    return ops.aspp_sum(x, [conv.weight for conv in convs], bias, [conv.dilation[0] for conv in convs])


def conv_bn_relu(
    x: Tensor,
    conv: nn.Conv2d,
    bn: _BatchNorm | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    in_place: bool = False,
) -> Tensor:
    """relu(bn(conv(x)) + residual), for a convolution that `fits_op` and a batch norm that `is_frozen`.

    x (N, C, H, W), residual (N, K, H', W') -> (N, K, H', W'), in the dtype of conv(x) if the residual has it, or if the
    sum that this stands for is one `in_place`; else in the one that torch gives a sum.
    """
    scale, bias = (None, conv.bias) if bn is None else folded(conv.bias, bn)
    arguments = x, conv.weight, bias, conv.stride, conv.padding, conv.dilation
    if residual is None or in_place or residual.dtype == _result_dtype(x):
        return ops.atrous_conv2d(*arguments, scale=scale, residual=residual, relu=relu)
    # A sum of two dtypes is of the larger: under autocast, say, where the residual is still in float32.
    out = ops.atrous_conv2d(*arguments, scale=scale) + residual
    return out.relu() if relu else out


def _result_dtype(x: Tensor) -> torch.dtype:
    """That of a convolution of x."""
    kind = x.device.type
    autocast = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if autocast else x.dtype


def folded(conv_bias: Tensor | None, bn: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Scale and bias (K,) that bn(conv + conv_bias) applies to conv; differentiable to the parameters of both."""
    assert bn.running_mean is not None  # it `is_frozen`
    assert bn.running_var is not None
    dtype = sum_dtype(bn.running_var)
    scale = torch.rsqrt(bn.running_var.to(dtype) + bn.eps)
    if bn.weight is not None:
        scale = scale * bn.weight.to(dtype)
    shift = bn.running_mean.to(dtype)
    if conv_bias is not None:
        shift = shift - conv_bias.to(dtype)
    bias = -shift * scale if bn.bias is None else torch.addcmul(bn.bias.to(dtype), shift, scale, value=-1)
    return scale, bias
