"""`deeplab-fast check`, and the options of `train` that have to do with what it finds."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
from PIL import Image
from small_system import CONFIG, call

from deeplab_fast import data, pictures, training


@pytest.fixture
def config(tmp_path):
    """Of a made-up set that is written when it is needed."""
    (tmp_path / "config.yaml").write_text(CONFIG.format(folder=tmp_path))
    return tmp_path / "config.yaml"


def test_a_good_set(config, tmp_path):
    result = call("check", "-c", config, "--json", tmp_path / "found.json", "--picture", tmp_path / "found.png")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "8 of 8 samples can be used" in result.stdout
    assert "4 of 4 samples can be used" in result.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["problems"] == []
    for split, count in (("train", 8), ("val", 4)):
        entries = found["splits"][split]
        labels = [pictures.read_labels(path) for path in (tmp_path / "set/SegmentationClass").glob(f"{split}*")]
        counts = np.bincount(np.concatenate([label.ravel() for label in labels]), minlength=256)
        assert entries["samples"] == entries["usable"] == count
        assert [one["name"] for one in entries["classes"]] == list(data.shapes.CLASSES)
        assert [one["pixels"] for one in entries["classes"]] == counts[:5].tolist()
        assert entries["ignored_pixels"] == counts[255]
        images = [pictures.read_image(path) for path in (tmp_path / "set/JPEGImages").glob(f"{split}*")]
        pixels = np.concatenate([image.reshape(-1, 3) for image in images]).astype(float)
        np.testing.assert_allclose(entries["mean_rgb"], pixels.mean(axis=0))
        np.testing.assert_allclose(entries["deviation_rgb"], pixels.std(axis=0))
        assert entries["smallest"] == entries["largest"] == [64, 48]
    assert pictures.read_image(tmp_path / "found.png").std() > 10


def test_a_set_with_problems(config, tmp_path):
    data.write_shapes(tmp_path / "set", train=8, val=4, size=(64, 48))
    images, labels = tmp_path / "set/JPEGImages", tmp_path / "set/SegmentationClass"
    (images / "train_0000.jpg").unlink()
    (images / "train_0001.jpg").write_bytes(b"")
    Image.new("L", (8, 8)).save(labels / "val_0000.png")
    Image.new("L", (64, 48), 6).save(labels / "val_0001.png")
    result = call("check", "-c", config, "--json", tmp_path / "found.json")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "deeplab-fast check: data.train: missing: 1 of 8",
        "deeplab-fast check: data.train: unreadable: 1 of 8",
        "deeplab-fast check: data.val: sizes differ: 1 of 4",
        "deeplab-fast check: data.val: values out of range: 1 of 4",
    ]
    assert "val_0000.png: are 8 x 8 pixels, should be 64 x 48" in result.stdout
    assert "values that are no classes: 6 (3,072 pixels)" in result.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["problems"] == [line.removeprefix("deeplab-fast check: ") for line in result.stderr.splitlines()]
    assert [problem["kind"] for problem in found["splits"]["train"]["problems"]] == ["missing", "unreadable"]
    assert found["splits"]["val"]["values_outside"] == {"6": 3072}


def test_masks_of_0_and_255(config, tmp_path):
    data.write_shapes(tmp_path / "set", train=8, val=4, size=(64, 48))
    for path in (tmp_path / "set/SegmentationClass").iterdir():
        labels = pictures.read_labels(path)
        pictures.save_labels(path, np.where((labels > 0) & (labels < 255), 255, 0))
    folders = f"images: {tmp_path}/set/JPEGImages, labels: {tmp_path}/set/SegmentationClass"
    entries = f"kind: folder, {folders}, train: '', val: '', classes: [ground, thing]"
    result = call("check", "-c", config, "--set", f"data={{{entries}}}")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "note: data.train and data.val are the same, the whole folder",
        "deeplab-fast check: data.train: no label holds thing",
    ]
    result = call("check", "-c", config, "--set", f"data={{{entries}, label_values: {{0: 0, 255: 1}}}}")
    assert result.exit_code == 0, result.stderr
    assert "12 of 12 samples" in result.stdout


def test_samples_in_both_splits_are_noted(config, tmp_path):
    result = call("check", "-c", config, "--set", "data.val=trainval")
    assert result.exit_code == 0
    assert result.stderr == "note: data.train and data.val have 8 samples in common, such as train_0000\n"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (r"picture: is 'x.txt', should be a name that ends in .png", ["--picture", "x.txt"]),
        (r"folder of the output not found", ["--json", "none/x.json"]),
        (r"list of the split 'extra' not found", ["--set", "data.val=extra"]),
        (r"data.label_values: is 3", ["--set", "data.label_values=3"]),
    ],
)
def test_what_cannot_be_done(config, said, words):
    result = call("check", "-c", config, *words)
    assert result.exit_code in (1, 2)
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


# --- train ---------------------------------------------------------------------------------------------------------


def test_train_with_a_missing_class(config, tmp_path):
    data.write_shapes(tmp_path / "set", train=8, val=4, size=(64, 48))
    for path in (tmp_path / "set/SegmentationClass").glob("train*"):
        labels = pictures.read_labels(path)
        pictures.save_labels(path, np.where(labels == 3, 0, labels))
    result = call("train", "-c", config, "--quiet")
    assert result.exit_code == 1
    assert f"data.train: no label holds {data.shapes.CLASSES[3]}" in result.stderr
    assert call("train", "-c", config, "--quiet", "--allow-missing-classes").exit_code == 0


@pytest.mark.parametrize("words", [["--resume", "auto"], ["--resume=auto"]])
def test_resume_auto(config, tmp_path, words):
    for _ in range(2):
        result = call("train", *words, "-c", config, "--quiet")
        assert result.exit_code == 0, result.output
    assert (tmp_path / "run/last.pth").exists()
    assert call("train", "-c", config, "--quiet", "--resume").exit_code == 0
    assert call("train", "-c", config, "--quiet", "--resume", "must").exit_code == 2
    assert "--resume-auto" not in call("train", "--help").stdout


def test_sigterm_exits_with_143(config, tmp_path, monkeypatch):
    step = training.trainer.Trainer._step

    def terminated(self, batches):
        if self.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batches)

    monkeypatch.setattr(training.trainer.Trainer, "_step", terminated)
    result = call("train", "-c", config, "--quiet")
    assert result.exit_code == 143
    assert result.stderr == (
        "deeplab-fast train: ended by SIGTERM after step 2; last.pth is saved, --resume goes on from it\n"
    )
