"""Builds the compiled parts by calling CMake (CMakeLists.txt knows the sources) and packages them.

    pip install --no-build-isolation .        (or -e .)

torch must be installed first for the torch ops to be built; without it, the torch-free dense CRF is built alone.
Without a C++ compiler nothing is, the package installs all the same, and `deeplab-fast doctor` says what is missing.
The environment variable CMAKE_ARGS has further options for CMake, for example -DDEEPLAB_FAST_CUDA=OFF.
DEEPLAB_FAST_BUILD names CMake's folder: several Pythons that share it build once what they have in common.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_namespace_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
LIBRARIES = ("libdeeplab_fast.so", "libdeeplab_fast_cuda.so")


def version() -> str:
    for line in (ROOT / "deeplab_fast" / "__init__.py").read_text().splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise RuntimeError("deeplab_fast/__init__.py has no __version__")


def description() -> str:
    """README.md for a package index, which has none of the files that it shows and links: those become their names."""
    text = (ROOT / "README.md").read_text()
    text = re.sub(r"!\[[^]]*\]\([^)]*\)\n+", "", text)
    return re.sub(r"\[([^]]+)\]\(([^)#]+)[^)]*\)", r"\1 (`\2`)", text)


def torch_options() -> list[str]:
    """Where torch is, without importing it (that takes seconds)."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        print("deeplab-fast: torch is not installed, its ops are not built", file=sys.stderr)
        return []
    folder = Path(spec.origin).parent
    include = folder / "include"
    return [
        f"-DDEEPLAB_FAST_TORCH_INCLUDE={include};{include / 'torch/csrc/api/include'}",
        f"-DDEEPLAB_FAST_TORCH_LIB={folder / 'lib'}",
    ]


class CMakeBuild(build_ext):
    """One CMake build for all libraries; without a compiler, none, and a warning."""

    def run(self) -> None:
        cmake = shutil.which("cmake")
        if cmake is None or not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
            missing = "cmake" if cmake is None else "a C++ compiler"
            print(f"deeplab-fast: {missing} not found, nothing is compiled, the reference is used", file=sys.stderr)
            return
        import pybind11

        target = Path(self.get_ext_fullpath("deeplab_fast._densecrf")).resolve().parent
        target.mkdir(parents=True, exist_ok=True)
        build = Path(os.environ.get("DEEPLAB_FAST_BUILD", self.build_temp)).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            cmake, "-S", str(ROOT), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release",
            "-U", "*Python*", "-U", "*PYTHON*",  # another Python's, where the folder is shared
            f"-DCMAKE_INSTALL_PREFIX={target}", f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DDEEPLAB_FAST_VERSION={version()}",
            *torch_options(), *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]  # fmt: skip
        if shutil.which("ninja"):
            configure += ["-G", "Ninja"]
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(build), "--parallel", str(os.cpu_count() or 1)], check=True)
        subprocess.run([cmake, "--install", str(build), "--strip"], check=True)

    def get_outputs(self) -> list[str]:
        target = Path(self.get_ext_fullpath("deeplab_fast._densecrf")).parent
        return [str(path) for path in target.glob("*.so")]

    def copy_extensions_to_source(self) -> None:
        """Editable install: CMake has installed into the source tree already."""


setup(
    version=version(),
    long_description=description(),
    long_description_content_type="text/markdown",
    packages=[
        *find_namespace_packages(include=["deeplab_fast", "deeplab_fast.*"], exclude=["*.__pycache__"]),
        "deeplab_fast.kernels",  # in kernels/, as pyproject.toml says
    ],
    ext_modules=[Extension("deeplab_fast._densecrf", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
