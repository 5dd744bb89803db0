"""Hooks of a model that computes in another dtype than it is used with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

REPORT = "deeplab_fast_report"  # attribute of a model that `accelerate` made


class Enter:
    """A forward pre-hook: floating tensors in `dtype`, maps in channels_last."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype

    def __call__(self, module: nn.Module, arguments: tuple, keywords: dict) -> tuple[tuple, dict]:
        return pytree.tree_map(self._converted, (arguments, keywords))

    def _converted(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return value.to(self.dtype, memory_format=torch.channels_last if value.ndim == 4 else torch.preserve_format)


class Leave:
    """A forward hook: results in `inside` leave in `dtype`."""

    def __init__(self, inside: torch.dtype, dtype: torch.dtype):
        self.inside, self.dtype = inside, dtype

    def __call__(self, module: nn.Module, arguments: tuple, result: Any) -> Any:
        return pytree.tree_map(self._converted, result)

    def _converted(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, Tensor) and value.dtype == self.inside else value


def remove_from(model: nn.Module) -> None:
    """Take the hooks, and the report, out of the model itself and every module in it."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, Enter | Leave)]:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
        vars(module).pop(REPORT, None)
