"""CUDA's headers: where they are, and kernels that are compiled with them for the host."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from places import CSRC, NATIVE


def cuda_include() -> Path | None:
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME", "/usr/local/cuda"), nvcc and str(Path(nvcc).resolve().parents[1])]
    return next((Path(home, "include") for home in homes if home and Path(home, "include/cuda_fp16.h").exists()), None)


def tools_for_the_host() -> tuple[str, Path]:
    """g++ and CUDA's headers. Skips the test without them: the machine builds no CUDA kernels either."""
    compiler, include = shutil.which("g++"), cuda_include()
    if compiler is None or include is None:
        pytest.skip("g++ or CUDA's headers are not there")
    return compiler, include


def compiled_for_the_host(source: str, folder: Path, *flags: str) -> ctypes.CDLL:
    """The library of a file of tests/native/, whose CUDA kernels the host runs; made in a folder, with more flags."""
    compiler, include = tools_for_the_host()
    library = folder / "check.so"
    subprocess.run(
        [compiler, "-std=c++20", "-O1", *flags, "-shared", "-fPIC", "-I", CSRC, "-I", NATIVE, "-isystem", include,
         NATIVE / source, "-o", library],
        check=True,
    )  # fmt: skip
    return ctypes.CDLL(str(library))
