"""`deeplab-fast doctor` on whole and on poor installations."""

from __future__ import annotations

import sys

from command import run, succeeds

from deeplab_fast import doctor


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


def test_doctor_tells_why_kernels_are_missing(monkeypatch):
    from deeplab_fast import _native

    monkeypatch.setattr(_native, "status", lambda: {"numpy": "loaded", "cpu": "not built", "cuda": "not built"})
    monkeypatch.setattr(doctor, "version_of", lambda *names: "2.13.0" if names == ("torch",) else None)
    findings = {finding.name: finding for finding in doctor.examine()}
    assert findings["CPU kernels"].state == doctor.LESSER
    assert findings["CPU kernels"].text.startswith("not built: torch operators run in plain PyTorch")
    assert "no nvcc" in findings["CUDA kernels"].text
