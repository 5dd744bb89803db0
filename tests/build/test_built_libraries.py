"""The compiled torch libraries: nothing spills in the CUDA kernels, and only torch's stable ABI is used."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import product
from pathlib import Path

import check_wheels
import pytest

torch = pytest.importorskip("torch")

from compiled import require_built  # noqa: E402

from deeplab_fast import _native  # noqa: E402

CSRC = Path(__file__).parents[2] / "csrc"
SOURCES = sorted(CSRC.rglob("*.cu"))
ARCHITECTURES = ("sm_80", "sm_90a")  # those of CMakeLists.txt


def nvcc() -> str | None:
    places = os.pathsep.join([f"{os.environ.get('CUDA_HOME', '')}/bin", "/usr/local/cuda/bin", os.environ["PATH"]])
    return shutil.which("nvcc", path=places)


def compiled_by_nvcc(source: Path, architecture: str, out: Path) -> subprocess.CompletedProcess:
    include = Path(torch.__file__).parent / "include"
    return subprocess.run(
        [
            nvcc(), "-cubin", f"-arch={architecture}", "-std=c++20", "-O3", "-Xptxas=-v", "--expt-relaxed-constexpr",
            "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DUSE_CUDA", f"-I{CSRC}", "-isystem", str(include),
            "-isystem", str(include / "torch/csrc/api/include"), str(source), "-o", str(out),
        ],
        capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def compilations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[Path, str], Future]]:
    """Of each source for each architecture; two at a time."""
    folder = tmp_path_factory.mktemp("cubins")
    with ThreadPoolExecutor(2) as pool:
        yield {
            pair: pool.submit(compiled_by_nvcc, *pair, folder / f"{pair[0].stem}-{pair[1]}.cubin")
            for pair in product(SOURCES, ARCHITECTURES)
        }


@pytest.mark.skipif(nvcc() is None, reason="there is no nvcc")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_cuda_kernels_keep_everything_in_registers(source: Path, architecture: str, compilations: dict):
    result = compilations[source, architecture].result()
    assert result.returncode == 0, result.stderr
    found = re.findall(
        r"Function properties for (\S+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
        result.stderr,
    )
    assert found, result.stderr
    for name, stack, *spills in found:
        assert spills == ["0", "0"], name
        # Lattices of more than six dimensions index arrays, which registers do not allow.
        any_dimensions = re.search(r"(locate_points|weights_to_features)_kernelILi0E", name)
        assert stack == "0" or any_dimensions, f"{name}: {stack} bytes"
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", result.stderr)]
    assert max(registers) <= 128, registers  # two blocks of 256 threads a multiprocessor


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
def test_only_headers_of_the_stable_abi_are_included(tmp_path: Path):
    """Those of torch's that the doors include, and those that these include."""
    doors = "".join(path.read_text() for path in sorted((CSRC / "doors").iterdir()))
    named = sorted(set(re.findall(r"#include <torch/[^>]+>", doors)))
    assert named
    source, include = tmp_path / "door.cpp", Path(torch.__file__).parent / "include"
    source.write_text("\n".join(named))
    options = ["-std=c++20", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(include)]
    command = ["c++", "-M", *options, str(source)]
    read = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    headers = [Path(name).relative_to(include).as_posix() for name in read if Path(name).is_relative_to(include)]
    stable = re.compile(r"torch/(headeronly|csrc/stable|csrc/inductor/aoti_torch/(c|generated))/")
    assert [name for name in headers if not stable.match(name)] == []


@pytest.fixture(params=sorted(_native.LIBRARIES))
def library(request: pytest.FixtureRequest) -> Path:
    if shutil.which("nm") is None or shutil.which("readelf") is None:
        # Of binutils: a machine that only installs a wheel has none.
        pytest.skip("there is no nm or no readelf")
    path = _native.LIBRARIES[request.param]
    require_built(path)
    return path


def test_only_the_stable_abi_is_used(library: Path):
    """CUDA's own runtime is linked statically; its driver calls go through dlopen."""
    assert check_wheels.foreign_symbols(library) == []


def test_torchs_libraries_are_needed_by_name(library: Path):
    """Python opens them locally, so their symbols are found through these names alone; CUDA's are torch's matter."""
    assert check_wheels.torch_libraries(library) == check_wheels.NEEDED[library.stem]
    assert check_wheels.search_paths(library) == []
    assert sorted(path.name for path in library.parent.glob("lib*.so*")) == sorted(
        path.name for path in _native.LIBRARIES.values() if path.exists()
    ), "the linker's stand-in for libtorch_cuda is installed"
