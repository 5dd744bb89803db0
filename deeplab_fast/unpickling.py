"""Pickles, and files of `torch.save`, read without running code in them.

For every class and function that a file of `torch.save` names and torch does not know as harmless, something stands in
that does nothing. Of a plain pickle, such as `np.save` makes of a dictionary, only what makes plain data, arrays and
tensors is taken, each through something that stands in for it. torch is imported where it is needed only.
"""

from __future__ import annotations

import _compat_pickle
import collections
import io
import itertools
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
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
        objects: what an array of objects holds; None for any other.
    """

    values: NDArray[Any] | None = None
    objects: list[Any] | None = None

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        if isinstance(data, list):
            self.objects = data
            return
        self.values = _numbers(data, dtype, shape, "F" if is_fortran else "C")


def _numbers(data: Any, dtype: _Dtype, shape: Any, order: Any) -> NDArray[Any] | None:
    """An array from its bytes, if it is one of numbers."""
    numbers = np.dtype(f"{dtype.order}{dtype.code}")
    if numbers.kind not in "biuf" or numbers.itemsize > 8:  # which torch has not, either
        return None
    values = np.frombuffer(data, numbers).reshape(shape, order=order)
    return np.array(values, numbers.newbyteorder("="), order="C")


_STAND_INS = {
    "functools.partial": _LeftOutWithState,
    "collections.deque": _LeftOutList,
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray._reconstruct": Array,  # before numpy 2
    "numpy._core.multiarray._reconstruct": Array,
}


# -------------------------------------------------------------------------------------------------------- reading


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote to a file, on the CPU; arrays as `Array`, other objects as dictionaries.

    Raises:
        NotWeights: for a file of another kind, or one that asks for code.
        Exception: as `torch.load` does.
    """
    import torch

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
    import torch

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


# -------------------------------------------------------------------------------------------------- plain pickles


def read_plain(file: BinaryIO) -> Any:
    """What a pickle holds: numbers, texts, lists, dictionaries; arrays and tensors as arrays.

    Args:
        file: open where the pickle begins.

    Raises:
        pickle.UnpicklingError: if it asks for anything else; nothing was run.
        ModuleNotFoundError: if it holds tensors, and torch is not installed.
        Exception: as unpickling does where the file is damaged.
    """
    try:
        return _plain(_PlainUnpickler(file).load())
    except MemoryError as error:
        raise pickle.UnpicklingError("a length in it is wrong, or memory is not enough for it") from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _PLAIN.get(f"{module}.{name}")
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is neither an array nor plain data")
        return found


def _plain(content: Any) -> Any:
    """The same, with arrays in place of what stands for them."""
    if isinstance(content, Array):
        if content.objects is not None:
            return [_plain(one) for one in content.objects]
        if content.values is None:
            raise pickle.UnpicklingError("it holds an array that is not one of numbers")
        return content.values
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_plain(one) for one in content]
    return content


def _bytes(text: str, _: str = "latin1") -> bytes:
    """Stands for what makes bytes from pickles of protocol 2."""
    return text.encode("latin1")


def _scalar(dtype: _Dtype, data: bytes) -> Any:
    """Stands for what makes numpy's numbers."""
    values = _numbers(data, dtype, (), "C")
    if values is None:
        raise pickle.UnpicklingError("it holds a scalar that is no number")
    return values.item()


def _from_buffer(data: Any, dtype: _Dtype, shape: Any, order: Any) -> Array:
    """Stands for what makes arrays from pickles of protocol 5."""
    made = Array()
    made.values = _numbers(data, dtype, shape, order)
    return made


def _storage(data: bytes) -> Any:
    """Stands for what makes the memory of a tensor, which a pickle holds as a file of `torch.save`."""
    import torch

    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> NDArray[Any]:
    """Stands for what makes a tensor of such memory."""
    import torch

    # What checks that the tensor lies inside the memory; weights_only=True takes it, too.
    made = torch._utils._rebuild_tensor(storage, offset, size, stride).detach()
    return (made.float() if made.dtype == torch.bfloat16 else made).numpy().copy()


_PLAIN: dict[str, Any] = {
    "_codecs.encode": _bytes,
    "collections.OrderedDict": collections.OrderedDict,
    "numpy.ndarray": Array,
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray._reconstruct": Array,  # before numpy 2
    "numpy._core.multiarray._reconstruct": Array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy._core.numeric._frombuffer": _from_buffer,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.storage._load_from_bytes": _storage,
}
