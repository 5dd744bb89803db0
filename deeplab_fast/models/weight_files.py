"""What a file of weights holds: its tensors by name, without running code in it; or what it is instead."""

from __future__ import annotations

import codecs
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deeplab_fast import unpickling
from deeplab_fast.unpickling import AGAIN, ALONE

_ZIP, _GZIP, _HDF5 = b"PK\x03\x04", b"\x1f\x8b", b"\x89HDF\r\n\x1a\n"
_LFS = b"version https://git-lfs"


def read(path: Path, called: str = "weights") -> Any:
    """What `torch.save` or safetensors wrote to a file, on the CPU.

    No code in it is run: see `unpickling`.

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
        start = file.read(10)
    try:
        # By content: the name may be another's.
        return _read_safetensors(path) if start[8:10] in (b'{"', b"{}") else unpickling.read_torch(path)
    except (ModuleNotFoundError, PermissionError, MemoryError):
        raise
    except unpickling.NotWeights as error:
        raise ValueError(f"{called} {path}: {error}") from None
    except Exception as error:  # unpickling raises UnpicklingError, RuntimeError, EOFError and more
        raise ValueError(f"{called} {path}: {_reason(error)}") from error


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"to read {path}, install safetensors: pip install safetensors") from None
    return load_file(path, device="cpu")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if "Unsupported operand" in text:
        return "was written with another pickle protocol than torch.save's own; write it again without pickle_protocol"
    if "eights only load failed" in text or "weights_only" in text:
        return f"holds objects that cannot be left out; {ALONE}"
    return f"cannot be read as tensors, it may be damaged or cut short ({text.split('. ')[0][:200]}); {AGAIN}"


# ----------------------------------------------------------------------------------------------- what it is instead


def check_kind(path: Path, called: str = "weights") -> None:
    """Raise what `read` does, if it is no file, or its first bytes are those of something else."""
    if not path.exists():
        raise FileNotFoundError(f"{called} not found: {path}")
    if path.is_dir():
        raise ValueError(f"{called} {path}: is a folder, should be a file")
    with open(path, "rb") as file:
        start = file.read(1024)
    try:
        what = _what_else(path, start)
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # of a damaged archive: BadZipFile, NotImplementedError, UnicodeDecodeError and more
        what = _reason(error)
    if what is not None:
        raise ValueError(f"{called} {path}: {what}")


def _what_else(path: Path, start: bytes) -> str | None:
    """What the file is, if it has no weights, and what to do."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start:
        return f"is empty; {AGAIN}"
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
        return f"is a text that begins with {first!r}, not a file of weights; {AGAIN}"
    return None


def _is_text(start: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start)  # a character may be cut at the end
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)


def _what_zip(path: Path) -> str | None:
    """Of an archive that is not one of `torch.save`, what it is."""
    if not zipfile.is_zipfile(path):
        return f"is cut short: the end of the archive is missing after {path.stat().st_size:,} bytes; {AGAIN}"
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


# ------------------------------------------------------------------------------------------------ tensors by name


def tensors_in(content: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors and numpy arrays of nested dictionaries, lists and pickled modules; names are joined by dots."""
    if isinstance(content, Tensor):
        yield "", content.detach()
    elif isinstance(content, unpickling.Array) and content.values is not None:
        yield "", torch.from_numpy(content.values)
    for name, part in _parts(content):
        for inner, tensor in tensors_in(part):
            yield f"{name}.{inner}" if inner else str(name), tensor


def _parts(content: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(content, Mapping):
        yield from _items(content)
        yield from _module_parts(getattr(content, "__dict__", {}))
    elif isinstance(content, (list, tuple)):
        yield from enumerate(content)


def _items(mapping: Mapping[Any, Any]) -> Iterable[tuple[Any, Any]]:
    # By its type: an object left out may have had an attribute `items`.
    return type(mapping).items(mapping)


def _module_parts(attributes: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """What the `state_dict` of a module would have, from the attributes that it was pickled with."""
    transient = attributes.get("_non_persistent_buffers_set", ())
    for kind in ("_parameters", "_buffers", "_modules"):
        members = attributes.get(kind)
        if isinstance(members, Mapping):
            yield from ((name, part) for name, part in _items(members) if name not in transient)


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
