"""Files of `torch.save`, read without running code in them: for every class and function that they name and torch does
not know as harmless, something stands in that does nothing. Tensors, plain data and numpy's arrays are what is left."""

from __future__ import annotations

import _compat_pickle
import collections
import itertools
import pickletools
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

AGAIN = "fetch it again"
ALONE = "where it was made, save the weights alone: torch.save(model.state_dict(), PATH)"

# What only a pickle that means to run something asks for.
_CODE_MODULES = {"os", "posix", "nt", "sys", "subprocess", "runpy", "importlib", "pty", "socket", "shutil", "ctypes"}
_CODE = {f"builtins.{name}" for name in ("eval", "exec", "compile", "__import__", "open", "input", "breakpoint")}


class NotWeights(Exception):
    """What a file is instead of weights, and what to do."""


# ------------------------------------------------------------------------------------------------------ stand-ins


class _LeftOut:
    """Calling it gives a dictionary: that takes entries, and attributes in its `__dict__`."""

    def __new__(cls, *args: Any) -> Any:
        return collections.OrderedDict()


class _LeftOutList:
    """The same, for what is filled as a list is."""

    def __new__(cls, *args: Any) -> Any:
        return []


class _LeftOutWithState:
    """The same, for what is filled from a tuple."""

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Dtype:
    """Stands for numpy's, which would take states that make it treat numbers as addresses."""

    def __init__(self, code: str = "", *args: Any):
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class Array:
    """Stands for numpy's.

    Attributes:
        values: the array, in the machine's byte order; None if it is not one of numbers.
    """

    values: NDArray[Any] | None = None

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        numbers = np.dtype(f"{dtype.order}{dtype.code}")
        if numbers.kind in "biuf" and numbers.itemsize <= 8:  # which torch has, too
            values = np.frombuffer(data, numbers).reshape(shape, order="F" if is_fortran else "C")
            self.values = np.array(values, numbers.newbyteorder("="), order="C")


_STAND_INS = {
    "functools.partial": _LeftOutWithState,
    "collections.deque": _LeftOutList,
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray._reconstruct": Array,  # before numpy 2
    "numpy._core.multiarray._reconstruct": Array,
}


# -------------------------------------------------------------------------------------------------------- reading


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote to a file, on the CPU; arrays as :class:`Array`, other objects as dictionaries.

    Raises:
        NotWeights: for a file of another kind, or one that asks for code.
        Exception: as `torch.load` does.
    """
    named = _named_globals(path)
    runs = sorted(name for name in named if name in _CODE or name.partition(".")[0] in _CODE_MODULES)
    if runs:
        raise NotWeights(
            f"would run code when unpickled ({', '.join(runs)}), which no weights do; it was not run: do not use it"
        )
    # In pairs with their names, so that they are not what a caller has allowed, and is allowed afterwards, too.
    stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (_STAND_INS.get(name, _LeftOut), name) for name in named
    ]
    with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old formats: what cannot be read is an error all the same
        with open(path, "rb") as file:  # by a name, torch would take it for one of safetensors
            return torch.load(file, map_location="cpu", weights_only=True)


def _named_globals(path: Path) -> list[str]:
    """The classes and functions that the file names; those that `weights_only=True` knows may be among them."""
    if zipfile.is_zipfile(path):
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    with open(path, "rb") as file:
        if file.peek(1)[:1] != b"\x80":
            raise NotWeights(f"is not a file of weights: it begins with {file.read(8)!r}; {AGAIN}")
        try:
            # Before torch 1.6: a magic number, a version, facts on the machine, the content.
            if torch.serialization.MAGIC_NUMBER not in [argument for _, argument, _ in pickletools.genops(file)]:
                raise NotWeights(f"is a pickle that torch.save did not write; {ALONE}")
            codes = itertools.chain.from_iterable(pickletools.genops(file) for _ in range(3))
            return [
                _python3_name(*argument.split(" ", 1))
                for code, argument, _ in codes
                if code.name == "GLOBAL" and argument
            ]
        except MemoryError as error:  # nothing in the head of a file is large: a length in it is wrong
            raise ValueError("a length is wrong") from error


def _python3_name(module: str, name: str) -> str:
    """Of a class or function, from the name that pickles of protocol 2 have for it."""
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"
