"""`patch` and `unpatch`: fused ops in an existing model, and out of it again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from deeplab_fast import _native
from deeplab_fast import nn as fast_nn
from deeplab_fast.errors import ArgumentError, ArgumentTypeError
from deeplab_fast.ops import cuda, define
from deeplab_fast.patching import conversion, probing
from deeplab_fast.patching.finding import Finder, Site, shared_in
from deeplab_fast.patching.replacing import fuse, program_of, unfuse, write_program
from deeplab_fast.patching.report import ALREADY_PATCHED, LEFT_ALONE, REPLACED, Entry, Report
from deeplab_fast.patching.tracing import Untraceable, deep_copy_of, trace

_OWN = (fast_nn.ASPP, fast_nn.ConvBnReLU, fast_nn.DenseCRF)
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def patch(model: nn.Module, example: Tensor | Sequence[Any] | None = None) -> Report:
    """Let an existing model compute with fused ops; in place, with its own modules and parameters.

    What is replaced, whatever classes and children are called:
        sums of parallel dilated convolutions of one input (the ASPP of DeepLab-v2), by one `aspp_sum`;
        convolution, batch norm, sum with a residual, ReLU, by one `atrous_conv2d`. Batch norm is folded in every call
        in which it is frozen (`bn.eval()`), in training too; in a call in which it is live, the original forward runs.

    Every module whose forward `torch.fx` can trace is looked at. Its fused forward is probed beside its own, on copies
    and random input, in training and evaluation mode, output and gradients (of many blocks that are the same but for
    their weights, all but the first in evaluation mode only), and it is left as it is when they differ.
    Modules, parameters, `state_dict`, optimizers, hooks on replaced modules and copies stay valid. A child that gets a
    hook or weight norm later is called again. Attributes of a module's own that steer its forward must stay as they
    are; `unpatch` before changing them, before `torch.jit.script`, and for gradients of gradients.

    Args:
        model: a network, or part of one; on any device but "meta".
        example: an input of the model, or a sequence of its positional arguments. With it the sizes that modules are
            probed with are those that they get in the model, where a guess does not fit.

    Returns:
        What was replaced, what was not, and why; `print` it.

    Raises:
        TypeError: if `model` is no module, or `example` neither tensor nor sequence.
        ValueError: if the model does not take the example.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError("model", type(model), "a torch.nn.Module")
    shapes = {} if example is None else _input_shapes(model, example)
    report, shared = Report(remark=_why_slow(model)), shared_in(model)
    passed_over: set[int] = set()
    known: set[str] = set()
    for path, module in list(model.named_modules()):
        if (program := program_of(module)) is not None:
            report.entries += [_entry(ALREADY_PATCHED, path, module, site) for site in program.sites]
            passed_over |= {id(module.get_submodule(".".join(names))) for names, _ in program.called}
        elif id(module) not in passed_over and _may_have_sites(module):
            passed_over |= _patch_one(path, module, shared, shapes.get(path), known, report)
    return report


def unpatch(model: nn.Module) -> None:
    """Undo `patch`, in every module of the model; of `accelerate`, fused ops and the conversion of inputs.

    Raises:
        TypeError: if `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError("model", type(model), "a torch.nn.Module")
    for module in model.modules():
        if program_of(module) is not None:
            unfuse(module)
    conversion.remove_from(model)


def _why_slow(model: nn.Module) -> str:
    """Why kernels of the fused ops are missing where the model is; a warning as well: probing would swallow it."""
    kinds = {parameter.device.type for parameter in model.parameters()} if define.kernels_wanted() else set()
    if "cpu" in kinds and not _native.load():
        why = _native.why_missing("cpu")
    elif "cuda" in kinds and not cuda.has_triton():
        why = cuda.WITHOUT_TRITON
    else:
        return ""
    _native.warn_once(why)
    return why


def _patch_one(
    path: str, module: nn.Module, shared: set[int], shape: tuple | None, known: set[str], report: Report
) -> set[int]:
    """Fuse what can be in the forward of one module; returns the ids of the modules that it no longer calls."""
    try:
        if why := _why_not_patchable(module):
            raise Untraceable(why)
        graph = trace(module)
    except Untraceable as error:
        if own := _own_convolutions(module):
            report.entries.append(_entry(LEFT_ALONE, path, module, ", ".join(own), str(error)))
        return set()
    found = Finder(module, graph, shared).find()
    report.entries += [_entry(LEFT_ALONE, path, module, *pair) for pair in found.left_alone]
    if not found.sites:
        return set()
    shapes = [*_guessed_shapes(module, graph, found.sites), *([shape] if shape else [])]
    program = write_program(graph, found.sites)
    if why := probing.why_not_alike(module, program, shapes, known):
        report.entries += [_entry(LEFT_ALONE, path, module, site, why) for site in program.sites]
        return set()
    fuse(module, program)
    report.entries += [_entry(REPLACED, path, module, site) for site in program.sites]
    return {id(module.get_submodule(".".join(names))) for names, _ in program.called}


def _entry(status: str, path: str, module: nn.Module, what: str, why: str = "") -> Entry:
    return Entry(status, path, type(module).__name__, what, why)


def _may_have_sites(module: nn.Module) -> bool:
    if isinstance(module, (*_OWN, *_CONTAINERS)) or not module._modules:
        return False
    return any(isinstance(part, nn.Conv2d) for part in module.modules())


def _why_not_patchable(module: nn.Module) -> str:
    if isinstance(module, fx.GraphModule):  # makes a class an instance, and its copies by itself
        return f"it is a {type(module).__name__} of torch.fx"
    if any(is_lazy(parameter) for parameter in module.parameters()):
        return "it has parameters that wait for a first input"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    return ""


def _own_convolutions(module: nn.Module) -> list[str]:
    """Names of the convolutions that the module has itself, not in other modules that are called."""
    names = []
    for name, child in module._modules.items():
        if isinstance(child, nn.Conv2d):
            names.append(name)
        elif isinstance(child, _CONTAINERS):
            names += [f"{name}.{inner}" for inner in _own_convolutions(child)]
    return names


# --- Inputs to probe with ------------------------------------------------------------------------------------------


def _guessed_shapes(module: nn.Module, graph: fx.Graph, sites: Sequence[Site]) -> list[tuple[int, ...]]:
    """Shapes that the module may take: small ones first, for speed, but not so small that rates reach beyond them."""
    channels = _channels_into(module, graph)
    convs = [cast(nn.Conv2d, module.get_submodule(path)) for site in sites for path in site.convs]
    reach = max(conv.dilation[axis] * (conv.kernel_size[axis] // 2) for conv in convs for axis in (0, 1))
    sizes = [(reach + 4, reach + 3), (reach + 9, reach + 8), (64, 32), (256, 224)]
    batch = 2 if reach < 8 else 1
    return [(batch, channels, *size) for size in sizes] if channels else []


def _channels_into(module: nn.Module, graph: fx.Graph) -> int:
    """How many channels the input has, as told by the first layer that knows; 0 if none does."""
    for node in graph.nodes:
        for part in module.get_submodule(node.target).modules() if node.op == "call_module" else ():
            if isinstance(part, nn.Conv2d):
                return part.in_channels
            if isinstance(part, nn.BatchNorm2d):
                return part.num_features
    return 0


def _input_shapes(model: nn.Module, example: Tensor | Sequence[Any]) -> dict[str, tuple[int, ...]]:
    """path -> shape of the input that each module gets when the model gets `example`."""
    if not isinstance(example, Tensor | list | tuple):
        raise ArgumentTypeError("example", type(example), "a tensor or a sequence of arguments")
    given = (example,) if isinstance(example, Tensor) else tuple(example)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    arguments = [one.to(dtype) if isinstance(one, Tensor) and one.is_floating_point() else one for one in given]
    shapes: dict[str, tuple[int, ...]] = {}

    def note(path: str, inputs: tuple) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            shapes.setdefault(path, tuple(inputs[0].shape))

    with probing.undisturbed(model), torch.no_grad():
        try:
            twin = deep_copy_of(model).eval()
        except Untraceable as error:
            text = f"{error}, which an example needs"
            raise ArgumentError("model", type(model), "a model that can be copied", text=text) from error
        for path, module in twin.named_modules():
            module.register_forward_pre_hook(lambda _, inputs, path=path: note(path, inputs))
        try:
            twin(*arguments)
        except Exception as error:  # whatever the model raises
            text = f"the model does not take it: {error}"
            raise ArgumentError("example", type(example), "what the model takes", text=text) from error
    return shapes
