"""Finds, in the graph of a module's forward, what the fused ops compute; and says why something near it is not that.

Three patterns, each of values that nothing else in the graph uses:
    sums of convolutions of one input, some of them dilated                                 -> `aspp_sum`
    convolution, batch norm, sum with a residual, ReLU: the first, and the second or last   -> `atrous_conv2d`
    concatenated convolutions of one input at several rates (DeepLab-v3)                    -> left alone, but told of
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn import functional

from deeplab_fast.nn import fusing
from deeplab_fast.patching.tracing import is_of_torch

_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_IN_PLACE = {operator.iadd, "add_"}
_STACKS = {torch.stack}
_SUMS = {torch.sum, "sum"}
_CATS = {torch.cat, torch.concat, torch.concatenate}
_RELUS = {torch.relu, torch.relu_, functional.relu, functional.relu_, "relu", "relu_"}


@dataclass
class Site:
    """Nodes of a graph that one op can replace.

    Attributes:
        nodes: what is replaced, in the order of the graph; the value of the last is what others use.
        x: the input.
        convs: paths of the convolutions; one, but for a sum.
        bn: path of the batch norm, None without.
        residual: what is added, None without.
        relu: whether a ReLU ends it.
        in_place: whether the residual is added in place.
        rest: further addends of a sum.
        called: path -> role of every module that will no longer be called; roles as in `replacing`.
    """

    nodes: list[fx.Node]
    x: fx.Node
    convs: list[str]
    bn: str | None = None
    residual: fx.Node | None = None
    relu: bool = False
    in_place: bool = False
    rest: list[fx.Node] = field(default_factory=list)
    called: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        if len(self.convs) > 1:
            return f"sum of {len(self.convs)} convolutions: {' + '.join(self.convs)}"
        parts = [_named("convolution", self.convs[0])]
        parts += [_named("batch norm", self.bn)] if self.bn else []
        parts += ["residual"] if self.residual else []
        return " + ".join(parts + (["ReLU"] if self.relu else []))


@dataclass
class Found:
    """What is in a graph: sites, and (what, why) of things left alone."""

    sites: list[Site] = field(default_factory=list)
    left_alone: list[tuple[str, str]] = field(default_factory=list)


class Finder:
    """Finds sites in one graph.

    Args:
        module: whose forward the graph is of.
        graph: of it.
        shared: ids of modules that more than one module has as a child.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph, shared: set[int]):
        self.module, self.graph, self.shared = module, graph, shared
        self.children = dict(module.named_modules())
        self.calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
        self.order = {node: position for position, node in enumerate(graph.nodes)}
        self.found = Found()
        self.seen: set[fx.Node] = set()  # nodes that a site, or a sum left alone, has already

    def find(self) -> Found:
        nodes = list(self.graph.nodes)
        for node in reversed(nodes):  # from the last addition of a sum backwards
            if node not in self.seen and self._operands(node):
                self._find_sum(node)
        for node in nodes:
            self._find_concatenation(node)
            if node not in self.seen and node.op == "call_module":
                self._find_chain(node)
        self.found.sites.sort(key=lambda site: self.order[site.nodes[0]])
        return self.found

    # --- Sums of convolutions --------------------------------------------------------------------------------------

    def _find_sum(self, root: fx.Node) -> None:
        additions: list[fx.Node] = []
        addends: list[fx.Node] = []
        self._flatten(root, additions, addends)
        branches: dict[fx.Node, list[fx.Node]] = {}
        for node in addends:
            if isinstance(self._child(node), nn.Conv2d) and len(node.users) == 1 and len(node.args) == 1:
                branches.setdefault(_input_of(node), []).append(node)
        for x, convs in branches.items():
            children = [self._convolution(conv) for conv in convs]
            if len(convs) < 2 or all(max(child.dilation) == 1 for child in children):
                continue
            self.seen.update(additions, convs)
            paths = [_path(conv) for conv in convs]
            what = f"sum of {len(convs)} convolutions: {' + '.join(paths)}"
            whys = [why for conv in convs if (why := self._why_not_a_branch(conv, children[0]))]
            rest = [node for node in addends if node not in convs]
            if not whys and self._changes_in_place(additions, rest):
                whys = ["the sum is written over one of its addends"]
            if whys:
                self.found.left_alone.append((what, "; ".join(whys)))
                continue
            site = Site(self._in_order([*convs, *additions]), x, paths, rest=rest)
            site.called = dict.fromkeys(paths, "branch")
            self.found.sites.append(site)
            return  # what else there is in this sum is added as it is

    def _flatten(self, node: fx.Node, additions: list[fx.Node], addends: list[fx.Node]) -> None:
        additions.append(node)
        for operand in self._operands(node):
            if operand == 0 and not isinstance(operand, fx.Node):  # sum() starts with it
                continue
            if self._operands(operand) and len(operand.users) == 1 and operand not in self.seen:
                self._flatten(operand, additions, addends)
            else:
                addends.append(operand)
        if node.target in _SUMS:
            additions.append(_input_of(node))  # the stack

    def _operands(self, node: object) -> list[Any]:
        """What `node` is the sum of: nodes, or the number 0; nothing if it is no sum."""
        if not isinstance(node, fx.Node) or node.op not in ("call_function", "call_method"):
            return []
        operands: list[Any] = []
        if node.target in _ADDITIONS and len(node.args) == 2 and not node.kwargs:
            operands = list(node.args)
        elif node.target in _SUMS and [*node.args[1:], *node.kwargs.items()] in ([0], [("dim", 0)], [("axis", 0)]):
            stack = node.args[0]
            if isinstance(stack, fx.Node) and stack.target in _STACKS and len(stack.users) == 1:
                stacked = stack.args[0] if stack.args else None
                along_first = [*stack.args[1:], *stack.kwargs.items()] in ([], [0], [("dim", 0)])
                if isinstance(stacked, list | tuple) and along_first:  # else it is of what one node gives, as unbind
                    operands = list(stacked)
        fine = all(isinstance(one, fx.Node) or (type(one) is int and one == 0) for one in operands)
        return operands if fine and len({one for one in operands if isinstance(one, fx.Node)}) > 0 else []

    def _changes_in_place(self, additions: list[fx.Node], rest: list[fx.Node]) -> bool:
        return any(node.target in _IN_PLACE and node.args[0] in rest for node in additions)

    def _why_not_a_branch(self, node: fx.Node, first: nn.Conv2d) -> str:
        conv = self._convolution(node)
        if why := self._why_not(node, fusing.CONVOLUTIONS):
            return why
        if not fusing.is_branch(conv):
            return (
                f"{node.target} has kernel {conv.kernel_size}, stride {conv.stride}, padding {conv.padding} and "
                f"dilation {conv.dilation}, which does not keep the size, or is not of one rate"
            )
        return "" if conv.out_channels == first.out_channels else f"{node.target} has another number of channels"

    # --- Chains of a convolution -----------------------------------------------------------------------------------

    def _find_chain(self, node: fx.Node) -> None:
        start = self._start_of_chain(node)
        if start is None:
            return
        site, inside = start
        last = node
        while len(last.users) == 1:
            (user,) = last.users
            if user in self.seen or not self._extends(site, last, user):
                break
            site.nodes.append(user)
            last = user
            if site.relu:
                break
        extended = len(site.nodes) > 1
        if not extended or not (site.bn or site.relu):
            return
        site.nodes = self._in_order(site.nodes)
        self.seen.update(site.nodes)
        modules = [*inside, *(_path(one) for one in site.nodes if one.op == "call_module")]
        whys = [why for path in modules if (why := self._why_not_called(path, site.called))]
        if whys:
            self.found.left_alone.append((str(site), "; ".join(dict.fromkeys(whys))))
        else:
            self.found.sites.append(site)

    def _start_of_chain(self, node: fx.Node) -> tuple[Site, list[str]] | None:
        """A convolution, or an `nn.Sequential` of a convolution and a batch norm; with the paths of modules inside."""
        child = self._child(node)
        if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
            return None
        if isinstance(child, nn.Conv2d):
            return Site([node], node.args[0], [_path(node)], called={_path(node): "conv"}), []
        if not isinstance(child, nn.Sequential) or type(child).forward is not nn.Sequential.forward:
            return None
        names = list(child._modules)
        if not 1 <= len(names) <= 2 or not isinstance(child[0], nn.Conv2d) or "forward" in vars(child):
            return None
        if fusing.has_hooks(child) or (len(names) == 2 and not _is_batch_norm(child[1])):
            return None
        paths = [f"{node.target}.{name}" for name in names]
        site = Site([node], node.args[0], paths[:1], bn=paths[1] if len(paths) > 1 else None)
        site.called = {_path(node): f"chain {len(names)}", **dict(zip(paths, ("conv", "bn"), strict=False))}
        return site, paths

    def _extends(self, site: Site, last: fx.Node, user: fx.Node) -> bool:
        """Whether `user` continues the chain that ends with `last`; if so, it is noted in the site."""
        if user.op == "call_module":
            child = self._child(user)
            if user.args != (last,) or user.kwargs:
                return False
            if _is_batch_norm(child) and site.bn is None and site.residual is None:
                site.bn = _path(user)
                site.called[site.bn] = "bn"
                return True
            if child is not None and fusing.is_plain(child, (nn.ReLU,)):
                site.relu = True
                site.called[_path(user)] = "relu"
                return True
            return False
        if user.target in _RELUS and user.args[:1] == (last,):
            site.relu = True
            return True
        operands = self._operands(user)
        if len(operands) != 2 or site.residual is not None or not all(isinstance(one, fx.Node) for one in operands):
            return False
        if user.target in _SUMS or operands[0] is operands[1]:
            return False
        if user.target in _IN_PLACE and user.args[0] is not last:
            return False
        site.in_place = user.target in _IN_PLACE
        site.residual = operands[1] if operands[0] is last else operands[0]
        return True

    # --- Concatenations --------------------------------------------------------------------------------------------

    def _find_concatenation(self, node: fx.Node) -> None:
        if node.target not in _CATS or not node.args or not isinstance(node.args[0], list | tuple):
            return
        by_input: dict[Any, set[tuple[int, ...]]] = {}
        for operand in node.args[0]:
            rates: set[tuple[int, ...]] = set()
            while isinstance(operand, fx.Node) and operand.op == "call_module" and len(operand.args) == 1:
                parts = self.children[_path(operand)].modules()
                rates |= {part.dilation for part in parts if isinstance(part, nn.Conv2d)}
                operand = operand.args[0]
            if rates:
                by_input.setdefault(operand, set()).update(rates)
        for rates in by_input.values():
            if len(rates) > 1:
                numbers = ", ".join(str(rate[0]) for rate in sorted(rates))
                self.found.left_alone.append(
                    (
                        f"convolutions of one input with dilation {numbers}",
                        "they are concatenated, as in DeepLab-v3, not summed",
                    )
                )

    # --- Modules ---------------------------------------------------------------------------------------------------

    def _child(self, node: object) -> nn.Module | None:
        return self.children[_path(node)] if isinstance(node, fx.Node) and node.op == "call_module" else None

    def _convolution(self, node: fx.Node) -> nn.Conv2d:
        """The one that `node` calls."""
        return cast(nn.Conv2d, self._child(node))

    def _why_not_called(self, path: str, roles: dict[str, str]) -> str:
        """Why the module at `path` must be called, "" if it need not be."""
        child, role = self.children[path], roles.get(path, "")
        if role == "conv":
            return self._why_not(path, fusing.CONVOLUTIONS)
        if role == "bn":
            if why := self._why_not(path, fusing.BATCH_NORMS):
                return why
            return f"{path} keeps no running statistics" if child.running_mean is None else ""
        return ""

    def _why_not(self, node: fx.Node | str, types: tuple[type[nn.Module], ...]) -> str:
        path = node if isinstance(node, str) else _path(node)
        child = self.children[path]
        if nn.utils.parametrize.is_parametrized(child):
            names = {type(one).__name__.strip("_") for many in child.parametrizations.values() for one in many}
            return f"{path} is parametrized ({', '.join(sorted(names))})"
        hooks = [*child._forward_hooks.values(), *child._forward_pre_hooks.values()]
        for hook in hooks:
            if is_of_torch(hook):
                return f"{path} has {type(hook).__name__}, a hook that makes its weight from others"
        if fusing.has_hooks(child):
            return f"{path} has hooks"
        if not fusing.is_plain(child, types):
            wanted = " or ".join(one.__name__ for one in types)
            return f"{path} is a {type(child).__name__} with a forward of its own, no {wanted}"
        if id(child) in self.shared or self.calls[path] > 1:
            return f"{path} is shared: used in more than one place"
        if isinstance(child, nn.Conv2d) and not fusing.fits_op(child):
            wrong = f"groups={child.groups}" if child.groups != 1 else f"padding_mode={child.padding_mode!r}"
            return f"{path} has {wrong}"
        return ""

    def _in_order(self, nodes: list[fx.Node]) -> list[fx.Node]:
        return sorted(set(nodes), key=self.order.__getitem__)


def _path(node: fx.Node) -> str:
    """Of the module that `node` calls."""
    return cast(str, node.target)


def _input_of(node: fx.Node) -> fx.Node:
    """Its first argument, a node too."""
    return cast(fx.Node, node.args[0])


def _named(kind: str, path: str) -> str:
    """The path; with what it is where that is a number, as in an `nn.Sequential`."""
    return f"{kind} {path}" if path.split(".")[-1].isdigit() else path


def _is_batch_norm(module: nn.Module | None) -> bool:
    return isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm))


def parents_of(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """(parent, child) for every child of every module in `model`, once a name."""
    for parent in model.modules():
        for child in parent._modules.values():
            if child is not None:
                yield parent, child


def shared_in(model: nn.Module) -> set[int]:
    """Ids of modules that are the child of more than one module, or have more than one name."""
    counts = Counter(id(child) for _, child in parents_of(model))
    return {identity for identity, count in counts.items() if count > 1}
