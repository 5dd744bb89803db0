"""What a benchmark case is: one op at one size, and the backends that compute it side by side."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """What cases are made for: the CPU, or with `gpu` the first GPU.

    Tiny cases have the names of the full-size ones and take milliseconds, to see that they are sound. Those of a GPU
    run on the CPU then, in float32, Triton kernels in Triton's interpreter.
    """

    gpu: bool = False
    tiny: bool = False
    tiles: bool = False  # on a GPU also every tile of the tables in deeplab_fast.kernels.choices

    @property
    def device(self) -> str:
        """Of the tensors."""
        return "cuda" if self.gpu and not self.tiny else "cpu"

    def pick(self, full: T, tiny: T) -> T:
        return tiny if self.tiny else full


@dataclass(frozen=True, eq=False)
class Backend:
    """Who computes a case, and how that is timed.

    `run` gets the case's inputs and returns the result. It may be a generator instead, which yields a stage's name when
    that stage is done and returns the result: then the stages are reported, too.
    """

    run: Callable[[Any], Any]
    takes: str | None = None  # the key of what this backend gets, where inputs are a dict of several
    clock: str = "wall"  # a key of bench.runner.CLOCKS: "wall", "events" or "graph"
    threads: int | None = None  # set before each call; None leaves them
    needs: tuple[str, ...] = ()  # modules without which this backend is left out
    once: bool = False  # one call only, the first: for a peer that is slower by orders of magnitude
    compiles: bool = False  # the first call takes a minute

    def own(self, inputs: Any) -> Any:
        return inputs if self.takes is None else inputs[self.takes]

    def missing(self) -> list[str]:
        """Those of the modules it needs that are not installed."""
        return [module for module in self.needs if not installed(module)]


@dataclass(frozen=True, eq=False)
class Case:
    """One op at one size.

    inputs() makes what the backends get. The first backend is the peer that others are compared with: error(result,
    expected) says how far a result is from the peer's, and more than `allowed` is a failure; None compares nothing.
    Where results are meant to differ, quality(result) says how good one is: its mean IoU, 0..1.
    """

    op: str
    size: str
    inputs: Callable[[], Any]
    backends: Mapping[str, Backend]
    error: Callable[[Any, Any], float] | None
    allowed: float = 0.0
    quality: Callable[[Any], float] | None = None
    stages: tuple[str, ...] = ()
    quick: bool = False  # part of the short selection
    memory: float = 0  # bytes that the most demanding backend takes, roughly; left out where there is less
    sizes: Mapping[str, Any] = field(default_factory=dict)  # for results: the numbers that `size` says in words
    device: str = "cpu"

    @property
    def name(self) -> str:
        return f"{self.op}: {self.size}"

    @property
    def peer(self) -> str:
        return next(iter(self.backends))

    def without(self, names: Mapping[str, Any] | set[str]) -> Case:
        """The case without some of its backends."""
        return replace(self, backends={name: b for name, b in self.backends.items() if name not in names})


def installed(module: str) -> bool:
    """Whether it could be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False
