"""The examples run as they are, and do what they say."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pages
import pytest
from data_sets import make_set, names, written
from places import ROOT

from deeplab_fast import crf, pictures

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


# --- Scripts that need nothing but the package -----------------------------------------------------------------------


def example(name, *words, monkeypatch, capsys):
    """Run a script in this process; what it printed."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


@pytest.fixture
def says(monkeypatch, capsys):
    return functools.partial(example, monkeypatch=monkeypatch, capsys=capsys)


def figures(text, pattern):
    return [float(number) for number in re.findall(pattern, text)]


def test_a_photo(tmp_path, says):
    pages.fill(tmp_path)
    said = says(
        "refine_photo.py", *(tmp_path / name for name in ("photo.jpg", "scores.npy", "out.png")), "--preset=psa"
    )
    assert "of the pixels have another label" in said
    Q = crf.refine(pictures.read_image(tmp_path / "photo.jpg"), np.load(tmp_path / "probabilities.npy"), "psa")
    refined = pictures.read_labels(tmp_path / "out.png")
    assert refined.shape == Q.shape[1:]
    assert len(np.unique(refined)) > 1


def test_a_folder(folder, says):
    words = [folder / "images", folder / "scores", folder / "out", "--labels", folder / "labels"]
    said = says("refine_folder.py", *words)
    assert "8 refined, 0 were there" in said
    before, after = figures(said, r"([\d.]+) %")
    assert before != after
    assert written(folder / "out")["0000.png"] == written(folder / "whole")["0000.png"]
    assert "0 refined, 8 were there" in says("refine_folder.py", *words)


def test_crf_as_rnn_learns(says):
    pytest.importorskip("torch")
    scores, start, learned = figures(says("crf_as_rnn.py", "--steps", 20), r"mean IoU ([\d.]+) %")
    assert scores < start < learned


def test_the_loss_makes_more_of_clicks(says):
    pytest.importorskip("torch")
    alone, with_loss = figures(says("weak_supervision.py", "--steps", 60), r"mean IoU ([\d.]+) %")
    assert alone + 5 < with_loss


def test_a_patched_model_computes_the_same(says):
    pytest.importorskip("torch")
    said = says("patch_your_model.py")
    assert "Replaced (3)" in said
    assert figures(said, r"largest difference: (\S+),")[0] < 1e-5
    losses = figures(said, r"loss ([\d.]+)")
    assert losses[-1] < losses[0]


def test_fine_tuning_on_a_folder(tmp_path, says):
    pytest.importorskip("torch")
    from deeplab_fast.data import write_shapes
    from deeplab_fast.data.shapes import CLASSES

    made = write_shapes(tmp_path / "set", train=10, val=2, size=(64, 48))
    words = [made / "JPEGImages", made / "SegmentationClass", tmp_path / "run", f"--classes={','.join(CLASSES)}"]
    said = says("fine_tune_folder.py", *words, "--iterations", 4, "--crop", 65)
    assert len(figures(said, r"([\d.]+) %")) == 2
    assert len(list((tmp_path / "run/predicted").glob("*-overlay.jpg"))) == 3


def test_the_notebook():
    """Its cells one after the other, as a notebook's program runs them, without one."""
    matplotlib = pytest.importorskip("matplotlib")
    pytest.importorskip("skimage")
    matplotlib.use("Agg")  # without a screen
    notebook = json.loads((EXAMPLES / "refine_a_photo.ipynb").read_text())
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(code) >= 5
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    namespace = {}
    for number, text in enumerate(code):
        exec(compile(text, f"cell {number}", "exec"), namespace)
    import matplotlib.pyplot as plt

    assert len(plt.get_fignums()) == 2
    plt.close("all")


def test_every_example_is_tested():
    tested = Path(__file__).read_text()
    names = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    assert not [
        name for name in names if name not in tested and re.sub(r"(dask|ray)(?=\.py)", "{library}", name) not in tested
    ]
