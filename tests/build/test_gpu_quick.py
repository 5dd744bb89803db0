"""On a GPU, before all else: the library is there, and every op and module gives what it gives on the CPU, once."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from gpu_cases import CASES, EAGER, Case  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402

from deeplab_fast import _native  # noqa: E402

pytestmark = pytest.mark.cuda
ALL = CASES | EAGER


def test_the_library_is_loaded():
    assert _native.status()["cuda"] == "loaded"


def run(module: torch.nn.Module, inputs: list[Tensor], gradients: bool) -> list[Tensor]:
    """Outputs, and the gradients to the inputs of the sum of their squares."""
    leaves = [one.detach().clone().requires_grad_(gradients) for one in inputs]
    outputs = [one for one in pytree.tree_leaves(module(*leaves)) if isinstance(one, Tensor)]
    loss = sum(one.float().square().sum() for one in outputs if one.requires_grad)
    if isinstance(loss, Tensor):
        loss.backward()
    return [one.detach().cpu() for one in (*outputs, *(leaf.grad for leaf in leaves if leaf.grad is not None))]


def both(case: Case, gradients: bool) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    module: Any = case.make()
    inputs = [one() for one in case.inputs]
    there = run(copy.deepcopy(module).cuda(), [one.cuda() for one in inputs], gradients)
    return list(zip(there, run(module, inputs, gradients), strict=True))


@pytest.mark.parametrize("gradients", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", ALL)
def test_as_on_the_cpu(name: str, gradients: bool, monkeypatch: pytest.MonkeyPatch):
    """About: whether kernels compute what they should. How exactly, other tests say."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for there, here in both(ALL[name], gradients):
        assert (there.shape, there.dtype, there.stride()) == (here.shape, here.dtype, here.stride())
        difference = (there.double() - here.double()).abs()
        if here.dtype == torch.int64:
            assert (difference > 0).double().mean() <= 0.01
        else:
            limit = (2e-2 if here.dtype == torch.float16 else 2e-3) * here.double().abs().max()
            assert difference.max() <= limit + 1e-7
