"""The command line: what it writes and says, and the program as a whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command import HEIGHT, WIDTH, files, make_scene, run, succeeds
from data_sets import labels_of
from PIL import Image
from typer.testing import CliRunner

from deeplab_fast import crf, pictures
from deeplab_fast.commands import app, bench

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    return make_scene(tmp_path)


# --------------------------------------------------------------------------------------------------- it works


@pytest.mark.parametrize("scores", ["logits.npy", "logits.npz"])
def test_scores_are_refined(folder, scores):
    result = succeeds(run(folder, "crf", "photo.png", scores, "-o", "out.png", "--preset", "psa"))
    truth = np.load(folder / "truth.npy")
    assert (labels_of(folder / "out.png") == truth).mean() > 0.99
    expected = crf.refine(
        pictures.read_image(folder / "photo.png"),
        crf.probabilities_from_scores(np.load(folder / "logits.npy")),
        "psa",
    )
    np.testing.assert_array_equal(labels_of(folder / "out.png"), expected.argmax(0))
    assert "note: the scores were taken as logits" in result.stderr
    assert re.search(r"[\d,]+ of 2,240 pixels changed \(\d+\.\d %\)$", result.stdout, re.M)
    assert re.search(r"^\d+ ms: build \d+ ms, inference \d+ ms; \d+ thread", result.stdout, re.M)
    assert re.search(r"■ 1 +\d+ +\d+ +[+-]\d+", result.stdout)


def test_probabilities_are_recognised(folder):
    np.save(folder / "prob.npy", crf.probabilities_from_scores(np.load(folder / "logits.npy")))
    result = succeeds(run(folder, "crf", "photo.png", "prob.npy", "-o", "prob.png"))
    assert "the scores were taken as probabilities" in result.stderr
    succeeds(run(folder, "crf", "photo.png", "logits.npy", "-o", "logits.png"))
    np.testing.assert_array_equal(labels_of(folder / "prob.png"), labels_of(folder / "logits.png"))


def test_named_array_of_several(folder):
    succeeds(run(folder, "crf", "photo.png", "several.npz", "-o", "out.png", "--key", "scores"))
    assert (folder / "out.png").exists()


def test_smaller_scores_are_resized(folder):
    small = np.load(folder / "logits.npy").reshape(3, HEIGHT // 8, 8, WIDTH // 8, 8).mean((2, 4))
    np.save(folder / "small.npy", small[None])
    result = succeeds(run(folder, "crf", "photo.png", "small.npy", "-o", "out.png"))
    assert "resized from 7×5 to the photo's 56×40, bilinearly" in result.stderr
    assert (labels_of(folder / "out.png") == np.load(folder / "truth.npy")).mean() > 0.95


@pytest.mark.parametrize("labels", ["scribbles.png", "grey.png"])
def test_labels_are_refined(folder, labels):
    arguments = ["--gt-prob", "0.8", "--preset", "psa", "--bi-rgb-std", "20"]
    result = succeeds(run(folder, "crf", "photo.png", labels, "-o", "out.png", *arguments))
    assert (labels_of(folder / "out.png") == np.load(folder / "truth.npy")).mean() > 0.98
    assert "note: 2 classes, by the highest label 1" in result.stderr
    assert "0 of 105 pixels changed (0.0 %), 2,135 unsure ones were decided" in result.stdout


def test_unsure_labels(folder):
    labels = pictures.read_labels(folder / "scribbles.png")
    zero_unsure = np.where(labels == 255, 0, labels + 1)
    pictures.save_labels(folder / "zero.png", zero_unsure)
    np.save(folder / "zero.npy", zero_unsure)
    for name in ("zero.png", "zero.npy"):
        arguments = ["--unsure", "0", "--classes", "3", "--preset", "psa", "--bi-rgb-std", "20"]
        succeeds(run(folder, "crf", "photo.png", name, "-o", "out.png", *arguments))
        assert (labels_of(folder / "out.png") == np.load(folder / "truth.npy") + 1).mean() > 0.98


def test_masks_of_0_and_255(folder):
    mask = 255 * np.load(folder / "truth.npy")
    Image.fromarray(mask).save(folder / "mask.png")
    arguments = ["--preset", "psa", "--bi-rgb-std", "20"]
    for values in ("0:0,255:1", "0:0,128:ignore,255:1"):
        succeeds(run(folder, "crf", "photo.png", "mask.png", "-o", "out.png", "--values", values, *arguments))
        assert (labels_of(folder / "out.png") == np.load(folder / "truth.npy")).mean() > 0.99
    Image.fromarray(np.where(np.arange(WIDTH) < 3, 128, mask).astype(np.uint8)).save(folder / "trimap.png")
    words = ["crf", "photo.png", "trimap.png", "-o", "out.png", "--values", "0:0,128:ignore,255:1"]
    result = succeeds(run(folder, *words, *arguments))
    assert "120 unsure ones were decided" in result.stdout
    assert (labels_of(folder / "out.png") == np.load(folder / "truth.npy")).mean() > 0.99


@pytest.mark.parametrize("kind", ["auto", "sigmoid"])
def test_a_sigmoid_map_is_two_classes(folder, kind):
    truth = np.load(folder / "truth.npy")
    sigmoid = np.clip(truth * 0.6 + 0.2 + np.random.default_rng(0).normal(0, 0.1, truth.shape), 0, 1)
    np.save(folder / "sigmoid.npy", sigmoid[None].astype(np.float32))
    Image.fromarray((255 * sigmoid).astype(np.uint8)).save(folder / "sigmoid.jpg", quality=95)
    for name in ("sigmoid.npy", *["sigmoid.jpg"] * (kind == "sigmoid")):
        words = ["crf", "photo.png", name, "-o", "out.png", "--kind", kind, "--preset", "psa"]
        result = succeeds(run(folder, *words))
        assert (labels_of(folder / "out.png") == truth).mean() > 0.99
        assert ("taken as sigmoid: the probability of class 1 of two" in result.stderr) == (kind == "auto")


def test_classes_last(folder):
    np.save(folder / "last.npy", np.load(folder / "logits.npy").transpose(1, 2, 0))
    succeeds(run(folder, "crf", "photo.png", "last.npy", "-o", "last.png", "--layout", "hwk"))
    succeeds(run(folder, "crf", "photo.png", "logits.npy", "-o", "first.png"))
    np.testing.assert_array_equal(labels_of(folder / "last.png"), labels_of(folder / "first.png"))


@pytest.mark.parametrize("dtype", [bool, np.float32])
def test_labels_in_arrays_of_other_dtypes(folder, dtype):
    np.save(folder / "labels.npy", np.load(folder / "truth.npy")[None].astype(dtype))
    kind = ["--kind", "labels"] if dtype is np.float32 else []
    succeeds(run(folder, "crf", "photo.png", "labels.npy", "-o", "out.png", "--preset", "psa", *kind))
    assert (labels_of(folder / "out.png") == np.load(folder / "truth.npy")).mean() > 0.99


def test_every_parameter_is_used(folder, monkeypatch):
    seen, real = [], crf.build
    monkeypatch.setattr(crf, "build", lambda *given: seen.append(given[2]) or real(*given))
    options = [
        "--pos-w",
        1,
        "--pos-xy-std",
        2,
        "--bi-w",
        3,
        "--bi-xy-std",
        4,
        "--bi-rgb-std",
        5,
        "--iterations",
        6,
    ]
    succeeds(run(folder, "crf", "photo.png", "logits.npy", "-o", "out.png", *options))
    assert seen == [crf.CRFParameters(1, 2, 3, 4, 5, 6)]


def test_threads(folder):
    from deeplab_fast import pydensecrf

    try:
        result = succeeds(run(folder, "crf", "photo.png", "logits.npy", "-o", "out.png", "--threads", "1"))
        assert "; 1 thread\n" in result.stdout
    finally:
        pydensecrf.set_num_threads(None)


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["photo.png", "logits.npy", "-o", "out.png", "--overlay"], "out-overlay.png"),
        (["photo.png", "logits.npy", "--overlay", "-o", "out.png"], "out-overlay.png"),
        (["--overlay", "photo.png", "logits.npy", "-o", "out.png"], "out-overlay.png"),
        (["photo.png", "logits.npy", "-o", "out.png", "--overlay-to", "panel.jpg"], "panel.jpg"),
        (["--overlay-to", "panel.png", "photo.png", "logits.npy", "-o", "out.png"], "panel.png"),
        (["photo.png", "--overlay-to", "panel.png", "logits.npy", "-o", "out.png"], "panel.png"),
    ],
)
def test_overlay_with_and_without_path(folder, arguments, written):
    before = files(folder)
    succeeds(run(folder, "crf", *arguments))
    assert files(folder) == sorted([*before, "out.png", written])
    panel = pictures.read_image(folder / written)
    assert panel.shape[1] == 3 * WIDTH + 12
    assert panel.shape[0] > HEIGHT


def test_overlay_with_equals_sign(folder):
    words = ["crf", "photo.png", "logits.npy", "-o", "out.png", f"--overlay-to={folder / 'panel.png'}"]
    succeeds(run(folder, *words))
    assert (folder / "panel.png").exists()


def test_unicode_and_spaces_in_paths(folder):
    away = folder / "mein Örtchen [1] 写真"
    away.mkdir()
    for name in ("photo.png", "logits.npy"):
        (folder / name).rename(away / f"ä {name}")
    words = ["crf", away / "ä photo.png", away / "ä logits.npy", "-o", away / "ö [red].png", "--overlay"]
    result = CliRunner().invoke(app.app, [str(word) for word in words])
    succeeds(result)
    assert files(away) == sorted(["ä photo.png", "ä logits.npy", "ö [red].png", "ö [red]-overlay.png"])
    assert "ö [red].png" in result.stdout


def test_jpeg_photo_on_its_side(folder):
    """EXIF orientation: scores belong to the photo as it is seen."""
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(folder / "photo.png") as photo:
        photo.transpose(Image.Transpose.ROTATE_90).save(folder / "photo.jpg", exif=exif, quality=95)
    succeeds(run(folder, "crf", "photo.jpg", "logits.npy", "-o", "out.png", "--preset", "psa"))
    assert (labels_of(folder / "out.png") == np.load(folder / "truth.npy")).mean() > 0.98


def test_existing_result_is_replaced(folder):
    (folder / "out.png").write_bytes(b"old")
    succeeds(run(folder, "crf", "photo.png", "logits.npy", "-o", "out.png"))
    assert labels_of(folder / "out.png").shape == (HEIGHT, WIDTH)


# ------------------------------------------------------------------------------------- the program as a whole


def program(*arguments, **options):
    words = [sys.executable, "-m", "deeplab_fast", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, encoding="utf-8", timeout=60, cwd=ROOT, **options)


def test_program_refines_and_fails_with_exit_codes(folder):
    inputs = [folder / "photo.png", folder / "logits.npy"]
    done = program("crf", *inputs, "-o", folder / "out.png", "--overlay")
    assert done.returncode == 0, done.stderr
    assert "pixels changed" in done.stdout
    assert (folder / "out-overlay.png").exists()
    failed = program("crf", folder / "photo.png", folder / "absent.npy", "-o", folder / "new.png")
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert failed.stderr.count("\n") == 1
    assert "input not found" in failed.stderr
    wrong = program("crf", *inputs, "-o", folder / "new.png", "--pos-xy-std", "0")
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert "new.png" not in files(folder)


def test_output_that_cannot_show_every_character(folder):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    inputs = [folder / "photo.png", folder / "logits.npy"]
    done = program("crf", *inputs, "-o", folder / "out.png", env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["crf", "--help"], ["--version"]])
def test_help_answers_without_torch_and_numpy(arguments):
    code = (
        "import sys\nfrom deeplab_fast.commands.app import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'numpy', 'PIL', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert ("Usage" in done.stdout) != (arguments == ["--version"])


def test_crf_runs_without_torch(folder):
    words = ["crf", str(folder / "photo.png"), str(folder / "logits.npy"), "-o", str(folder / "out.png")]
    code = f"import sys; sys.modules['torch'] = None\nfrom deeplab_fast.commands.app import app\napp({words!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (folder / "out.png").exists()


# ------------------------------------------------------------------------------------------------------ bench


def test_bench_without_a_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "deeplab_fast" / "commands" / "bench.py"))
    result = CliRunner().invoke(app.app, ["bench"])
    assert result.exit_code == 1
    assert "source checkout" in result.stderr
    assert "make bench" in result.stderr


def test_bench_runs_the_checkout(monkeypatch):
    calls = []
    monkeypatch.setattr(bench.subprocess, "call", lambda words, cwd: calls.append((words, cwd)) or 0)
    # Tests may run against an installed package, which has no bench to run.
    (ROOT / "bench").is_dir() or pytest.skip("no source checkout")
    assert CliRunner().invoke(app.app, ["bench", "-k", "deeplab"]).exit_code == 0
    assert calls[0][0][-2:] == ["-k", "deeplab"]
    assert calls[0][1] == ROOT
