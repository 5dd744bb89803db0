"""Every table of kernels follows the chosen instruction set; a set is added in one place, csrc/isa/isa.h."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from places import CSRC, INSTRUCTION_SETS, NATIVE

COMPILER = shutil.which(os.environ.get("CXX", "c++"))

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "check"
    tables = sorted(CSRC.rglob("kernel_tables.cpp"))
    sets = "-DDEEPLAB_FAST_FURTHER_SETS(SET,...)=SET(made_up,true,__VA_ARGS__)"
    # The program itself has the made-up set in its text: it need not be told.
    for number, source in enumerate([*tables, CSRC / "isa" / "isa.cpp", NATIVE / "instruction_sets.cpp"]):
        told = [sets] if source.parent != NATIVE else []
        output = path.with_name(f"{number}.o")
        command = [COMPILER, "-std=gnu++17", "-w", "-I", CSRC, *told, "-c", source, "-o", output]
        subprocess.run(command, check=True)
    subprocess.run([COMPILER, *sorted(path.parent.glob("*.o")), "-o", path], check=True)
    return path


def tables_of(program: Path, name: str) -> tuple[int, dict[str, str]]:
    environment = {**os.environ, "DEEPLAB_FAST_ISA": name}
    done = subprocess.run([program], env=environment, capture_output=True, text=True)
    return done.returncode, dict(line.split(" ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", ["made_up", "baseline"])
def test_all_tables_are_of_the_set_that_is_named(program, name):
    code, tables = tables_of(program, name)
    assert code == 0
    assert len(tables) == 8
    assert set(tables.values()) == {name}


def test_the_first_set_that_the_processor_has_is_chosen(program):
    assert set(tables_of(program, "")[1].values()) == {"made_up"}


def test_an_unknown_set_is_an_error_that_lists_the_sets(program):
    code, tables = tables_of(program, "sse9")
    assert code == 1
    assert re.fullmatch(
        r"DEEPLAB_FAST_ISA=sse9: unknown, should be (.*, )?made_up", tables["error"].replace(" or made_up", ", made_up")
    )


def test_the_built_library_runs_one_of_the_sets():
    assert {"baseline", "avx2", "avx512"} <= set(INSTRUCTION_SETS)
    core = pytest.importorskip("deeplab_fast._densecrf")
    assert core.isa() in INSTRUCTION_SETS
