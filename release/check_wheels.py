"""Checks wheels as an index would serve them: symbols, versions, libraries, paths and size (`make check-wheel`).

python release/check_wheels.py dist/*.whl        prints a line a wheel, and what is wrong
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from link_stubs import NEWEST, numbers, output_of

LARGEST = 8e6  # bytes
CUDA_LIBRARY = "libdeeplab_fast_cuda.so"
# torch's C functions that the libraries may call, all of torch 2.10.
TORCH = (
    r"aoti_torch_(dtype|layout|device_type|memory_format)_\w+"  # return an enumerator
    r"|aoti_torch_(abi_version|library_init_impl|delete_library_object)"
    r"|aoti_torch_(new_tensor_handle|new_uninitialized_tensor|delete_tensor_object)"
    r"|aoti_torch_(get_dim|get_dtype|get_numel|get_size|get_stride|is_contiguous)"
    r"|torch_(library_impl|call_dispatcher|get_const_data_ptr|get_mutable_data_ptr|get_num_threads|parallel_for)"
    r"|torch_(new_list_reserve_size|delete_list|list_size|list_get_item|list_push_back)"
)
# These are not in a CPU build of torch.
TORCH_CUDA = (
    r"aoti_torch_(get_device_type|get_device_index|create_device_guard|delete_device_guard|get_current_cuda_stream)"
    r"|torch_c10_cuda_(check_msg|free_error_msg)"
)
COMPILERS = r"_ITM_(de)?registerTMCloneTable|__gmon_start__"
# By name, since Python opens torch's libraries locally.
NEEDED = {
    "_densecrf": set(),
    "libdeeplab_fast": {"libtorch_cpu.so"},
    "libdeeplab_fast_cuda": {"libtorch_cpu.so", "libtorch_cuda.so"},
}
EXPORTED = r"PyInit__densecrf|deeplab_fast_\w+"
PATH = rb"/(?:home|root|tmp|work|build|project|Users)/[\w./+-]+"


def dynamic_symbols(library: Path, which: str) -> list[str]:
    """Names that are `undefined` or `defined`, with versions as `name@VERSION`."""
    return [line.split()[-1] for line in output_of("nm", "-D", f"--{which}-only", str(library)).splitlines() if line]


def foreign_symbols(library: Path) -> list[str]:
    """Symbols that a library takes from others than the system and Python, and that are not allowed."""
    allowed = f"{COMPILERS}|_?Py\\w+" if library.name.startswith("_densecrf") else f"{COMPILERS}|{TORCH}"
    if library.name == CUDA_LIBRARY:
        allowed += f"|{TORCH_CUDA}"
    undefined = [name for name in dynamic_symbols(library, "undefined") if "@" not in name]
    return [name for name in undefined if not re.fullmatch(allowed, name)]


def newest_versions(library: Path) -> dict[str, tuple[int, ...]]:
    """Newest version asked for of each of the system's families: {"GLIBC": (2, 27), ...}."""
    newest: dict[str, tuple[int, ...]] = {}
    for symbol in dynamic_symbols(library, "undefined"):
        family, parts = numbers(symbol.partition("@")[2])
        if parts:
            newest[family] = max(parts, newest.get(family, ()))
    return newest


def torch_libraries(library: Path) -> set[str]:
    """Those of torch's and CUDA's libraries that are needed by name."""
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", output_of("readelf", "-d", str(library)))
    return {name for name in needed if re.match("libtorch|libc10|libcu|libnv", name)}


def search_paths(library: Path) -> list[str]:
    return re.findall(r"\((?:RPATH|RUNPATH)\).*", output_of("readelf", "-d", str(library)))


def faults(library: Path) -> Iterable[str]:
    stem = library.name.split(".")[0]
    yield from (f"takes {name}, which is not on the list of allowed symbols" for name in foreign_symbols(library))
    exported = [name.split("@")[0] for name in dynamic_symbols(library, "defined")]
    yield from (f"shows {name}" for name in exported if not re.fullmatch(EXPORTED, name))
    for family, parts in newest_versions(library).items():
        if parts > NEWEST.get(family, parts):
            yield f"needs {family} {'.'.join(map(str, parts))}"
    if torch_libraries(library) != NEEDED[stem]:
        yield f"needs {sorted(torch_libraries(library))}, not {sorted(NEEDED[stem])}"
    yield from search_paths(library)
    yield from (f"has the path {path.decode()}" for path in sorted(set(re.findall(PATH, library.read_bytes()))))


def check(wheel: Path) -> list[str]:
    """What is wrong with a wheel; prints its size and what it needs."""
    found = []
    if wheel.stat().st_size > LARGEST:
        found.append(f"{wheel.name} has {wheel.stat().st_size / 1e6:.1f} MB, more than {LARGEST / 1e6:.0f}")
    newest: dict[str, tuple[int, ...]] = {}
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
        libraries = sorted(Path(folder).rglob("*.so*"))
        if not {"_densecrf", "libdeeplab_fast"} <= {library.name.split(".")[0] for library in libraries}:
            found.append(f"{wheel.name} has only the libraries {[library.name for library in libraries]}")
        for library in libraries:
            found += [f"{wheel.name}: {library.name} {fault}" for fault in faults(library)]
            for family, parts in newest_versions(library).items():
                newest[family] = max(parts, newest.get(family, ()))
    audit = json.loads(output_of("auditwheel", "show", "--json", str(wheel)))
    versions = ", ".join(f"{family}_{'.'.join(map(str, newest[family]))}" for family in NEWEST if family in newest)
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB, {versions}; auditwheel: {audit['sym_tag']}")
    return found


def main(wheels: list[Path]) -> int:
    if not wheels:
        print("no wheel is named")
        return 1
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    found = [fault for wheel in wheels for fault in check(wheel)]
    print("\n".join(found) or "nothing is wrong")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]]))
