"""`accelerate`: a model for inference, with fused ops, in the memory format and dtype that suit the processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deeplab_fast.errors import ArgumentTypeError
from deeplab_fast.ops import paths
from deeplab_fast.patching.conversion import REPORT, Enter, Leave
from deeplab_fast.patching.patcher import patch, unpatch

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def accelerate(
    model: nn.Module, dtype: torch.dtype | None = None, example: Tensor | Sequence[Any] | None = None
) -> nn.Module:
    """Make a model ready for fast inference, in place: call it as before, best under `torch.inference_mode()`.

    The model is put into evaluation mode and patched (`deeplab_fast.patch`); its parameters no longer require
    gradients, are in channels_last and in `dtype`, those of batch norms in float32 at least. Inputs are converted on
    entry, and results come in the dtype that the model had: float32 in, float32 out. Batch norm is folded anew at every
    call, so weights changed in place or by `load_state_dict` are seen. `unpatch` takes fused ops and conversions out
    again; it brings back neither digits that 16 bits do not hold, nor training mode, nor gradients.

    Args:
        model: on the device that it will run on.
        dtype: of parameters and of what is between layers. None takes bfloat16 for a model in float32 where the
            processor computes in it, else the dtype that the model has.
        example: as for `patch`.

    Returns:
        `model`, which has the report of `patch` as its attribute `deeplab_fast_report`.

    Raises:
        TypeError: if `model` is no module, `dtype` no floating dtype, or `example` neither tensor nor sequence.
        ValueError: if the model does not take the example.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError("model", type(model), "a torch.nn.Module")
    if dtype is not None and dtype not in DTYPES:
        raise ArgumentTypeError("dtype", dtype, f"one of {', '.join(map(str, DTYPES))}")
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    outside = next((hook.dtype for hook in model._forward_hooks.values() if isinstance(hook, Leave)), first.dtype)
    if dtype is None:
        faster = first.dtype == torch.float32 and computes_in_bfloat16(first.device)
        dtype = torch.bfloat16 if faster else first.dtype
    unpatch(model)
    report = patch(model, example)
    model.eval().requires_grad_(False)
    _convert(model, dtype)
    model.register_forward_pre_hook(Enter(dtype), prepend=True, with_kwargs=True)
    model.register_forward_hook(Leave(dtype, outside))
    setattr(model, REPORT, report)
    return model


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the processor has instructions for bfloat16, so that it is not slower than float32."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and paths.computes_in_bfloat16()


def _convert(model: nn.Module, dtype: torch.dtype) -> None:
    for module in model.modules():
        # Statistics rounded to 16 bits would cost more accuracy than anything else does.
        own = torch.promote_types(dtype, torch.float32) if isinstance(module, _BatchNorm) else dtype
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and tensor.is_floating_point():
                last = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
                tensor.data = tensor.data.to(own, memory_format=last)
