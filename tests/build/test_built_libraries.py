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


@pytest.mark.skipif(shutil.which("nm") is None, reason="there is no nm")
@pytest.mark.parametrize("library", _native.LIBRARIES.values(), ids=_native.LIBRARIES.keys())
def test_only_the_stable_abi_is_used(library: Path):
    require_built(library)
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True
    ).stdout
    symbols = [line.split()[-1].split("@")[0] for line in listing.splitlines()]
    torchs = re.compile(r"aoti_torch_|torch_|shim_")
    other = [s for s in symbols if not torchs.match(s)]
    assert not [s for s in other if re.search(r"c10|2at|caffe2|5torch", s)], "symbols of torch's C++ ABI"
    assert not [s for s in other if "deeplab_fast" in s], "symbols of ours that nothing defines"
    cuda_only = ("aoti_torch_get_current_cuda_stream", "torch_c10_cuda_check_msg")
    if library == _native.LIBRARIES["cpu"]:
        assert not any(s in cuda_only or s.startswith("cuda") for s in symbols)
    # CUDA's own runtime is linked statically; its driver calls go through dlopen.
    assert not [s for s in symbols if s.startswith(("cuda", "cu", "cublas", "cudnn"))]


@pytest.mark.skipif(shutil.which("readelf") is None, reason="there is no readelf")
@pytest.mark.parametrize(
    ("kind", "names"), [("cpu", ["torch_cpu"]), ("cuda", ["torch_cpu", "torch_cuda"])], ids=["cpu", "cuda"]
)
def test_torchs_libraries_are_needed_by_name(kind: str, names: list[str]):
    """Python opens them locally, so their symbols are found through these names alone; CUDA's are torch's matter."""
    library = _native.LIBRARIES[kind]
    require_built(library)
    listing = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", listing)
    assert [name for name in needed if re.match("libtorch|libc10|libcu", name)] == [f"lib{name}.so" for name in names]
    assert "RPATH" not in listing
    assert "RUNPATH" not in listing
    assert sorted(path.name for path in library.parent.glob("lib*.so*")) == sorted(
        path.name for path in _native.LIBRARIES.values() if path.exists()
    ), "the linker's stand-in for libtorch_cuda is installed"
