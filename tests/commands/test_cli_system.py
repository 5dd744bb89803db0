"""The commands train, eval, crf-eval, predict and convert: what they write and say, and how they fail."""

from __future__ import annotations

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch
from command import files, succeeds
from data_sets import labels_of
from small_system import call, train_in

pytest.importorskip("pydantic", reason="pydantic is not installed")
pytest.importorskip("yaml", reason="pyyaml is not installed")

from deeplab_fast import crf, data, models, pictures, training
from deeplab_fast.models.deeplab import DeepLabV2
from deeplab_fast.nn import MSC


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a configuration, the made-up set, and a run of `train`; tests add nothing to it."""
    folder = tmp_path_factory.mktemp("system")
    result = succeeds(train_in(folder))
    assert result.stderr == ""
    assert re.match(r"mean IoU \d+\.\d\d % at the end, \d+\.\d\d % at best\n", result.stdout)
    return folder


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """What `eval` writes, without and with CRF."""
    folder = tmp_path_factory.mktemp("evaluated")
    words = ["eval", "-c", trained / "config.yaml", "-o"]
    succeeds(call(*words, folder / "plain", "--save-png", folder / "png", "--save-logits", folder / "logits"))
    result = succeeds(call(*words, folder / "both", "--crf", "--save-png", folder / "png-crf"))
    assert result.stderr == ""
    assert "frequency weighted IoU" in result.stdout
    assert re.search(r"^4 images in \d+\.\d s, \d+\.\d\d a second$", result.stdout, re.M)
    return folder


def state_of(path):
    return torch.load(path, weights_only=True)["model"]


# ------------------------------------------------------------------------------------------------------ train


def test_train_writes_checkpoints_and_a_log(trained):
    assert files(trained / "run") == ["best.pth", "last.pth", "log.csv"]
    with open(trained / "run" / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["loss"]] == ["1", "2", "3", "4"]
    assert [row["step"] for row in rows if row["mean_iou"]] == ["4"]


def test_an_interrupted_training_goes_on(trained, tmp_path, monkeypatch):
    words = ["train", "-c", trained / "config.yaml", "--set", f"output={tmp_path / 'run'}", "--quiet"]
    step = training.trainer.Trainer._step

    def interrupted(self, batches):
        if self.step == 3:
            raise OSError("the power is off")
        return step(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(training.trainer.Trainer, "_step", interrupted)
        failed = call(*words)
    assert (failed.exit_code, failed.stderr) == (1, "deeplab-fast train: error: the power is off\n")
    assert files(tmp_path / "run") == ["last.pth", "log.csv"]
    succeeds(call(*words, "--resume"))
    ours, expected = state_of(tmp_path / "run" / "last.pth"), state_of(trained / "run" / "last.pth")
    assert list(ours) == list(expected)
    assert all(torch.equal(ours[key], expected[key]) for key in expected)


# ------------------------------------------------------------------------------------------- eval and crf-eval


@pytest.mark.parametrize(
    ("report", "saved"), [("plain/eval", "png"), ("both/eval", "png"), ("both/eval-crf", "png-crf")]
)
def test_scores_are_those_of_the_saved_labels(trained, evaluated, report, saved):
    counts = np.zeros((5, 5), np.int64)
    for path in sorted((trained / "set" / "SegmentationClass").glob("val_*.png")):
        truth = pictures.read_labels(path)
        known = truth != 255
        np.add.at(counts, (truth[known], labels_of(evaluated / saved / path.name)[known]), 1)
    found = json.loads((evaluated / f"{report}.json").read_text())
    right = counts.diagonal()
    iou = right / (counts.sum(0) + counts.sum(1) - right)
    assert found["confusion"] == counts.tolist()
    assert found["pixel_accuracy"] == pytest.approx(right.sum() / counts.sum(), abs=1e-9)
    assert found["mean_iou"] == pytest.approx(iou[counts.sum(1) > 0].mean(), abs=1e-9)
    assert [one["name"] for one in found["classes"]] == list(data.shapes.CLASSES)
    assert (found["images"], found["problems"]) == (4, [])
    assert pictures.read_image(evaluated / f"{report}.png").shape[2] == 3


def test_eval_with_flip_and_without_background(trained, evaluated, tmp_path):
    words = ["eval", "-c", trained / "config.yaml", "-o", tmp_path, "--save-png", tmp_path / "png"]
    result = succeeds(call(*words, "--flip", "--set", "evaluation.count_background=false"))
    assert "mean IoU without background" in result.stdout
    found = json.loads((tmp_path / "eval.json").read_text())
    plain = json.loads((evaluated / "plain" / "eval.json").read_text())
    assert found["confusion"] != plain["confusion"]  # flipped
    iou = [one["iou"] for one in found["classes"] if one["iou"] is not None]
    assert found["mean_iou"] == pytest.approx(np.mean(iou[1:]), abs=1e-9)
    assert found["not_in_means"] == ["background"]
    assert "not_in_means" not in plain

    photos = sorted((trained / "set" / "JPEGImages").glob("val_*"))
    succeeds(call("predict", *photos, "-w", trained / "run" / "best.pth", "-o", tmp_path / "labelled", "--flip"))
    for path in photos:
        name = f"{path.stem}.png"
        np.testing.assert_array_equal(labels_of(tmp_path / "labelled" / name), labels_of(tmp_path / "png" / name))


def test_crf_eval_searches_on_the_saved_scores(trained, evaluated, tmp_path):
    words = ["crf-eval", "-c", trained / "config.yaml", "--logits", evaluated / "logits", "-o"]
    result = succeeds(call(*words, tmp_path / "new" / "all.csv", "--pos-w", "0,3", "--iterations", "2,10"))
    assert result.stderr == ""
    with open(tmp_path / "new" / "all.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["iterations"] for row in rows[:1]] == [""]
    tried = [(float(row["pos_w"]), int(row["iterations"])) for row in rows[1:]]
    assert sorted(tried) == [(0, 2), (0, 10), (3, 2), (3, 10)]
    assert {tuple(float(row[name]) for name in ("bi_w", "bi_xy_std", "bi_rgb_std")) for row in rows[1:]} == {
        (4, 20, 13)
    }
    scores = [float(row["mean_iou"]) for row in rows[1:]]
    assert scores == sorted(scores, reverse=True)
    configured = rows[1 + tried.index((3, 10))]
    for row, name in ((rows[0], "eval"), (configured, "eval-crf")):  # from scores of 16 bits
        expected = json.loads((evaluated / "both" / f"{name}.json").read_text())["pixel_accuracy"]
        assert float(row["pixel_accuracy"]) == pytest.approx(expected, abs=2e-3)
    succeeds(call(*words, tmp_path / "some.csv", "--bi-w", "1,2,3,4", "--random", 2, "--limit", 1))
    assert len((tmp_path / "some.csv").read_text().splitlines()) == 4


def test_crf_eval_starts_from_presets_and_says_how_to_use_the_best(trained, evaluated, tmp_path):
    words = ["crf-eval", "-c", trained / "config.yaml", "--logits", evaluated / "logits", "-o", tmp_path / "t.csv"]
    result = succeeds(call(*words, "--preset", "all", "--iterations", 1, "--limit", 2))
    with open(tmp_path / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1 + len(crf.PRESETS) - 1  # stego's numbers are deeplab's
    assert {row["iterations"] for row in rows[1:]} == {"1"}
    assert [row["normalization"] for row in rows].count("none") == 1
    best = next(name for name in crf.PRESETS if float(rows[1]["bi_xy_std"]) == crf.PRESETS[name].bi_xy_std)
    better = float(rows[1]["mean_iou"]) > float(rows[0]["mean_iou"])
    wanted = f"--preset {best} --iterations 1" if better else "none of them is better than no CRF"
    assert wanted in result.stdout
    succeeds(call(*words, "--preset", "irn,psa", "--limit", 1))
    assert sorted(line.split(",")[0] for line in (tmp_path / "t.csv").read_text().splitlines()) == [
        "", "irn", "preset", "psa",
    ]  # fmt: skip
    failed = call(*words, "--preset", "irn,best")
    assert failed.exit_code == 2
    assert "--preset: is 'irn,best', should be all, or one or more of deeplab," in failed.stderr


def test_crf_eval_counts_missing_scores(trained, evaluated, tmp_path):
    shutil.copytree(evaluated / "logits", tmp_path / "logits")
    (tmp_path / "logits" / "val_0002.npy").unlink()
    words = ["crf-eval", "-c", trained / "config.yaml", "--logits", tmp_path / "logits", "-o", tmp_path / "table.csv"]
    failed = call(*words, "--iterations", 1)
    assert failed.exit_code == 1
    assert re.search(r"1 of 4 images have no scores in .*, the first val_0002; --skip-missing goes on", failed.stderr)
    assert not (tmp_path / "table.csv").exists()
    result = succeeds(call(*words, "--iterations", 1, "--skip-missing"))
    assert re.fullmatch(r"note: 1 of 4 images have no scores in .*, they were left out\n", result.stderr)


def test_eval_goes_on_without_broken_labels(trained, tmp_path):
    shutil.copytree(trained / "set", tmp_path / "set")
    (tmp_path / "set" / "SegmentationClass" / "val_0001.png").write_bytes(b"broken")
    words = ["eval", "-c", trained / "config.yaml", "--set", f"data.root={tmp_path / 'set'}", "-o", tmp_path / "out"]
    result = succeeds(call(*words, "--set", "data.on_error=skip"))
    assert re.search(r"^left out: val_0001: label picture .*val_0001\.png is no readable picture", result.stderr, re.M)
    assert json.loads((tmp_path / "out" / "eval.json").read_text())["images"] == 3
    failed = call(*words)
    assert failed.exit_code == 1
    assert "val_0001.png is no readable picture" in failed.stderr


def test_eval_saves_labels_of_a_set_that_has_none(trained, tmp_path):
    """VOC's test split, whose labels only the server knows."""
    for made in ("JPEGImages", "ImageSets/Segmentation"):
        (tmp_path / "voc" / made).mkdir(parents=True)
    shutil.copy(trained / "set" / "JPEGImages" / "val_0000.jpg", tmp_path / "voc" / "JPEGImages" / "a.jpg")
    (tmp_path / "voc" / "ImageSets" / "Segmentation" / "test.txt").write_text("a\n")
    torch.save(models.deeplabv2_small(21, msc=False).state_dict(), tmp_path / "voc.pth")
    voc = f"data={{kind: voc12, root: {tmp_path / 'voc'}}}"
    words = ["eval", "-c", trained / "config.yaml", "--set", voc, "--split", "test", "-w", tmp_path / "voc.pth"]
    result = succeeds(call(*words, "--save-png", tmp_path / "png", "-o", tmp_path / "out"))
    assert labels_of(tmp_path / "png" / "a.png").shape == (48, 64)
    assert result.stderr == ""
    assert json.loads((tmp_path / "out" / "eval.json").read_text())["mean_iou"] is None


# ---------------------------------------------------------------------------------------------------- predict


@pytest.mark.parametrize("crf", [False, True])
def test_predict_needs_only_the_checkpoint(trained, evaluated, tmp_path, crf):
    """Labels are those of `eval`; CRF parameters come from the configuration inside the checkpoint."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        shutil.copy(trained / "set" / "JPEGImages" / f"val_000{number}.jpg", photos)
    fourth = trained / "set" / "JPEGImages" / "val_0003.jpg"
    options = ["-w", trained / "run" / "best.pth", "-o", tmp_path / "out", "--overlay", "--batch-size", 2]
    result = succeeds(call("predict", photos, fourth, *options, *["--crf"] * crf))
    assert result.stderr == ""
    assert re.match(r"4 of 4 photos labelled in \d+\.\d s, written to ", result.stdout)
    names = [f"val_000{number}" for number in range(4)]
    assert files(tmp_path / "out") == sorted(f"{name}{end}.png" for name in names for end in ("", "-overlay"))
    for name in names:
        expected = labels_of(evaluated / ("png-crf" if crf else "png") / f"{name}.png")
        # A batch of two may round otherwise than one image.
        assert (labels_of(tmp_path / "out" / f"{name}.png") == expected).mean() > 0.999
        assert pictures.read_image(tmp_path / "out" / f"{name}-overlay.png").shape[1] == 3 * 64 + 12


@pytest.mark.parametrize("command", ["eval", "predict"])
def test_saved_scores_go_through_the_crf_command(trained, tmp_path, command):
    """As --crf does in one go."""
    photos = trained / "set" / "JPEGImages"
    words = ["-w", trained / "run" / "best.pth", "-o", tmp_path / "out", "--save-scores", tmp_path / "scores"]
    some = sorted(photos.glob("val_*.jpg"))
    if command == "eval":
        result = succeeds(call("eval", "-c", trained / "config.yaml", *words))
        assert f"{tmp_path / 'scores'}" in result.stdout
    else:
        result = succeeds(call("predict", *some, *words))
        assert f"scores written to {tmp_path / 'scores'}" in result.stdout
    assert files(tmp_path / "scores") == [f"{path.stem}.npz" for path in some]
    options = ["--jobs", 1, "--skip-missing", "--preset", "deeplab"]
    succeeds(call("crf", photos, tmp_path / "scores", "-o", tmp_path / "refined", *options))
    words = ["-w", trained / "run" / "best.pth", "-c", trained / "config.yaml", "-o", tmp_path / "crf", "--crf"]
    succeeds(call("predict", *some, *words))
    for path in some:
        refined, expected = (labels_of(tmp_path / folder / f"{path.stem}.png") for folder in ("refined", "crf"))
        assert (refined == expected).mean() > 0.995  # but for the scores' rounding to float16


def test_predict_skips_what_cannot_be_read(trained, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    photo = trained / "set" / "JPEGImages" / "val_0000.jpg"
    words = ["predict", tmp_path / "broken.jpg", photo, "-w", trained / "run" / "best.pth", "-o", tmp_path / "out"]
    result = succeeds(call(*words, "--skip-errors"))
    path = tmp_path / "broken.jpg"
    assert result.stderr == f"left out: {path}: image {path} is no readable picture\n"
    assert result.stdout.startswith("1 of 2 photos labelled")
    assert files(tmp_path / "out") == ["val_0000.png"]


def test_predict_by_a_configuration_whose_data_are_elsewhere(trained, evaluated, tmp_path):
    """Weights, among others, and a configuration are enough; its palette is used."""
    state = state_of(trained / "run" / "best.pth")
    torch.save({"net": {key: 2 * one for key, one in state.items()}, "ema": state}, tmp_path / "plain.pth")
    classes = "classes: [a, b, c, d, e], palette: [[9, 8, 7], [1, 2, 3]]"
    text = (trained / "config.yaml").read_text()
    away = f"data: {{kind: folder, images: away, labels: away, {classes}}}\nmodel:"
    (tmp_path / "config.yaml").write_text(re.sub(r"data:.*model:", away, text, flags=re.S))
    photo = trained / "set" / "JPEGImages" / "val_0000.jpg"
    options = ["-c", tmp_path / "config.yaml", "-w", tmp_path / "plain.pth", "--key", "ema", "-o", tmp_path / "out"]
    succeeds(call("predict", photo, *options))
    found = tmp_path / "out" / "val_0000.png"
    np.testing.assert_array_equal(labels_of(found), labels_of(evaluated / "png" / "val_0000.png"))
    torch.save({"old": models.deeplabv2_small(7, msc=False).state_dict(), "ema": state}, tmp_path / "plain.pth")
    (tmp_path / "out" / "val_0000.png").rename(found.with_name("first.png"))
    result = call("predict", photo, *[word for word in options if word not in ("--key", "ema")])
    assert result.stderr == "note: weights under 'ema' taken; those under 'old' fit less\n"
    assert found.read_bytes() == found.with_name("first.png").read_bytes()
    palette = pictures.voc_palette()
    palette[:2] = [[9, 8, 7], [1, 2, 3]]
    np.testing.assert_array_equal(pictures.read_image(found), palette[labels_of(found)])


# ---------------------------------------------------------------------------------------------------- convert


def test_convert_an_older_spelling(tmp_path):
    source = models.deeplabv2_small(3).state_dict()
    old = {"scale." + key.removeprefix("base.").replace("aspp.c", "aspp.stages.c"): one for key, one in source.items()}
    torch.save({"state_dict": old, "teacher": models.deeplabv2_small(7).state_dict()}, tmp_path / "old.pth")
    words = ["convert", tmp_path / "old.pth", "-o", tmp_path / "new.pth", "--model", "deeplabv2_small"]
    result = call(*words)
    assert re.search(r"under 'state_dict' and 'teacher'; say which with --key$", result.stderr.strip())
    result = succeeds(call(*words, "--key", "state_dict"))
    assert result.stdout.splitlines()[:2] == ["`scale.` read as `base.`", "`aspp.stages.c` read as `aspp.c`"]
    assert result.stdout.splitlines()[2] == (
        f"{len(source)} tensors for deeplabv2_small, written: {tmp_path / 'new.pth'}"
    )
    written = torch.load(tmp_path / "new.pth", weights_only=True)
    assert list(written) == list(source)
    assert all(torch.equal(written[key], source[key]) for key in source)


def test_convert_pretrained_weights_that_have_no_classifier(tmp_path):
    source = models.deeplabv2_small(3, msc=False).state_dict()
    pretrained = {key: one for key, one in source.items() if not key.startswith("aspp.")}
    torch.save({**pretrained, "fc.weight": torch.zeros(91, 512)}, tmp_path / "coco.pth")
    words = ["convert", tmp_path / "coco.pth", "-o", tmp_path / "new.pth", "--model", "deeplabv2_small"]
    result = call(*words)
    assert result.exit_code == 2
    assert "--without-classifier" in result.stderr
    succeeds(call(*words, "--without-classifier"))
    written = torch.load(tmp_path / "new.pth", weights_only=True)
    assert list(written) == [f"base.{key}" for key in pretrained]
    fresh = models.deeplabv2_small(5)
    assert models.load_weights(fresh, tmp_path / "new.pth", classifier="fresh").loaded == len(pretrained)


def test_convert_a_caffemodel_and_predict_with_it(trained, tmp_path, monkeypatch):
    """ResNet-101 in full depth, but of one channel in place of 64; neither command is told the classes."""
    pytest.importorskip("google.protobuf", reason="protobuf is not installed")
    from caffe_files import add, units

    from deeplab_fast.models import caffe

    maker = lambda num_classes, msc=True: MSC(DeepLabV2(num_classes, width=1))  # noqa: E731
    monkeypatch.setitem(models._MAKERS, "deeplabv2_resnet101", maker)
    source = maker(3).state_dict()
    net = caffe.messages()["NetParameter"]()
    for name, ours in units():
        weight, gamma, beta, mean, variance = (
            source[f"base.{ours}.{key}"].numpy()
            for key in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
        )
        add(net, "conv1" if name == "_conv1" else f"res{name}", "Convolution", weight)
        add(net, f"bn{name}", "BatchNorm", 4 * mean, 4 * variance, [4])
        add(net, f"scale{name}", "Scale", gamma, beta)
    for branch in range(4):
        blobs = [source[f"base.aspp.c{branch}.{key}"].numpy() for key in ("weight", "bias")]
        add(net, f"fc1_voc12_c{branch}", "Convolution", *blobs)
    (tmp_path / "net.caffemodel").write_bytes(net.SerializeToString())
    succeeds(call("convert", tmp_path / "net.caffemodel", "-o", tmp_path / "net.pth"))
    written = torch.load(tmp_path / "net.pth", weights_only=True)
    assert list(written) == list(source)
    assert all(torch.equal(written[key], source[key]) for key in source)
    photo = trained / "set" / "JPEGImages" / "val_0000.jpg"
    succeeds(call("predict", photo, "-w", tmp_path / "net.pth", "-o", tmp_path / "out", "--device", "cpu"))
    assert labels_of(tmp_path / "out" / "val_0000.png").max() < 3
