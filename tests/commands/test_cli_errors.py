"""A failing command line: exit code 1 or 2, one line that says why, and no file left behind."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
from command import HEIGHT, WIDTH, fails, files, make_scene, run
from PIL import Image
from typer.testing import CliRunner

from deeplab_fast import crf, pictures
from deeplab_fast.commands import app


@pytest.fixture
def folder(tmp_path):
    return make_scene(tmp_path)


# ------------------------------------------------------------------------------------------- it fails: exit 1


def test_missing_files(folder):
    fails(folder, 1, r"image not found: .*absent\.png", "absent.png", "logits.npy")
    fails(folder, 1, r"input not found: .*absent\.npy", "photo.png", "absent.npy")
    fails(folder, 1, r"label picture not found: .*absent\.png", "photo.png", "absent.png")


def test_unreadable_files(folder):
    (folder / "text.png").write_text("no picture")
    (folder / "text.npy").write_text("no array")
    (folder / "text.npz").write_text("no arrays")
    (folder / "empty.npy").write_bytes(b"")
    np.save(folder / "objects.npy", np.array([{}, 1], object), allow_pickle=True)
    (folder / "half.npy").write_bytes((folder / "logits.npy").read_bytes()[:5000])
    fails(folder, 1, r"image .*text\.png is no readable picture", "text.png", "logits.npy")
    fails(folder, 1, r"label picture .*text\.png is no readable picture", "photo.png", "text.png")
    for name in ("text.npy", "text.npz", "empty.npy", "objects.npy", "half.npy"):
        fails(folder, 1, rf"input .*{name} is no readable numpy file", "photo.png", name)


def test_npz_needs_a_choice(folder):
    fails(
        folder,
        2,
        r"--key: is None, should be one of scores, other, the arrays of .*several\.npz",
        "photo.png",
        "several.npz",
    )
    fails(
        folder, 2, "--key: is 'logits', should be one of scores, other", "photo.png", "several.npz", "--key", "logits"
    )
    np.savez(folder / "none.npz")
    fails(folder, 1, "holds no array", "photo.png", "none.npz")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (3, HEIGHT + 1, WIDTH),
            r"scores: shape is 3×41×56 \(K×H×W\), should be one that fits the photo's 40×56 .* not be larger",
        ),
        ((HEIGHT, WIDTH, 3), "classes seem to be the last axis"),
        ((3, WIDTH, HEIGHT), "height and width seem to be swapped"),
        ((3, WIDTH // 4, HEIGHT // 4), "height and width seem to be swapped"),
        (
            (HEIGHT, WIDTH),
            r"values are -\d\.\d+ to \d\.\d+, should be probabilities, there being one channel: --kind logits",
        ),
        ((2, 3, HEIGHT, WIDTH), r"shape is \(2, 3, 40, 56\)"),
        ((0, HEIGHT, WIDTH), "not empty"),
        ((257, 5, 7), "classes: is 257, should be 1 to 256"),
    ],
)
def test_scores_of_the_wrong_shape(folder, shape, message):
    np.save(folder / "bad.npy", np.random.default_rng(0).normal(size=shape))
    fails(folder, 1, message, "photo.png", "bad.npy")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite(folder, value):
    scores = np.load(folder / "logits.npy")
    scores[1, 2, 3] = value
    np.save(folder / "bad.npy", scores)
    fails(folder, 1, "scores: values are NaN or Inf in 1 of 6720 places, should be finite", "photo.png", "bad.npy")


def test_scores_of_the_wrong_kind(folder):
    np.save(folder / "bad.npy", np.zeros((3, HEIGHT, WIDTH), np.int32))
    fails(folder, 1, "scores: dtype is int32, should be floating", "photo.png", "bad.npy")
    fails(folder, 1, r"should be in 0\.\.1", "photo.png", "logits.npy", "--kind", "probabilities")
    fails(folder, 1, "scores: number of classes is 3, should be 4", "photo.png", "logits.npy", "--classes", "4")


def test_labels_that_do_not_fit(folder):
    fails(folder, 1, "label picture .*: mode is RGB, should be palette or grey", "photo.png", "photo.png")
    fails(folder, 1, r"labels: values are 1, should be in 0\.\.0", "photo.png", "scribbles.png", "--classes", "1")
    pictures.save_labels(folder / "small.png", np.zeros((20, 30), int))
    fails(folder, 1, "labels: size is 30×20, should be 56×40", "photo.png", "small.png")
    pictures.save_labels(folder / "unsure.png", np.full((HEIGHT, WIDTH), 255))
    fails(folder, 1, "every pixel is unsure", "photo.png", "unsure.png")


VALUES = "--values says what each value means, as in --values 0:0,255:1"


@pytest.mark.parametrize("options", [[], ["--classes", "2"], ["--classes", "21"]])
def test_labels_with_one_class_left(folder, options):
    truth = np.load(folder / "truth.npy")
    Image.fromarray(255 * truth).save(folder / "mask.png")
    message = (
        rf"mask\.png: labels: values are 0, 255, should be those of at least two classes, only 0 is left, the rest "
        rf"being unsure \(255\); {VALUES}"
    )
    fails(folder, 1, message, "photo.png", "mask.png", *options)
    Image.fromarray(0 * truth).save(folder / "zeros.png")
    fails(folder, 1, f"only 0 is left; {VALUES}", "photo.png", "zeros.png", *options)


def test_labels_that_are_hardly_classes(folder):
    truth = np.load(folder / "truth.npy")
    Image.fromarray(255 * truth).save(folder / "mask.jpg", quality=75)
    fails(
        folder, 1, r"mask\.jpg is a JPEG, which changes values near edges: give labels as PNG", "photo.png", "mask.jpg"
    )
    fails(
        folder,
        1,
        r"mask\.jpg: labels: values are 1, .* should be named in values",
        *("photo.png", "mask.jpg", "--values", "0:0,255:1"),
    )
    (folder / "mask.jpg").rename(folder / "mask.png")
    fails(folder, 1, r"mask\.png is a JPEG", "photo.png", "mask.png")
    smooth = np.random.default_rng(0).integers(0, 255, truth.shape).astype(np.uint8)
    Image.fromarray(smooth).save(folder / "smooth.png")
    fails(
        folder,
        1,
        r"number of different values is 2\d\d, as of a picture that was",
        "photo.png",
        "smooth.png",
    )
    trimap = np.where(np.arange(WIDTH) < 3, 128, 255 * truth).astype(np.uint8)
    Image.fromarray(trimap).save(folder / "trimap.png")
    fails(folder, 1, rf"labels: values are 0, 128, 255, as a mask's in grey, .*{VALUES}", "photo.png", "trimap.png")
    fails(
        folder,
        1,
        r"labels: shape is \(3, 40, 56\), should be \(H, W\)",
        *("photo.png", "logits.npy", "--kind", "labels"),
    )
    np.save(folder / "half.npy", truth / 2)
    fails(
        folder,
        1,
        "labels: values are fractions, NaN or Inf, should be whole",
        "photo.png",
        "half.npy",
        "--kind",
        "labels",
    )


def test_destinations_that_are_no_files(folder):
    (folder / "device.png").symlink_to("/dev/null")
    fails(
        folder,
        2,
        "output: is .*, should be a regular file",
        "photo.png",
        "logits.npy",
        "--overlay-to",
        "device.png",
    )
    (folder / "link.png").symlink_to("photo.png")
    fails(folder, 2, "is an input and would be overwritten", "photo.png", "logits.npy", "--overlay-to", "link.png")


def test_more_pixels_than_can_be(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    fails(folder, 1, "has too many pixels", "photo.png", "logits.npy")


def test_output_folder_must_exist(folder):
    before = files(folder)
    result = run(folder, "crf", "photo.png", "logits.npy", "-o", "absent/out.png")
    assert result.exit_code == 1
    assert re.fullmatch(r"deeplab-fast crf: error: folder of the output not found: .*absent\n", result.stderr)
    assert files(folder) == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_output_folder_must_be_writable(folder):
    locked = folder / "locked"
    locked.mkdir(mode=0o500)
    result = run(folder, "crf", "photo.png", "logits.npy", "-o", "locked/out.png")
    assert result.exit_code == 1
    assert "folder of the output is not writable" in result.stderr
    assert files(locked) == []


def test_unwritable_folder_for_everyone(folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    fails(folder, 1, "folder of the output is not writable", "photo.png", "logits.npy")


@pytest.mark.parametrize("overlay", [[], ["--overlay"]])
def test_full_disk_while_writing(folder, monkeypatch, overlay):
    real, seen = Image.Image.save, []

    def half(self, file, *args, **kwargs):
        seen.append(file)
        if len(seen) == 1 + len(overlay):
            file.write(b"half a picture")
            raise OSError(28, "No space left on device")
        real(self, file, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", half)
    fails(folder, 1, "No space left on device", "photo.png", "logits.npy", *overlay)


@pytest.mark.parametrize("which", [1, 2])
def test_failing_rename(folder, monkeypatch, which):
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) == which:
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    fails(folder, 1, "Input/output error", "photo.png", "logits.npy", "--overlay")


def test_old_result_survives_a_failure(folder, monkeypatch):
    (folder / "out.png").write_bytes(b"old")
    monkeypatch.setattr(crf, "build", lambda *_: (_ for _ in ()).throw(MemoryError()))
    fails(folder, 1, "error: not enough memory$", "photo.png", "logits.npy")
    assert (folder / "out.png").read_bytes() == b"old"


def test_unexpected_errors_are_one_line_and_debug_shows_more(folder, monkeypatch):
    monkeypatch.setattr(crf, "build", lambda *_: 1 / 0)
    message = r"error: division by zero \(ZeroDivisionError; --debug shows where\)"
    fails(folder, 1, message, "photo.png", "logits.npy")
    result = run(folder, "crf", "photo.png", "logits.npy", "-o", "out.png", "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "out.png" not in files(folder)


# ------------------------------------------------------------------------------------- wrong use: exit code 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bi-xy-std", "-1"], r"--bi-xy-std: is -1\.0, should be a positive number"),
        (["--pos-xy-std", "0"], r"--pos-xy-std: is 0\.0, should be a positive number"),
        (["--bi-rgb-std", "nan"], "--bi-rgb-std: is nan, should be a positive number"),
        (["--bi-rgb-std", "40,60"], r"--bi-rgb-std: is \(40\.0, 60\.0\), should be one number, or 3"),
        (["--bi-rgb-std", "40,x"], "--bi-rgb-std: is '40,x', should be a number, or one for each channel"),
        (["--pos-w", "inf"], "--pos-w: is inf, should be a finite number"),
        (["--iterations", "-1"], "--iterations: is -1, should be at least 0"),
        (["--preset", "voc"], "--preset: is 'voc', should be deeplab, irn, psa, afa, toco"),
        (["--kind", "odds"], "--kind: is 'odds', should be auto, logits, probabilities, sigmoid or labels"),
        (["--gt-prob", "1"], r"--gt-prob: is 1\.0, should be strictly between 0 and 1"),
        (["--gt-prob", "0.5"], "--gt-prob, --unsure and --values belong to labels"),
        (["--unsure", "0"], "--gt-prob, --unsure and --values belong to labels"),
        (["--values", "0:0,1:1"], "--gt-prob, --unsure and --values belong to labels"),
        (["--values", "0-0"], "--values: is '0-0', should be like 0:0,255:1"),
        (["--layout", "kwh"], "--layout: is 'kwh', should be auto, khw or hwk"),
        (["--classes", "0"], "--classes: is 0, should be 1 to 256"),
        (["--threads", "0"], "--threads: is 0, should be at least 1"),
        (["--overlay-to", "out.npy"], "--overlay-to: is 'out.npy', should be a name that ends in"),
        (["--overlay-to", "photo.png"], "is an input and would be overwritten"),
        (["--overlay-to", "out.png"], "--overlay-to: is .*, should be another file than --out"),
    ],
)
def test_wrong_options(folder, options, message):
    fails(folder, 2, message, "photo.png", "logits.npy", *options)


def test_wrong_options_for_labels(folder):
    fails(folder, 2, "--kind logits belongs to scores", "photo.png", "scribbles.png", "--kind", "logits")
    fails(folder, 2, "--layout belongs to scores", "photo.png", "scribbles.png", "--layout", "khw")
    fails(folder, 2, "--key belongs to a .npz file", "photo.png", "scribbles.png", "--key", "a")


@pytest.mark.parametrize("out", ["out.jpg", "out", "photo.png"])
def test_wrong_destination(folder, out):
    before = (folder / "photo.png").read_bytes()
    words = ["crf", str(folder / "photo.png"), str(folder / "logits.npy"), "-o", str(folder / out)]
    result = CliRunner().invoke(app.app, words)
    assert result.exit_code == 2
    assert "should be a name that ends in .png" in result.stderr or "would be overwritten" in result.stderr
    assert (folder / "photo.png").read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["crf"],
        ["crf", "photo.png", "logits.npy"],
        ["crf", "photo.png", "-o", "out.png"],
        ["crf", "photo.png", "logits.npy", "scribbles.png", "-o", "out.png"],
        ["crf", "photo.png", "logits.npy", "-o", "out.png", "--iterations", "many"],
        ["crf", "photo.png", "logits.npy", "-o", "out.png", "--no-such-option"],
        ["no-such-command"],
    ],
)
def test_arguments_that_cannot_be_parsed(folder, arguments):
    before = files(folder)
    assert run(folder, *arguments).exit_code == 2
    assert files(folder) == before
