"""The examples run as they are, and do what they say."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
from data_sets import make_set, names, written
from places import ROOT

from deeplab_fast import crf

EXAMPLES = ROOT / "examples"


@pytest.fixture
def folder(tmp_path):
    make_set(tmp_path, 8)
    crf.refine_dataset(tmp_path / "images", tmp_path / "scores", tmp_path / "whole", jobs=0)
    return tmp_path


def run(folder, words, **environment):
    done = subprocess.run(
        [*map(str, words), *(str(folder / name) for name in ("images", "scores", "out"))],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("library", ["dask", "ray"])
def test_parts_in_a_cluster_library_are_the_whole(folder, library):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    words = [sys.executable, EXAMPLES / f"refine_{library}.py", "--shards", 3]
    (folder / "scores/0001.npy").write_bytes(b"")
    said = run(folder, words)
    assert "7 refined, 0 were there" in said
    assert "failed: 0001: input " in said
    (folder / "scores/0001.npy").write_bytes((folder / "scores/0000.npy").read_bytes())
    assert "1 refined, 7 were there" in run(folder, words)
    found = written(folder / "out")
    assert set(found) == set(written(folder / "whole"))
    assert {name for name, content in found.items() if content != written(folder / "whole")[name]} == {"0001.png"}


def test_the_tasks_of_a_slurm_array_are_the_whole(folder):
    """With programs in the place of Slurm's and ours."""
    programs = {"srun": 'exec "$@"', "deeplab-fast": f'exec "{sys.executable}" -m deeplab_fast "$@"'}
    (folder / "bin").mkdir()
    for name, line in programs.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / "bin" / name).chmod(0o755)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    parts = [crf.dataset.Shard(number, 16) for number in range(1, 17)]
    busy = [part.number - 1 for part in parts if any(part.has(name) for name in names(8))]
    for task in busy:  # the others have nothing to do
        said = run(folder, ["bash", EXAMPLES / "refine_slurm.sh"], PATH=path, SLURM_ARRAY_TASK_ID=str(task))
        assert f"note: shard {task + 1}/16" in said
    assert written(folder / "out") == written(folder / "whole")
