"""bench/gpu.sh with a Python that only pretends: every stage runs, whatever became of others, and is written down."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu.sh"
STAGES = ["machine", "build", "quick", "first", "crf_tests", "tests", "crf_times", "times", "model"]
# Does what each stage is to find, and fails where $FAIL, a pattern of the shell, says so.
PRETENDS = """#!/bin/sh
echo "$*" >>"$CALLS"
case "$*" in $FAIL) echo "FAILED tests/test_x.py::test_y - it was told to"; exit 3 ;; esac
case "$*" in
  *get_device_capability*) echo pretended-h100 90 ;;
  *get_device_name*) echo "Pretended H100 torch 2.11" ;;
  *"pip install"*) while [ $# -gt 0 ]; do [ "$1" = --target ] && mkdir -p "$2/deeplab_fast"; shift; done ;;
  *"-m bench --gpu"*) while [ $# -gt 0 ]; do
      [ "$1" = --out ] && folder=$2; [ "$1" = --save ] && echo '{}' >"$folder/$2.json"; shift; done ;;
esac
exit 0
"""

pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("timeout", "tee", "tail")), reason="its tools are not there"
)


def run(
    folder: Path, *arguments: str, fail: str = "nothing", seconds: int = 500
) -> tuple[subprocess.CompletedProcess, dict[str, str], list[str]]:
    """The process, what the summary says of each stage, and the calls of Python."""
    python = folder / "python"
    python.write_text(PRETENDS)
    python.chmod(0o755)
    environment = os.environ | {
        "PYTHON": str(python), "OUT": str(folder / "out"), "CALLS": str(folder / "calls"), "FAIL": fail,
        "SECONDS_LEFT": str(seconds), "CUDA_HOME": str(folder / "nowhere"),
    }  # fmt: skip
    done = subprocess.run(["sh", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True)
    summaries = list((folder / "out").glob("gpu_*_summary.txt")) if (folder / "out").exists() else []
    lines = summaries[0].read_text().splitlines() if summaries else []
    said = dict(line.split(": ", 1) for line in lines if re.match(r"[\w ]+: ", line))
    return done, said, (folder / "calls").read_text().splitlines()


def test_all_stages_in_order(tmp_path: Path):
    done, said, calls = run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(stage for stage in said if stage in STAGES) == sorted(STAGES)
    assert all(said[stage].startswith("passed") for stage in STAGES), said
    assert said["memcheck and racecheck"] == "skipped, there is no compute-sanitizer"
    marks = (
        "test_gpu_quick",
        "--maxfail",
        "test_dense_crf_gpu.py -v",
        "test_kernels_gpu",
        "-m bench ",
        "bench.gpu_model",
    )
    order = [next((mark for mark in marks if mark in call), "") for call in calls]
    assert [mark for mark in dict.fromkeys(order) if mark] == list(marks)
    assert calls[-1].count("--results") == 2  # the model gets what was measured
    assert "first verdict" in said
    names = {path.name.split("pretended-h100")[1] for path in (tmp_path / "out").iterdir()}
    assert {"_summary.txt", "_quick.txt", "_first.txt", "_crf.json", ".json"} <= names


@pytest.mark.parametrize("stage", ["*test_gpu_quick*", "*pip?install*", "*--op?dense_crf*", "*get_device_name()?if*"])
def test_a_stage_that_fails_stops_no_other(stage: str, tmp_path: Path):
    done, said, _ = run(tmp_path, fail=stage)
    assert done.returncode == 1
    failed = {name for name in STAGES if said[name].startswith("failed")}
    expected = {"*test_gpu_quick*": {"quick"}, "*pip?install*": {"build"}}
    assert failed == expected.get(stage, {"crf_times" if "op" in stage else "machine"})
    assert "FAILED tests/test_x.py::test_y" in done.stdout


def test_what_has_no_time_left_is_skipped(tmp_path: Path):
    done, said, _ = run(tmp_path, seconds=0)
    assert all(said[stage] == "skipped, no time is left" for stage in STAGES), said
    assert done.returncode == 0


def test_without_a_gpu(tmp_path: Path):
    done, _, _ = run(tmp_path, fail="*get_device_capability*")
    assert done.returncode == 2
    assert "--rehearse needs none" in done.stderr


def test_rehearsal_collects_and_dry_runs(tmp_path: Path):
    done, said, calls = run(tmp_path, "--rehearse")
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(said[stage].startswith("passed") for stage in STAGES), said
    assert said["memcheck and racecheck"] == "skipped, there is no GPU"
    assert all("--collect-only" in call for call in calls if "-m pytest" in call)
    assert all("--dry-run" in call for call in calls if "-m bench --gpu" in call)
