"""Puts a fused forward into a module, and takes it out again.

The module keeps its children, parameters and `__dict__`; its class is replaced by a subclass of the same name, whose
forward runs a program on the children's parameters, or the forward it had where the program does not apply. So nothing
in the module points to the module: copies, pickles and the replicas of `nn.DataParallel` work on their own parameters.
"""

from __future__ import annotations

import functools
import importlib
import linecache
import operator
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from torch import Tensor, fx, nn

from deeplab_fast.nn import fusing
from deeplab_fast.patching.finding import Site

_ATTRIBUTE = "_deeplab_fast_program"


class Program:
    """A forward with fused ops, as a function of the module and its input; it holds no module and no tensor.

    Args:
        source: of a function `forward(self, x)`.
        names: what the source uses, by name.
        called: (path, role) of the modules that the program does not call, although the original forward does:
            "branch" of a sum, "conv", "bn", "relu", or "chain n", an `nn.Sequential` of n modules.
        sites: descriptions of what is fused.
    """

    def __init__(self, source: str, names: dict[str, Any], called: Sequence[tuple[str, str]], sites: Sequence[str]):
        self.source, self.names, self.sites = source, names, tuple(sites)
        self.called = tuple((tuple(path.split(".")), role) for path, role in called)
        file = f"<deeplab_fast program {hash(source)}>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # for tracebacks
        namespace = dict(names)
        exec(compile(source, file, "exec"), namespace)
        self.function = namespace["forward"]

    def applies(self, module: nn.Module, x: object) -> bool:
        """Whether, at this call, it computes what the forward of `module` does: a batch norm that went live, a hook on
        a child or a child replaced since are reasons why not.
        """
        if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point() or fusing.has_global_hooks():
            return False
        for path, role in self.called:
            child = module
            for name in path:
                child = getattr(child, name)
            if not _may_be_passed_over(child, role):
                return False
        return True

    def __deepcopy__(self, memo: dict) -> Program:
        return self  # it never changes

    def __reduce__(self) -> tuple[Any, ...]:
        names = {
            name: _Import(value.__name__) if isinstance(value, ModuleType) else value
            for name, value in self.names.items()
        }
        called = [(".".join(path), role) for path, role in self.called]
        return _program_from_pickle, (self.source, names, called, self.sites)


def write_program(graph: fx.Graph, sites: Sequence[Site]) -> Program:
    """The forward that `graph` is of, with `sites` in it fused; the graph is changed."""
    called: dict[str, str] = {}
    for site in sites:
        called.update(site.called)
        last = site.nodes[-1]
        with graph.inserting_before(last):
            value = _fused(graph, site)
        last.replace_all_uses_with(value)
        for other in sites:  # which may use what is replaced here
            other.x = value if other.x is last else other.x
            other.residual = value if other.residual is last else other.residual
            other.rest = [value if one is last else one for one in other.rest]
        for node in reversed(site.nodes):
            graph.erase_node(node)
    code = graph.python_code("self")
    used = {name: value for name, value in code.globals.items() if name in code.src}
    return Program(code.src, used, list(called.items()), [str(site) for site in sites])


def _fused(graph: fx.Graph, site: Site) -> fx.Node:
    convs = [graph.get_attr(path) for path in site.convs]
    if len(convs) > 1:
        value = graph.call_function(fusing.sum_of_branches, (site.x, convs))
        for addend in site.rest:
            value = graph.call_function(operator.add, (value, addend))
        return value
    bn = graph.get_attr(site.bn) if site.bn else None
    return graph.call_function(fusing.conv_bn_relu, (site.x, convs[0], bn, site.residual, site.relu, site.in_place))


def _may_be_passed_over(child: nn.Module, role: str) -> bool:
    if role == "branch":
        return fusing.is_plain(child, fusing.CONVOLUTIONS) and fusing.is_branch(child)
    if role == "conv":
        return fusing.is_plain(child, fusing.CONVOLUTIONS) and fusing.fits_op(child)
    if role == "bn":
        return fusing.is_plain(child, fusing.BATCH_NORMS) and fusing.is_frozen(child)
    if role == "relu":
        return fusing.is_plain(child, (nn.ReLU,))
    return not fusing.has_hooks(child) and "forward" not in vars(child) and role == f"chain {len(child._modules)}"


class _Import(str):
    """The name of a Python module, in a pickle."""


def _program_from_pickle(source: str, names: dict, called: list, sites: Sequence[str]) -> Program:
    names = {
        name: importlib.import_module(value) if isinstance(value, _Import) else value for name, value in names.items()
    }
    return Program(source, names, called, sites)


# --- Classes -------------------------------------------------------------------------------------------------------


@functools.cache
def _fused_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The subclass of `cls` that runs the program of its instance."""

    @functools.wraps(cls.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        program = vars(self)[_ATTRIBUTE]
        if len(args) == 1 and not kwargs and program.applies(self, args[0]):
            return program.function(self, args[0])
        return cls.forward(self, *args, **kwargs)

    def __reduce_ex__(
        self: nn.Module, protocol: int
    ) -> tuple[Any, ...]:  # pickles find `cls` by its name, not this class
        reduced: Any = cls.__reduce_ex__(self, protocol)
        function, arguments, *state = reduced
        arguments = tuple(cls if one is fused else one for one in arguments)
        return _instance_from_pickle, (cls, function, *arguments), *state

    members: dict[str, Any] = {"forward": forward, "__reduce_ex__": __reduce_ex__, "_deeplab_fast_class": cls}
    for name in ("__module__", "__qualname__", "__doc__"):
        members[name] = getattr(cls, name)
    metaclass: Any = type(cls)
    return (fused := metaclass(cls.__name__, (cls,), members))


def _instance_from_pickle(cls: type[nn.Module], function: Any, *arguments: Any) -> nn.Module:
    module = function(*arguments)
    # mypy takes the hash of a module for that of its class.
    module.__class__ = _fused_class(cls)  # type: ignore[arg-type]
    return module


def program_of(module: nn.Module) -> Program | None:
    """What `fuse` put into the module, None if nothing."""
    return vars(module).get(_ATTRIBUTE)


def fuse(module: nn.Module, program: Program) -> None:
    """Let `module` run `program` from now on, where it applies."""
    module.__class__ = _fused_class(type(module))  # type: ignore[arg-type]  # as above
    setattr(module, _ATTRIBUTE, program)


def unfuse(module: nn.Module) -> None:
    """Undo `fuse`."""
    fused: Any = type(module)
    module.__class__ = fused._deeplab_fast_class
    delattr(module, _ATTRIBUTE)
