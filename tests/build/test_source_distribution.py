"""The source distribution has all that the package is built from: a wheel built from it works."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Settings of the repository itself.
LEFT_OUT = {
    ".ci/run",
    ".github/workflows/checks.yml",
    ".clang-format",
    ".gitignore",
    ".pre-commit-config.yaml",
    "demo/.gitignore",
}
# Quick to build: what a source distribution lacks shows as well without torch and without optimisation.
QUICK_BUILD = "-DDEEPLAB_FAST_TORCH=OFF -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS=-O0"


def source_files() -> list[str]:
    """What is under version control, or will be, and is there."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        # An unpacked source distribution has these tests, too, but nothing that says which files it should have.
        pytest.skip("not a checkout of the repository")
    return [name for name in listing.splitlines() if (ROOT / name).is_file()]


def python(*command: str, folder: Path, **environment: str) -> str:
    """A command of Python's, which must succeed."""
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # cmake and ninja of this environment
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env={**os.environ, "PATH": tools, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-10000:]
    return done.stdout


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of a copy of the checkout, which it leaves as it is, unpacked."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in source_files():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, checkout / name)
    python("-c", "from setuptools import build_meta; build_meta.build_sdist('.')", folder=checkout)
    (archive,) = checkout.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(checkout / "unpacked", filter="data")
    (folder,) = (checkout / "unpacked").iterdir()
    return folder


def test_nothing_is_left_out(unpacked: Path):
    names = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    made = {name for name in names if ".egg-info/" in name or name in ("PKG-INFO", "setup.cfg")}
    ours = {name for name in source_files() if not name.startswith(".github/")}
    assert names - made == ours - LEFT_OUT


def test_an_index_can_show_the_description(unpacked: Path):
    """README.md, but for pictures and links to files, which an index does not have."""
    description = (unpacked / "PKG-INFO").read_text().partition("\n\n")[2]
    assert "Description-Content-Type: text/markdown" in (unpacked / "PKG-INFO").read_text()
    assert "deeplab-fast crf photo.jpg" in description
    assert "](" not in description
    assert "(`docs/coming-from-pydensecrf.md`)" in description


@pytest.mark.skipif(
    importlib.util.find_spec("pybind11") is None or not any(shutil.which(name) for name in ("c++", "g++", "clang++")),
    reason="there is no C++ compiler, or no pybind11",
)
def test_a_wheel_built_from_it_works(unpacked: Path, tmp_path: Path):
    pip = ("-m", "pip", "--disable-pip-version-check", "--quiet")
    where = ("--no-deps", "--no-index", "--no-build-isolation")
    python(*pip, "wheel", *where, "--wheel-dir", str(tmp_path), str(unpacked), folder=tmp_path, CMAKE_ARGS=QUICK_BUILD)
    (wheel,) = tmp_path.glob("*.whl")
    python(*pip, "install", *where, "--target", str(tmp_path / "installed"), str(wheel), folder=tmp_path)
    script = (
        "import deeplab_fast, importlib.util, numpy as np; from deeplab_fast.pydensecrf import densecrf;"
        "crf = densecrf.DenseCRF2D(8, 6, 2); crf.setUnaryEnergy(np.zeros((2, 48), np.float32));"
        "crf.addPairwiseGaussian(sxy=3, compat=3); assert np.allclose(crf.inference(2), 0.5);"
        "from deeplab_fast import _densecrf; assert importlib.util.find_spec('deeplab_fast.kernels');"
        "print(deeplab_fast.__file__, _densecrf.__file__)"
    )
    installed = tmp_path / "installed" / "deeplab_fast"
    modules = {
        path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.suffix in (".py", ".pyi")
    }
    own = [name for name in source_files() if re.match(r"(deeplab_fast|kernels)/.*\.pyi?$", name)]
    assert modules == {name.removeprefix("deeplab_fast/") for name in own}, "setup.py finds the packages"
    places = python("-c", script, folder=tmp_path, PYTHONPATH=str(installed.parent)).split()
    assert [Path(place).parent for place in places] == [installed] * 2
