"""Finds and loads the compiled torch libraries; says in words what is there and what is not."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

from deeplab_fast import _limits

_FOLDER = Path(__file__).parent
CPU_LIBRARY = _FOLDER / "libdeeplab_fast.so"
CUDA_LIBRARY = _FOLDER / "libdeeplab_fast_cuda.so"


@cache
def _load_once() -> dict[str, str]:
    """Loads what can be loaded; per library, "loaded" or the reason why not."""
    import torch

    result = {}
    for name, path, wanted in (
        ("cpu", CPU_LIBRARY, True),
        # Its CUDA symbols are not in a CPU build of torch.
        ("cuda", CUDA_LIBRARY, torch.version.cuda is not None),
    ):
        if not path.exists():
            result[name] = "not built"
        elif not wanted:
            result[name] = "built, not loaded: this torch is built without CUDA"
        else:
            try:
                torch.ops.load_library(path)
                result[name] = "loaded"
            except OSError as error:
                result[name] = f"built, but does not load: {error}"
    if result["cpu"] == "loaded":
        _cpu_library().deeplab_fast_set_most_kept(_limits.most_kept())
    return result


@cache
def _cpu_library() -> ctypes.CDLL:
    """The plain functions of csrc/torch_memory.cpp, in the library that torch has loaded."""
    library = ctypes.CDLL(str(CPU_LIBRARY))
    library.deeplab_fast_set_most_kept.argtypes = [ctypes.c_uint64]
    library.deeplab_fast_set_most_kept.restype = library.deeplab_fast_release_memory.restype = None
    return library


def release_memory() -> None:
    """Gives the memory that the CPU kernels of the ops keep for the next call back to the system."""
    if _load_once.cache_info().currsize and load():
        _cpu_library().deeplab_fast_release_memory()


def load() -> bool:
    """Loads the torch libraries once (importing torch); True if the CPU kernels are there."""
    return _load_once()["cpu"] == "loaded"


def cuda_loaded() -> bool:
    """True if the CUDA kernels are there, too."""
    return _load_once()["cuda"] == "loaded"


def status() -> dict[str, str]:
    """What is built and what is used: keys "numpy", "cpu", "cuda"; values in words. Works without torch."""
    try:
        from deeplab_fast import _densecrf

        found = {"numpy": f"loaded, instruction set {_densecrf.isa()}"}
    except ImportError as error:
        found = {"numpy": f"not usable: {error}"}
    if importlib.util.find_spec("torch") is None:
        for name, path in (("cpu", CPU_LIBRARY), ("cuda", CUDA_LIBRARY)):
            found[name] = "built, not loaded: torch is not installed" if path.exists() else "not built"
        return found
    return found | _load_once()
