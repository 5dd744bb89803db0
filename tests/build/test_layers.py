"""How the folders depend on each other: arrows lead downwards only, and there is no circle."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
# What each folder of csrc/ may include, beside its own files.
BELOW = {
    "base": set(),
    "isa": set(),
    "cuda": {"base"},
    "lattice": {"base", "isa", "cuda"},
    "upsample": {"base", "isa", "cuda"},
    "convolution": {"base", "isa"},
    "crf": {"base", "isa", "cuda", "lattice", "upsample", "convolution"},
    "doors": {"base", "isa", "cuda", "lattice", "upsample", "convolution", "crf"},
}
FILES = sorted(path for path in CSRC.rglob("*") if path.is_file())


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include "([^"]+)"', path.read_text(), re.M)


def test_every_file_lies_in_a_folder_that_is_named_here():
    assert {path.parent.relative_to(CSRC).as_posix() for path in FILES} == set(BELOW)


@pytest.mark.parametrize("folder", BELOW)
def test_includes_lead_downwards(folder):
    allowed = BELOW[folder] | {folder}
    wrong = [
        f"{path.relative_to(CSRC)} includes {name}"
        for path in FILES
        if path.parent.name == folder
        for name in includes(path)
        if name.split("/")[0] not in allowed or not (CSRC / name).is_file()
    ]
    assert wrong == []


def test_no_two_folders_are_below_each_other():
    assert [(a, b) for a in BELOW for b in BELOW[a] if a in BELOW[b]] == []


def test_torch_is_included_by_doors_only():
    wrong = [str(path) for path in FILES if path.parent.name != "doors" and "#include <torch" in path.read_text()]
    assert wrong == []


def test_callers_of_the_lattice_geometry_are_compiled_without_contraction():
    """A fused multiply-add makes another vertex: csrc/lattice/geometry.h says why."""
    cmake = (ROOT / "CMakeLists.txt").read_text()
    calls = re.compile(r"\b(locate_simplex|barycentric_weights|weights_backward)\s*[<(]")
    callers = [path for path in FILES if path.suffix == ".cpp" and calls.search(path.read_text())]
    assert callers
    exact = re.findall(r"set_source_files_properties\(([^)]*)PROPERTIES COMPILE_OPTIONS -ffp-contract=off\)", cmake)
    exact += re.findall(r"add_library\(isa_geometry_\$\{name\} OBJECT ([^)]*)\)", cmake)
    assert re.search(r"isa_geometry_\$\{name\} PRIVATE [^)]*-ffp-contract=off", cmake)
    listed = {name for names in exact for name in names.split()}
    assert [str(path.relative_to(ROOT)) for path in callers if str(path.relative_to(ROOT)) not in listed] == []


# --- the Python package ----------------------------------------------------------------------------------------------


def imported(path: Path) -> set[str]:
    """The parts of deeplab_fast that a file imports, wherever in it: folders and modules at the top."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("deeplab_fast.")}
    return found


def test_no_two_parts_of_the_package_import_each_other():
    package = ROOT / "deeplab_fast"
    arrows: dict[str, set[str]] = {}
    for path in [*package.rglob("*.py"), *(ROOT / "kernels").glob("*.py")]:
        part = "kernels" if path.parent.name == "kernels" else path.relative_to(package).with_suffix("").parts[0]
        if part != "__init__":  # the package itself names its parts, and imports none before it is asked to
            arrows.setdefault(part, set()).update(imported(path))
    assert {"commands", "ops", "reference", "kernels"} <= set(arrows)

    def reached(part: str) -> set[str]:
        found, waiting = set(), [part]
        while waiting:
            new = (arrows.get(waiting.pop(), set()) & set(arrows)) - found
            found |= new
            waiting += new
        return found

    circles = [(a, b) for a in arrows for b in reached(a) if a < b and a in reached(b)]
    assert circles == []
    assert "commands" not in set().union(
        *(below for part, below in arrows.items() if part not in ("commands", "__main__"))
    )


def test_the_table_of_kernels_names_files_that_exist():
    table = (ROOT / "docs" / "architecture.md").read_text().split("An op's kernels:")[1].split("\n- ")[0]
    for row in table.strip().splitlines()[2:]:
        _, *cells = row.strip("|").split("|")
        for cell in cells:
            folder = ""
            for name in re.findall(r"`([\w/]+\.\w+)`", cell):
                folder = name.rpartition("/")[0] or folder
                path = Path(folder) / Path(name).name
                assert (ROOT / path).is_file() or (CSRC / path).is_file(), f"{row}: {path}"
