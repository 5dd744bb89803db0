"""What a file of weights holds: its tensors by name, without running code in it; or what it is instead."""

from __future__ import annotations

import _compat_pickle
import argparse
import collections
import itertools
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ZIP, _GZIP, _HDF5, _PICKLE = b"PK\x03\x04", b"\x1f\x8b", b"\x89HDF\r\n\x1a\n", b"\x80"
_LFS = b"version https://git-lfs"
_AGAIN = "fetch it again"
_ALONE = "where it was made, save the weights alone: torch.save(model.state_dict(), PATH)"

# What only a pickle that means to run something asks for.
_CODE_MODULES = {"os", "posix", "nt", "sys", "subprocess", "runpy", "importlib", "pty", "socket", "shutil", "ctypes"}
_CODE = {f"builtins.{name}" for name in ("eval", "exec", "compile", "__import__", "open", "input", "breakpoint")}


class _LeftOut:
    """Stands for any class or function that a file names, none of which is imported.

    Calling it does nothing and gives a dictionary: that takes entries, and attributes in its `__dict__`.
    """

    def __new__(cls, *args: Any) -> Any:
        return collections.OrderedDict()


class _LeftOutWithState:
    """The same, for what is given its content as a tuple."""

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _LeftOutList:
    """The same, for what is given its content as a list is."""

    def __new__(cls, *args: Any) -> Any:
        return []


_STAND_INS = {"functools.partial": _LeftOutWithState, "collections.deque": _LeftOutList}


def _numpy_globals() -> list[tuple[Any, str]]:
    """What numbers and arrays of numpy are made of, in the names of numpy 1 and 2."""
    dtypes = {type(np.dtype(code)) for code in "?bBhHiIlLqQefdgFD"}
    scalar, reconstruct = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    functions = [(function, function.__name__) for function in (scalar, reconstruct)]
    return [
        (np.ndarray, "numpy.ndarray"),
        (np.dtype, "numpy.dtype"),
        *((dtype, f"numpy.dtypes.{dtype.__name__}") for dtype in dtypes),
        *((function, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for function, name in functions),
    ]


# In pairs with their names, so that they are not what a caller has allowed, which is not to be disallowed afterwards.
_ALLOWED = [(argparse.Namespace, "argparse.Namespace"), *_numpy_globals()]


def read(path: Path, called: str = "weights") -> Any:
    """What `torch.save` or safetensors wrote to a file, on the CPU.

    No code in it is run: objects that are neither tensors nor plain data nor numpy's become dictionaries of their
    entries, with attributes in `__dict__`.

    Args:
        path: of the file.
        called: what errors call it.

    Raises:
        FileNotFoundError: if there is no such file.
        ModuleNotFoundError: if the library to read it with is missing.
        ValueError: if it is no such file: the error says, in one line, what it is and what to do.
    """
    check_kind(path, called)
    with open(path, "rb") as file:
        start = file.read(9)
    try:
        # By content: the name may be another's.
        return _read_safetensors(path) if start[8:9] == b"{" else _read_torch(path)
    except (ModuleNotFoundError, PermissionError, MemoryError):
        raise
    except _NotWeights as error:
        raise ValueError(f"{called} {path}: {error}") from None
    except Exception as error:  # unpickling raises UnpicklingError, RuntimeError, EOFError and more
        raise ValueError(f"{called} {path}: {_reason(error)}") from error


class _NotWeights(Exception):
    """What a file is instead of weights, and what to do."""


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if "Unsupported operand" in text:
        return "was written with another pickle protocol than torch.save's own; write it again without pickle_protocol"
    if "eights only load failed" in text or "weights_only" in text:
        return f"holds objects that cannot be left out; {_ALONE}"
    return f"cannot be read as tensors, it may be damaged or cut short ({text.split('. ')[0][:200]}); {_AGAIN}"


# ----------------------------------------------------------------------------------------------- what it is instead


def check_kind(path: Path, called: str = "weights") -> None:
    """Raise what `read` does, if it is no file, or its first bytes are those of something else."""
    if not path.exists():
        raise FileNotFoundError(f"{called} not found: {path}")
    if path.is_dir():
        raise ValueError(f"{called} must be a file, {path} is a folder")
    with open(path, "rb") as file:
        start = file.read(1024)
    what = _what_else(path, start)
    if what is not None:
        raise ValueError(f"{called} {path}: {what}")


def _what_else(path: Path, start: bytes) -> str | None:
    """What the file is, if it has no weights, and what to do."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start:
        return f"is empty; {_AGAIN}"
    if start.startswith(_LFS):
        return "is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`"
    if re.match(rb"<(!doctype|html|head|body|\?xml|!--|\w+>)", text, re.IGNORECASE):
        return (
            "is a web page, as a download saves where a login or a confirmation is asked for; fetch the file itself, "
            "in a browser for example"
        )
    if start.startswith(_GZIP) or start[257:262] == b"ustar":
        return "is an archive (gzip or tar); unpack it, and give the file in it"
    if start.startswith(_HDF5):
        return "is an HDF5 file, of Keras for example, which is not read; give weights of PyTorch"
    if start.startswith(_ZIP):
        return _what_zip(path)
    if path.suffix != ".caffemodel" and _is_text(start):
        first = text.split(b"\n")[0][:40].decode(errors="replace").strip()
        return f"is a text that begins with {first!r}, not a file of weights; {_AGAIN}"
    return None


def _is_text(start: bytes) -> bool:
    # A character may be cut at the end.
    try:
        return start[:-4].decode().isprintable() if len(start) < 8 else "\0" not in start[: len(start) - 4].decode()
    except UnicodeDecodeError:
        return False


def _what_zip(path: Path) -> str | None:
    """Of an archive that is not one of `torch.save`, what it is."""
    if not zipfile.is_zipfile(path):
        return f"is cut short: the end of the archive is missing after {path.stat().st_size:,} bytes; {_AGAIN}"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside:
        return (
            "is a TorchScript program, not its weights; save those: "
            "torch.save(torch.jit.load(PATH).state_dict(), OTHER), if you trust it"
        )
    if "data.pkl" in inside:
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "holds arrays of numpy (npz), which are not read; give weights of PyTorch"
    some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"is a zip archive of {some or 'nothing'}, not one of torch.save; unpack it, and give the file in it"


# ---------------------------------------------------------------------------------------------------- reading


def _read_torch(path: Path) -> Any:
    named = _named_globals(path)
    runs = sorted(name for name in named if name in _CODE or name.partition(".")[0] in _CODE_MODULES)
    if runs:
        raise _NotWeights(
            f"would run code when unpickled ({', '.join(runs)}), which no weights do; it was not run: do not use it"
        )
    allowed = {name for _, name in _ALLOWED}
    left_out = [(_STAND_INS.get(name, _LeftOut), name) for name in named if name not in allowed]
    with torch.serialization.safe_globals([*_ALLOWED, *left_out]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old formats: what cannot be read is an error all the same
        with open(path, "rb") as file:  # by a name, torch would take it for one of safetensors
            return torch.load(file, map_location="cpu", weights_only=True)


def _named_globals(path: Path) -> list[str]:
    """The classes and functions that the file names; those that `weights_only=True` knows may be among them."""
    if zipfile.is_zipfile(path):
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    with open(path, "rb") as file:
        if file.peek(1)[:1] != _PICKLE:
            raise _NotWeights(f"is not a file of weights: it begins with {file.read(8)!r}; {_AGAIN}")
        # Before torch 1.6: a magic number, a version, facts on the machine, the content.
        if torch.serialization.MAGIC_NUMBER not in [argument for _, argument, _ in pickletools.genops(file)]:
            raise _NotWeights(f"is a pickle that torch.save did not write; {_ALONE}")
        codes = itertools.chain.from_iterable(pickletools.genops(file) for _ in range(3))
        return [_python3_name(*argument.split(" ", 1)) for code, argument, _ in codes if code.name == "GLOBAL"]


def _python3_name(module: str, name: str) -> str:
    """Of a class or function, from the name that pickles of protocol 2 have for it."""
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"to read {path}, install safetensors: pip install safetensors") from None
    return load_file(path, device="cpu")


# ------------------------------------------------------------------------------------------------ tensors by name


def tensors_in(content: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors and numpy arrays of nested dictionaries, lists and pickled modules; names are joined by dots."""
    if isinstance(content, Tensor):
        yield "", content.detach()
    elif isinstance(content, np.ndarray) and content.dtype.kind in "biuf":
        yield "", torch.from_numpy(np.array(content, content.dtype.newbyteorder("=")))
    for name, part in _parts(content):
        for inner, tensor in tensors_in(part):
            yield f"{name}.{inner}" if inner else str(name), tensor


def _parts(content: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(content, Mapping):
        yield from content.items()
        yield from _module_parts(getattr(content, "__dict__", {}))
    elif isinstance(content, (list, tuple)):
        yield from enumerate(content)
    elif isinstance(content, argparse.Namespace):
        yield from vars(content).items()


def _module_parts(attributes: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """What the `state_dict` of a module would have, from the attributes that it was pickled with."""
    transient = attributes.get("_non_persistent_buffers_set", ())
    for kind in ("_parameters", "_buffers", "_modules"):
        members = attributes.get(kind)
        if isinstance(members, Mapping):
            yield from ((name, part) for name, part in members.items() if name not in transient)


def check_finite(path: Path, tensors: Iterable[tuple[str, Tensor]], called: str = "weights") -> None:
    """Raise ValueError if a tensor, given with its name, has a value that is NaN or Inf, or no data at all."""
    bad = []
    for name, tensor in tensors:
        if tensor.is_meta:
            raise ValueError(f"{called} {path}: {name} has no data, it was saved from the device meta")
        if tensor.is_floating_point() and not (finite := torch.isfinite(tensor)).all():
            bad.append(f"{name} has {tensor.numel() - int(finite.sum())} of {tensor.numel()} values")
    if bad:
        more = f" (and {len(bad) - 1} more tensors have such)" if len(bad) > 1 else ""
        raise ValueError(
            f"{called} {path}: {bad[0]} that are NaN or Inf{more}, as a training that diverged leaves them; take an "
            "earlier checkpoint"
        )
