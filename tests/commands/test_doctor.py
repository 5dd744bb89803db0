"""`deeplab-fast doctor` on whole and on poor installations."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from command import run, succeeds

import deeplab_fast
from deeplab_fast import _native, doctor


def test_doctor_tells_what_is_there(tmp_path):
    result = succeeds(run(tmp_path, "doctor"))
    for word in ("deeplab-fast", "Python", "dense CRF on numpy", "torch", "pydensecrf"):
        assert word in result.stdout


def test_doctor_with_nothing_compiled_and_no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "deeplab_fast._densecrf", None)
    monkeypatch.setattr(doctor, "version_of", lambda *names: None)
    findings = {finding.name: finding for finding in doctor.examine()}
    core = findings["dense CRF on numpy"]
    assert core.state == doctor.LESSER
    assert "install a C++ compiler" in core.text
    assert "not installed: the numpy dense CRF and the pydensecrf drop-in work" in findings["torch"].text
    assert findings["CPU kernels"].text == "not used, without torch"


def test_doctor_names_a_torch_that_is_too_old(monkeypatch):
    monkeypatch.setattr(doctor, "version_of", lambda *names: "2.9.1" if names == ("torch",) else None)
    findings = {finding.name: finding for finding in doctor.examine()}
    assert findings["torch"].state == doctor.LESSER
    assert findings["torch"].text == "2.9.1 is too old: 2.10 or newer is needed"


def test_doctor_survives_a_failing_check(monkeypatch):
    monkeypatch.setattr(doctor, "_torch", lambda: 1 / 0)
    findings = {finding.name: finding for finding in doctor.examine()}
    assert findings["torch"].text == "could not be examined: ZeroDivisionError: division by zero"


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Where `_native` looks for the torch libraries, anew at each call: nothing is there."""
    places = {kind: tmp_path / path.name for kind, path in _native.LIBRARIES.items()}
    monkeypatch.setattr(_native, "LIBRARIES", places)
    monkeypatch.setattr(_native, "libraries", _native.libraries.__wrapped__)
    return places


def kernels() -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine() if finding.name.endswith(" kernels")}


def test_doctor_tells_that_torch_was_hidden_from_the_build(libraries: dict[str, Path]):
    found = kernels()["CPU kernels"]
    assert found.state == doctor.LESSER
    assert found.text.startswith("not built, as no torch was seen when deeplab-fast was installed")
    assert "torch operators on CPU tensors run in plain PyTorch, much slower" in found.text
    assert "pip install --no-build-isolation" in found.text


def test_doctor_tells_that_there_was_no_compiler(libraries: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "deeplab_fast._densecrf", None)
    found = kernels()["CPU kernels"]
    assert found.text.startswith("not built, as no C++ compiler was found")
    assert "install a C++ compiler" in found.text


def test_doctor_tells_that_there_was_no_nvcc(libraries: dict[str, Path]):
    libraries["cpu"].touch()
    found = kernels()["CUDA kernels"]
    assert found.text.startswith("not built, as no nvcc was found when deeplab-fast was installed")
    assert found.state == (doctor.LESSER if torch.cuda.is_available() else doctor.OFF)


def test_doctor_tells_why_a_library_does_not_load(libraries: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    """The loader's words, which torch keeps as the cause of its own; that there is no GPU explains nothing here."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for path in libraries.values():
        path.write_text("no library")
    for name, found in kernels().items():
        assert found.state == doctor.LESSER
        assert "built, but does not load" in found.text
        assert "invalid ELF header" in found.text or "file too short" in found.text
        assert f"torch operators on {name[:4].strip()} tensors run in plain PyTorch" in found.text
        assert "no GPU" not in found.text


def test_what_numbers_depend_on(monkeypatch: pytest.MonkeyPatch):
    """The line in the header of pytest and of bench."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    text = doctor.numbers_depend_on()
    isa = getattr(sys.modules.get("deeplab_fast._densecrf"), "isa", lambda: "not compiled")()
    assert text.startswith(f"deeplab-fast {deeplab_fast.__version__} ({isa}), torch {torch.__version__} (")
    assert torch.backends.cpu.get_cpu_capability() in text
    assert re.search(r"oneDNN \d+\.\d+\.\d+, limited to AVX2, \d+ threads\)", text) or "no oneDNN" in text
    monkeypatch.setattr(doctor, "version_of", lambda *names: None)
    assert doctor.numbers_depend_on() == f"deeplab-fast {deeplab_fast.__version__} ({isa})"
