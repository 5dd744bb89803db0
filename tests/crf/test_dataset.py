"""Whole data sets: what is written, what is gone on from, what fails alone, and the scores before and after."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from data_sets import CLASSES, labels_of, make_set, names, refine, scene, set_of_six, written
from PIL import Image

from deeplab_fast import crf, pictures
from deeplab_fast.scores import resize_scores

folder = set_of_six


# ---------------------------------------------------------------------------------------------------- what is written


def test_each_image_gets_what_it_would_alone(folder):
    result = refine(folder, save_probabilities=True, overlay=True)
    assert (result.images, result.skipped, result.failed) == (6, 0, {})
    for number, name in enumerate(names(6)):
        photo, _, logits = scene(number)
        expected = crf.refine(photo, crf.probabilities_from_scores(resize_scores(logits, photo.shape[:2])))
        np.testing.assert_array_equal(labels_of(folder / f"out/{name}.png"), expected.argmax(0))
        with np.load(folder / f"out/{name}.npz") as saved:
            np.testing.assert_array_equal(saved["probabilities"], expected.astype(np.float16))
        assert Image.open(folder / f"out/{name}-overlay.jpg").size[0] > 3 * 64
        before = resize_scores(logits, photo.shape[:2]).argmax(0)
        assert result.changed[name] == pytest.approx((before != expected.argmax(0)).mean())
    assert not [name for name in written(folder / "out") if name.endswith(".partial") or "failed" in name]


@pytest.mark.parametrize("jobs", [1, 2])
def test_worker_processes_write_the_same(folder, jobs):
    refine(folder, "here", save_probabilities=True)
    seen = []
    result = refine(
        folder, "there", jobs=jobs, save_probabilities=True, progress=lambda done, total: seen.append((done, total))
    )
    assert written(folder / "here") == written(folder / "there")
    assert seen == [(number, 6) for number in range(7)]
    assert (result.images, result.jobs, result.failed) == (6, jobs, {})
    assert result.peak_memory > 10e6


def test_what_is_there_is_left_out(folder):
    refine(folder)
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("0*.png")}
    (folder / "out/0001.png").unlink()
    notes = []
    result = refine(folder, note=notes.append)
    assert (result.images, result.skipped, len(result.changed)) == (1, 5, 1)
    assert "5 of 6 images are there already" in notes
    after = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("0*.png")}
    assert {path.stem for path in before if before[path] != after[path]} == {"0001"}
    assert refine(folder, skip_existing=False).images == 6
    # One that has not all that is wanted is made again.
    assert refine(folder, overlay=True).images == 6


def test_results_of_other_parameters_are_no_results(folder):
    refine(folder)
    there = written(folder / "out")
    message = r"out: folder is .*out, with results of pos_xy_std 1.*--no-skip-existing.*pos_xy_std 3"
    with pytest.raises(ValueError, match=message):
        refine(folder, params="psa")
    with pytest.raises(ValueError, match="kind auto"):
        refine(folder, kind="logits")
    assert written(folder / "out") == there
    refine(folder, params="psa", skip_existing=False)
    assert refine(folder, params="psa").skipped == 6


def test_results_of_other_parameters_are_gone_before_any_is_made_anew(folder, monkeypatch):
    """Or a run that goes on after an interruption would mix both."""
    refine(folder)
    monkeypatch.setattr(crf.dataset.running.work, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        refine(folder, params="psa", skip_existing=False, shard=(1, 2))
    monkeypatch.undo()
    assert set(written(folder / "out")) == {"settings.json"}
    refine(folder, params="psa")
    refine(folder, "expected", params="psa")
    assert written(folder / "out") == written(folder / "expected")
    # Those of the same parameters stay until they are replaced.
    monkeypatch.setattr(crf.dataset.running.work, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        refine(folder, params="psa", skip_existing=False)
    assert written(folder / "out") == written(folder / "expected")


def interrupted(*_, **__):
    raise KeyboardInterrupt


# ----------------------------------------------------------------------------------------------------------- failures

BROKEN = {
    "no-scores": "no scores found for",
    "no-image": "there are scores, .*no-image.npy, but no image",
    "empty-image": "image .*empty-image.png is no readable picture",
    "half-image": "image .*half-image.png is no readable picture",
    "empty-scores": "input .*empty-scores.npy is no readable numpy file",
    "half-scores": "input .*half-scores.npy is no readable numpy file",
    "nan-scores": "scores: values are NaN or Inf in 1 of",
    "swapped-scores": "height and width seem to be swapped",
    "other-scores": "K×H×W",
    "code-scores": "it asks for posix.system",
    "labels-of-another-size": "labels: size is 3×5, should be 64×48",
    "colour-labels": "mode is RGB, should be palette or grey",
    "truth-of-another-size": "labels: size is 8×6, should be 64×48, as the image",
}


class Runs:
    def __reduce__(self):
        return os.system, ("touch mark",)


def break_set(root):
    """Add one pair broken in every way that there is."""
    photo, truth, logits = scene(0)
    for name in BROKEN:
        pictures.save_image(root / f"images/{name}.png", photo)
        np.save(root / f"scores/{name}.npy", logits)
    (root / "scores/no-scores.npy").unlink()
    (root / "images/no-image.png").unlink()
    (root / "images/empty-image.png").write_bytes(b"")
    os.truncate(root / "images/half-image.png", 500)
    (root / "scores/empty-scores.npy").write_bytes(b"")
    os.truncate(root / "scores/half-scores.npy", 200)
    logits[0, 0, 0] = np.nan
    np.save(root / "scores/nan-scores.npy", logits)
    np.save(root / "scores/swapped-scores.npy", scene(0)[2].transpose(0, 2, 1))
    np.save(root / "scores/other-scores.npy", scene(0)[2][:, :3])
    np.save(root / "scores/code-scores.npy", {"keys": [0], "high_res": Runs()}, allow_pickle=True)
    for name, picture in (("labels-of-another-size", truth[:5, :3]), ("colour-labels", photo)):
        (root / f"scores/{name}.npy").unlink()
        Image.fromarray(picture).save(root / f"scores/{name}.png")
    pictures.save_labels(root / "labels/truth-of-another-size.png", truth[:6, :8])


@pytest.mark.parametrize("jobs", [0, 2])
def test_one_broken_image_of_every_kind_is_listed_and_the_others_done(folder, jobs):
    break_set(folder)
    result = refine(folder, jobs=jobs, labels=folder / "labels")
    assert result.images == 6
    lines = dict(line.split("\t") for line in (folder / "out/failed.txt").read_text().splitlines())
    assert lines == result.failed
    assert set(lines) == set(BROKEN)
    for name, message in BROKEN.items():
        with pytest.raises(ValueError, match=message):
            raise ValueError(lines[name])
    assert {path.split(".")[0] for path in written(folder / "out")} == {*names(6), "failed", "settings"}
    # Once more, they fail again; mended, there is no list any more.
    assert refine(folder, jobs=jobs, labels=folder / "labels").failed == lines
    for name in BROKEN:
        for kind in ("images", "scores", "labels"):
            for path in (folder / kind).glob(f"{name}.*"):
                path.unlink()
    assert refine(folder, jobs=jobs, labels=folder / "labels").failed == {}
    assert not (folder / "out/failed.txt").exists()


def test_missing_scores_can_be_left_out(folder):
    (folder / "scores/0001.npy").unlink()
    (folder / "images/0003.png").unlink()
    notes = []
    result = refine(folder, skip_missing=True, note=notes.append)
    assert (result.images, result.missing, result.failed) == (4, 2, {})
    assert "2 of 6 images or scores have no counterpart: no scores found for" in notes[0]


def test_nothing_is_written_where_something_is_read(folder):
    for out in ("images", "scores", "images/more"):
        with pytest.raises(ValueError, match="is read from"):
            refine(folder, out)
    (folder / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        refine(folder, "file")
    assert not (folder / "images/settings.json").exists()


def test_results_among_the_images_are_none_of_them(tmp_path):
    make_set(tmp_path, 3)
    for _ in range(2):
        result = crf.refine_dataset(tmp_path / "images", tmp_path / "scores", tmp_path / "images/out", jobs=0)
        assert result.images + result.skipped == 3


def test_a_full_disk_ends_the_run(folder, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures, "labels_writer", lambda *_: full)
    with pytest.raises(OSError, match=r"0000: .*No space left on device"):
        refine(folder)
    assert set(written(folder / "out")) == {"settings.json"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"jobs": -1}, ValueError, "jobs: is -1, should be at least 0"),
        ({"jobs": 1.5}, TypeError, "jobs: is 1.5"),
        ({"threads": 0}, ValueError, "threads: is 0"),
        ({"memory": 0}, ValueError, "memory: is 0"),
        ({"shard": "4/3"}, ValueError, "shard: is '4/3', should be one of 1/N to N/N"),
        ({"shard": "0/3"}, ValueError, "shard: is '0/3'"),
        ({"shard": "third"}, ValueError, "shard: is 'third', should be like 3/16"),
        ({"params": "best"}, ValueError, "preset: is 'best'"),
        ({"kind": "energy"}, ValueError, "kind: is 'energy'"),
        ({"keys": "all"}, ValueError, "keys: is 'all', should be classes or foreground"),
        ({"labels": "nowhere"}, FileNotFoundError, "labels: folder not found: nowhere"),
    ],
)
def test_wrong_arguments(folder, options, error, message):
    with pytest.raises(error, match=message):
        refine(folder, **options)
    assert not (folder / "out").exists()


# ------------------------------------------------------------------------------------------------------------- labels


def test_labels_at_a_networks_size(tmp_path):
    photo, truth, _ = scene(1)
    for kind in ("images", "scores"):
        (tmp_path / kind).mkdir()
    for name in ("small", "large", "one"):
        pictures.save_image(tmp_path / f"images/{name}.png", photo)
    pictures.save_labels(tmp_path / "scores/small.png", truth[::4, ::4])
    pictures.save_labels(tmp_path / "scores/large.png", truth[::4, ::4].repeat(4, 0).repeat(4, 1))
    pictures.save_labels(tmp_path / "scores/one.png", 0 * truth)
    assert refine(tmp_path, classes=4).failed == {}
    np.testing.assert_array_equal(labels_of(tmp_path / "out/small.png"), labels_of(tmp_path / "out/large.png"))
    assert not labels_of(tmp_path / "out/one.png").any()


# --------------------------------------------------------------------------------------------------------- evaluation


def test_scores_before_and_after(folder):
    result = refine(folder, labels=folder / "labels")
    before, after = np.zeros((2, CLASSES, CLASSES), int)
    for number, name in enumerate(names(6)):
        _, truth, logits = scene(number)
        labels = resize_scores(logits, truth.shape).argmax(0)
        np.add.at(before, (truth, labels), 1)
        np.add.at(after, (truth, labels_of(folder / f"out/{name}.png")), 1)
    np.testing.assert_array_equal(result.counts_before[:, :CLASSES], before)
    np.testing.assert_array_equal(result.counts_after[:, :CLASSES], after)
    iou = np.diag(after) / (after.sum(0) + after.sum(1) - np.diag(after))
    assert result.after.mean_iou == pytest.approx(iou.mean())
    assert result.before.mean_iou < result.after.mean_iou
    # Images that are there count as well, so that the figures do not depend on interruptions.
    (folder / "out/0001.png").unlink()
    again = refine(folder, labels=folder / "labels", jobs=1)
    assert (again.images, again.skipped) == (1, 5)
    np.testing.assert_array_equal(again.counts_before, result.counts_before)
    np.testing.assert_array_equal(again.counts_after, result.counts_after)
    assert again.changed == result.changed


def test_values_of_true_labels(folder):
    """As of a set whose void is a class number, or that numbers from 10."""
    result = refine(folder, labels=folder / "labels", classes=3)
    assert len(result.failed) == 6
    assert "labels/0000.png: labels: values are 3, should be in 0..2, or 255" in result.failed["0000"]
    plain = refine(folder, "plain", labels=folder / "labels")
    for name in names(6):
        labels = pictures.read_labels(folder / f"labels/{name}.png")
        pictures.save_labels(folder / f"labels/{name}.png", labels + 10)
    values = "10:0,11:1,12:2,13:ignore"
    result = refine(folder, "valued", labels=folder / "labels", values=values, classes=CLASSES)
    assert result.failed == {}
    np.testing.assert_array_equal(result.counts_after[:3], plain.counts_after[:3])
    assert not result.counts_after[3].any()


def test_results_are_not_written_through_links_to_inputs(folder):
    (folder / "out").mkdir()
    (folder / "out/0001.png").symlink_to(folder / "images/0001.png")
    with pytest.raises(ValueError, match=r"0001\.png is an input and would be overwritten"):
        refine(folder, skip_existing=False)


def test_images_without_true_labels_do_not_count(folder):
    for name in names(6)[1:]:
        (folder / f"labels/{name}.png").unlink()
    result = refine(folder, labels=folder / "labels", classes=CLASSES)
    assert result.counts_after.sum() == 48 * 64
    assert refine(folder, "more", labels=None).counts_after is None


def test_settings_are_noted(folder):
    refine(folder, params="psa", classes=CLASSES)
    settings = json.loads((folder / "out/settings.json").read_text())
    assert (settings["bi_xy_std"], settings["classes"], settings["kind"]) == (80, CLASSES, "auto")
