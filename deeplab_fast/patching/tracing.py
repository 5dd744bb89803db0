"""What a module's forward does with its input and its children, as a `torch.fx` graph in which children are calls."""

from __future__ import annotations

import copy
import inspect
import operator
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn


class Untraceable(Exception):
    """The data flow of a module cannot be told; the text says why."""


class _Proxy(fx.Proxy):
    """A proxy that keeps `+=` apart from `+`, which decides about dtypes, and about what else sees the sum."""


def _in_place_operator(name: str) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def operate(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})

    return operate


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor"):
    setattr(_Proxy, f"__{_name}__", _in_place_operator(_name))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def trace(module: nn.Module) -> fx.Graph:
    """The graph of `module(x)`, the same in training and evaluation mode. `module` itself is left as it is.

    Raises:
        Untraceable: if forward takes more than one input, looks at values or shapes, or depends on the mode.
    """
    _check_inputs(type(module))
    graphs = []
    for training in (False, True):
        twin = structure_of(module)
        twin.train(training)
        try:
            twin.__class__ = _with_one_input(type(module))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graphs.append(_Tracer().trace(twin))
        except Exception as error:  # whatever forward raises when it gets no tensor
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise Untraceable(f"its forward cannot be traced ({reason})") from error
    if code_of(graphs[0]) != code_of(graphs[1]):
        raise Untraceable("its forward is not the same in training and in evaluation mode")
    return graphs[0]


def code_of(graph: fx.Graph) -> str:
    return graph.python_code("self").src


def structure_of(module: nn.Module) -> nn.Module:
    """A copy of `module` and what is in it, with the same tensors: forward may set attributes while it is traced."""
    tensors = {id(value): value for part in module.modules() for value in _tensors(part)}
    return _copied(module, tensors)


def deep_copy_of(module: nn.Module) -> nn.Module:
    """A copy with tensors of its own, and without hooks (but those of torch's weight norm and its like).

    Raises:
        Untraceable: if something in `module` cannot be copied.
    """
    # deepcopy refuses tensors that are results of operations, as the older weight norm keeps one.
    results = {
        id(value): value.detach().clone() for part in module.modules() for value in _tensors(part) if not value.is_leaf
    }
    twin = _copied(module, results)
    for part in twin.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            for key in [key for key, hook in hooks.items() if not is_of_torch(hook)]:
                del hooks[key]
    return twin


def is_of_torch(hook: object) -> bool:
    """Whether a hook is one of `torch.nn.utils`, which makes a weight from other parameters."""
    return getattr(type(hook), "__module__", "").startswith("torch.nn.utils")


def _copied(module: nn.Module, memo: dict[int, Tensor]) -> nn.Module:
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # a lock, a file, anything
        raise Untraceable(f"it cannot be copied ({error})") from error


def _tensors(module: nn.Module) -> list[Tensor]:
    values = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
    return [value for value in values if isinstance(value, torch.Tensor)]


def _check_inputs(cls: type[nn.Module]) -> None:
    _, *parameters = inspect.signature(cls.forward).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if not positional or len(required) > 1 or (required and required[0] is not positional[0]):
        names = ", ".join(str(p) for p in parameters)
        raise Untraceable(f"its forward does not take one input, but ({names})")


def _with_one_input(cls: type[nn.Module]) -> type[nn.Module]:
    """`cls` with a forward that leaves all other arguments at their defaults."""

    def forward(self: nn.Module, x: Any) -> Any:
        return cls.forward(self, x)

    return type(cls.__name__, (cls,), {"forward": forward})
