"""What wheels are made with (release/): linking for older systems, and the checks of the result."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
from pathlib import Path

import check_wheels
import link_stubs
import pytest

RELEASE = Path(link_stubs.__file__).parent
pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("c++", "nm", "readelf")), reason="there is no C++ compiler"
)

# Calls all that is in older_libstdcxx.cpp, and what newer glibcs have in other versions or in other libraries.
SOURCE = """
#include <cmath>
#include <exception>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <thread>
#include <vector>

extern "C" __attribute__((visibility("default"))) double deeplab_fast_try(double x) {
  std::exception_ptr first, second;
  try {
    throw std::runtime_error("thrown");
  } catch (...) {
    first = std::current_exception();
  }
  for (int i = 0; i < 1000; ++i) second = first, first = second;
  first = nullptr;
  std::stringstream text;
  try {
    std::rethrow_exception(second);
  } catch (const std::exception& error) {
    text << error.what();
  }
  auto shared = std::make_shared<double>(0);
  std::thread([shared, x] { *shared = std::log(x) + std::pow(x, 0.5); }).join();
  try {
    std::allocator<std::vector<double>>().allocate(static_cast<size_t>(x * 1e18));
  } catch (const std::bad_array_new_length&) {
    text << " twice";
  }
  std::ostringstream other;
  other << text.str() << std::move(text).str().size() << std::thread::hardware_concurrency();
  return other.str().rfind("thrown twice12", 0) == 0 ? *shared : -1;
}
"""


def linked(folder: Path, *options: str | Path) -> Path:
    source, library = folder / "libdeeplab_fast.cpp", folder / "libdeeplab_fast.so"
    source.write_text(SOURCE)
    command = ["c++", "-std=c++20", "-O2", "-shared", "-fPIC", "-pthread", source, "-o", library, *options]
    subprocess.run([str(part) for part in command], check=True)
    return library


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stubs")
    link_stubs.main(folder)
    return folder


def test_what_is_linked_with_stubs_needs_no_newer_system(stubs: Path, tmp_path: Path):
    exports = f"-Wl,--version-script={RELEASE / 'exports.map'}"
    library = linked(tmp_path, f"-L{stubs}", RELEASE / "older_libstdcxx.cpp", exports, "-Wl,-z,defs")
    assert list(check_wheels.faults(library)) == ["needs [], not ['libtorch_cpu.so']"]
    assert check_wheels.newest_versions(library)["GLIBC"] <= (2, 28)
    run = ctypes.CDLL(str(library)).deeplab_fast_try
    run.argtypes, run.restype = [ctypes.c_double], ctypes.c_double
    assert run(1.0) == 1.0


def test_what_a_stub_lacks_is_an_error_of_the_linker(stubs: Path, tmp_path: Path):
    newer = tmp_path / "newer.cpp"
    newer.write_text('extern "C" unsigned arc4random(); unsigned use() { return arc4random(); }')
    command = ["c++", "-shared", "-fPIC", str(newer), "-o", str(tmp_path / "newer.so"), "-Wl,-z,defs", f"-L{stubs}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "arc4random" in done.stderr


def test_the_check_finds_what_a_wheel_should_not_have(tmp_path: Path):
    foreign = tmp_path / "foreign.cpp"
    foreign.write_text('void at(); const char* path = "/home/someone/source.cpp"; void more() { at(); }')
    library = linked(tmp_path, foreign, "-Wl,-rpath,/opt/torch")
    found = "\n".join(check_wheels.faults(library))
    for fault in ("takes _Z2atv", "shows _Z4morev", "/opt/torch", "/home/someone/source.cpp", "needs [], not"):
        assert fault in found
    if tuple(map(int, platform.libc_ver()[1].split("."))) > link_stubs.NEWEST["GLIBC"]:
        assert "needs GLIBC 2." in found
