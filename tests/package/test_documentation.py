"""What README.md and docs/ say is so: code runs, commands are understood, names and files exist, errors are those."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pages
import pytest
import typer
from places import ROOT
from typer.testing import CliRunner

import deeplab_fast
from bench import results, tables
from deeplab_fast.commands import app
from deeplab_fast.pydensecrf import densecrf as dcrf
from deeplab_fast.pydensecrf import utils

PERFORMANCE = ROOT / "docs" / "performance.md"
WITHOUT_TORCH = {"coming-from-pydensecrf.md", "refine-a-data-set.md", "troubleshooting.md"}


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pages.fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- Code ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in pages.PAGES if pages.blocks(page, "python")], ids=page_id)
def test_code_runs(page, folder, monkeypatch):
    """The blocks of a page one after the other, as a reader would paste them."""
    if page.name not in WITHOUT_TORCH:
        pytest.importorskip("torch")
    monkeypatch.setattr(sys, "path", list(sys.path))  # install_as_pydensecrf changes all three
    monkeypatch.setenv("PYTHONPATH", "")
    for name in ("pydensecrf", "pydensecrf.densecrf", "pydensecrf.utils", "pydensecrf.eigen"):
        monkeypatch.setitem(sys.modules, name, None)  # what was there, also if that was nothing, comes back
        del sys.modules[name]
    namespace = {"__name__": "__main__"}
    for number, text in enumerate(pages.blocks(page, "python"), 1):
        exec(compile(text, f"{page_id(page)}, block {number}", "exec"), namespace)


def test_some_code_was_found():
    assert sum(len(pages.blocks(page, "python")) for page in pages.PAGES) > 15


# --- Commands --------------------------------------------------------------------------------------------------------


def run(words):
    return CliRunner().invoke(app.app, words[1:])


@pytest.mark.parametrize("line", [*pages.lines("deeplab-fast")], ids=str)
def test_options_are_understood(line):
    group = typer.main.get_command(app.app)
    command = group.commands[line.words[1]]
    command.make_context(line.words[1], line.words[2:])
    configs = [word for word in line.words if word.startswith("configs/")]
    assert all((ROOT / name).is_file() for name in configs)


@pytest.mark.parametrize("page", sorted({line.page for line in pages.lines("deeplab-fast")}), ids=page_id)
def test_crf_commands_run(page, folder):
    for line in pages.lines("deeplab-fast"):
        if line.page == page and line.words[1] in ("crf", "doctor"):
            if any(word.endswith(".nii.gz") for word in line.words) and not (folder / "t1.nii.gz").exists():
                continue
            quick = ["--jobs", "1"] if line.words[2:3] == ["images/"] else []
            done = run([*line.words, *quick])
            assert done.exit_code == 0, f"{line}\n{done.output}"


def test_make_targets_and_modules_exist():
    makefile = (ROOT / "Makefile").read_text()
    found = list(pages.lines("make", "python"))
    assert len(found) > 5
    for line in found:
        if line.words[0] == "make":
            for target in line.words[1:]:
                assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), line
        elif line.words[1] == "-m":
            assert importlib.util.find_spec(line.words[2]), line
        else:
            assert (ROOT / line.words[1]).is_file(), line


# --- Names and files -------------------------------------------------------------------------------------------------


def exists(dotted):
    """Whether a name of the package can be imported, or is an attribute of what can."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for name in parts[end:]:
            found = getattr(found, name, None)
        return found is not None
    return False


@pytest.mark.parametrize("page", pages.PAGES, ids=page_id)
def test_names_exist(page):
    pytest.importorskip("torch")
    text = page.read_text()
    names = set(re.findall(r"`(deeplab_fast(?:\.\w+)+)", text)) | set(re.findall(r"^::: (\S+)", text, re.MULTILINE))
    assert not [name for name in sorted(names) if not exists(name)]


def test_public_names_are_in_the_api():
    pytest.importorskip("torch")
    text = "".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    documented = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)", text, re.MULTILINE)}
    constants, former = {"CLIP", "PRESETS"}, {"densecrf"}
    for module in ("deeplab_fast.nn", "deeplab_fast.crf"):
        assert set(importlib.import_module(module).__all__) - constants - former <= documented
    assert set(deeplab_fast._LAZY) <= documented


@pytest.mark.parametrize("page", pages.PAGES, ids=page_id)
def test_files_exist(page):
    """Links, and names of the repository's files in code marks."""
    text = page.read_text()
    generated = {(ROOT / "docs" / name).resolve() for name in hooks().FROM_REPOSITORY}
    links = {(page.parent / link).resolve() for link in re.findall(r"\]\(([^)#:]+)[)#]", text)}
    assert not [str(link) for link in sorted(links) if not link.exists() and link not in generated]
    folders = "bench|configs|csrc|demo|docs|examples|tests|kernels"
    named = re.findall(rf"`((?:{folders})/[\w./-]+\.\w+)`", text)
    made = re.compile(r"demo/out|/x\.|cases/OP")
    assert not [name for name in named if not (ROOT / name).exists() and not made.search(name)]


@functools.cache
def hooks():
    """docs/site_hooks.py, which mkdocs loads as it is here."""
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    listed = re.findall(r": ([\w/-]+\.md)$", menu, re.MULTILINE)
    assert len(listed) == len(set(listed))
    ours = {page.relative_to(ROOT / "docs").as_posix() for page in pages.PAGES if page.is_relative_to(ROOT / "docs")}
    assert set(listed) == ours | {name for name in hooks().FROM_REPOSITORY if name.endswith(".md")}


# --- Errors of the drop-in -------------------------------------------------------------------------------------------

ERRORS = re.findall(
    r"^\| `([^`]+)` \| `([^`]+)` \|",
    (ROOT / "docs" / "coming-from-pydensecrf.md").read_text().partition("## Every error")[2],
    re.MULTILINE,
)


def test_errors_were_found():
    assert len(ERRORS) >= 15


@pytest.mark.parametrize(("call", "message"), ERRORS, ids=[call for call, _ in ERRORS])
def test_errors_are_those_of_the_page(call, message):
    rgb = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    names = {
        "np": np, "dcrf": dcrf, "utils": utils, "crf": dcrf.DenseCRF2D(4, 3, 2), "rgb": rgb,
        "U": np.zeros((2, 12), np.float32),
    }  # fmt: skip
    with pytest.raises((ValueError, TypeError)) as caught:
        eval(call, names)
    assert str(caught.value).startswith(message)


def test_all_names_of_the_drop_in_are_on_the_page():
    text = (ROOT / "docs" / "coming-from-pydensecrf.md").read_text()
    public = [
        name for name in (*dcrf.__all__, *utils.__all__) if name not in ("KernelType", "NormalizationType", "Unary")
    ]
    public += [name for name in vars(dcrf.DenseCRF) | vars(dcrf.DenseCRF2D) if not name.startswith("_")]
    assert not [name for name in public if name not in text]


# --- Figures ---------------------------------------------------------------------------------------------------------


def test_every_result_is_in_a_table():
    """Of whole calls; a new file of results needs a marker that its cases fit."""
    markers = hooks().RESULTS.findall(PERFORMANCE.read_text())
    assert len(markers) > 8
    shown = hooks().on_page_markdown(PERFORMANCE.read_text())
    assert "<!-- results" not in shown
    wanted = [marker.split(", ") for marker in markers]
    for path in results.committed():
        whole = [m for m in results.read(path).measurements if m.stage == results.WHOLE]
        assert all(any(tables.fits(m, patterns) for patterns in wanted) for m in whole), path.name


def test_tables_name_the_machine_and_mark_what_is_slower(tmp_path):
    run = results.Run(
        date="2026-11-26T00:00:00+00:00", commit={"id": None, "dirty": None},
        machine={"processor": "P", "cores": 2, "gpu": None, "system": "Linux"},
        software={"deeplab_fast_isa": "avx2", "torch": "2.13.0", "onednn": "3.12.0"},
    )  # fmt: skip
    older = results.Run("2026-11-20", run.commit, run.machine, {})
    for size, stock, ours in (("9", 0.2, 0.1), ("10", 0.1, 0.125)):
        for backend, seconds in (("stock", stock), ("deeplab_fast", ours)):
            for one, factor in ((run, 1), (older, 7)):
                one.measurements.append(
                    results.Measurement(
                        "op", size, "cpu", results.WHOLE, backend, "stock", 2, {}, "s", [factor * seconds]
                    )
                )
    results.write(tmp_path / "new.json", run)
    results.write(tmp_path / "old.json", older)
    text = tables.markdown(["op: *"], tmp_path.glob("*.json"))
    assert text.splitlines() == [
        "**P, 2 cores** (2026-11-26; our instruction set avx2, torch 2.13.0, oneDNN 3.12.0)",
        "",
        "|  | stock | ours | ours is |",
        "| --- | ---: | ---: | ---: |",
        "| 9 | 200 ms | 100 ms | 2.0× faster |",
        "| 10 | 100 ms | 125 ms | **1.2× slower** |",
    ]
    with pytest.raises(ValueError, match="no results fit other"):
        tables.markdown(["other: *"], tmp_path.glob("*.json"))


def test_figures_are_drawn(tmp_path):
    pytest.importorskip("skimage")
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs" / "figures.py")
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    figures.main(tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (ROOT / "docs" / "images").iterdir()}
