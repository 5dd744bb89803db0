"""Finds and loads the compiled torch libraries; says in words what is there, what is not, and why."""

from __future__ import annotations

import ctypes
import importlib.util
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from deeplab_fast import _limits

_FOLDER = Path(__file__).parent
LIBRARIES = {"cpu": _FOLDER / "libdeeplab_fast.so", "cuda": _FOLDER / "libdeeplab_fast_cuda.so"}

COMPILER = "install a C++ compiler (g++ or clang++) and install deeplab-fast again"
NVCC = "install nvcc (CUDA's compiler) and install deeplab-fast again"
AGAIN = (
    "install it again: pip install 'setuptools>=77' pybind11 ninja cmake, then, in its folder, "
    "pip install --no-build-isolation --force-reinstall --no-deps ."
)


@dataclass(frozen=True)
class Library:
    """What became of a compiled library.

    Attributes:
        loaded: whether its kernels are there.
        status: "loaded", or why not.
        remedy: what to do about it; "" for nothing.
        broken: it is there and should load, but does not.
    """

    loaded: bool
    status: str
    remedy: str = ""
    broken: bool = False


@cache
def _cpu_library() -> ctypes.CDLL:
    """The plain functions of csrc/doors/torch_memory.cpp, in the library that torch has loaded."""
    library = ctypes.CDLL(str(LIBRARIES["cpu"]))
    library.deeplab_fast_set_most_kept.argtypes = [ctypes.c_uint64]
    library.deeplab_fast_set_most_kept.restype = library.deeplab_fast_release_memory.restype = None
    return library


def release_memory() -> None:
    """Gives the memory that the CPU kernels of the ops keep for the next call back to the system."""
    if libraries.cache_info().currsize and load():
        _cpu_library().deeplab_fast_release_memory()


def load() -> bool:
    """Loads the torch libraries once (importing torch); True if the CPU kernels are there."""
    return libraries()["cpu"].loaded


def cuda_loaded() -> bool:
    """True if the CUDA kernels are there, too."""
    return libraries()["cuda"].loaded


@cache
def libraries() -> dict[str, Library]:
    """The libraries with kernels for "cpu" and "cuda", loaded where that can be. Works without torch."""
    if importlib.util.find_spec("torch") is None:
        return {kind: _not_loaded(kind, "torch is not installed") for kind in LIBRARIES}
    import torch

    # Its CUDA symbols are not in a CPU build of torch.
    cuda = _load("cuda") if torch.version.cuda else _not_loaded("cuda", "this torch is built without CUDA")
    cpu = _load("cpu")
    if cpu.loaded:
        _cpu_library().deeplab_fast_set_most_kept(_limits.most_kept())
    return {"cpu": cpu, "cuda": cuda}


def status() -> dict[str, str]:
    """What is built and what is used: keys "numpy", "cpu", "cuda"; values in words. Works without torch."""
    try:
        from deeplab_fast import _densecrf

        found = {"numpy": f"loaded, instruction set {_densecrf.isa()}"}
    except ImportError as error:
        found = {"numpy": f"not usable: {error}"}
    return found | {kind: library.status for kind, library in libraries().items()}


def warn_if_missing(kind: str) -> None:
    """One warning, the first time that tensors on this kind of device are computed on without compiled kernels."""
    if kind in LIBRARIES and not libraries()[kind].loaded:
        warn_once(why_missing(kind))


def why_missing(kind: str) -> str:
    """Why there are no compiled kernels for this kind of device, and what to do about it."""
    library = libraries()[kind]
    text = f"deeplab_fast's {kind.upper()} kernels are not used, plain PyTorch is, much slower: {library.status}"
    return f"{text}; {library.remedy}" if library.remedy else text


@cache
def warn_once(text: str) -> None:
    """A RuntimeWarning, once in a process whatever the filters are."""
    warnings.warn(text, RuntimeWarning, stacklevel=3)


def _load(kind: str) -> Library:
    path = LIBRARIES[kind]
    if not path.exists():
        return _not_built(kind)
    import torch

    try:
        torch.ops.load_library(path)
    except OSError as error:
        # What the loader said is the cause of what torch says.
        return Library(False, f"built, but does not load: {error.__cause__ or error}", AGAIN, broken=True)
    return Library(True, "loaded")


def _not_loaded(kind: str, why: str) -> Library:
    return Library(False, f"built, not loaded: {why}") if LIBRARIES[kind].exists() else _not_built(kind)


def _not_built(kind: str) -> Library:
    if kind == "cuda" and LIBRARIES["cpu"].exists():
        return Library(False, "not built, as no nvcc was found when deeplab-fast was installed", NVCC)
    if importlib.util.find_spec("deeplab_fast._densecrf") is None:
        return Library(False, "not built, as no C++ compiler was found when deeplab-fast was installed", COMPILER)
    # pip's isolated builds see none of the packages that are installed.
    why = "not built, as no torch was seen when deeplab-fast was installed (pip hides it unless told not to)"
    return Library(False, why, AGAIN)
