"""What `train` finds in the data before its first step."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from small_trainings import RECIPE, small_config, write_set

from deeplab_fast import pictures
from deeplab_fast.config import parse_config
from deeplab_fast.training import first_look, read_log, train


def mask_config(folder, mask=None, classes=("ground", "thing"), **entries):
    """A training on photos in which a bright square is 255 in the mask, the rest 0."""
    for name in ("photos", "masks"):
        (folder / name).mkdir()
    square = np.zeros((48, 64), np.uint8)
    square[10:30, 20:50] = 255
    for number in range(4):
        shown = np.roll(square, 3 * number, axis=1)
        pictures.save_image(folder / "photos" / f"{number}.png", np.repeat(shown[..., None], 3, 2) // 2 + 60)
        Image.fromarray(shown if mask is None else mask).save(folder / "masks" / f"{number}.png")
    paths = {"images": str(folder / "photos"), "labels": str(folder / "masks"), "train": "", "val": ""}
    return parse_config(
        {
            "output": str(folder / "out"),
            "device": "cpu",
            "data": {"kind": "folder", "classes": list(classes), **paths, **entries},
            "model": {"name": "deeplabv2_small", "options": {"msc": False}},
            "training": RECIPE | {"evaluate_every": 4},
        },
        "test",
    )


def test_masks_of_0_and_255_are_refused(tmp_path):
    """They ended at a mean IoU of 100 %: 255 is ignored, and nothing but class 0 remains."""
    config = mask_config(tmp_path)
    said = (
        r"^data\.train: its labels hold nothing but ground, class 0, and ignored pixels \(4 were read\), .*"
        r"data\.label_values: \{0: 0, 255: 1\}\. --allow-missing-classes \(data\.allow_missing_classes\) goes on"
    )
    with pytest.raises(ValueError, match=said):
        train(config, quiet=True)
    assert not (tmp_path / "out").exists()


def test_masks_of_0_and_255_are_two_classes(tmp_path):
    config = mask_config(tmp_path, label_values={0: 0, 255: 1}, ignore_index=None)
    result = train(config, quiet=True)
    assert result.mean_iou < 0.99
    assert all(float(row["loss"]) > 0 for row in read_log(tmp_path / "out" / "log.csv") if row["loss"])


def test_no_value_is_ignored(tmp_path):
    with pytest.raises(ValueError, match=r"\d\.png: have 255 .*, should be 0 to 1"):
        train(mask_config(tmp_path, ignore_index=None), quiet=True)


def test_a_class_that_no_label_holds(tmp_path, capfd):
    config = mask_config(tmp_path, classes=("ground", "cat", "dog", "thing"), label_values={0: 0, 255: 3})
    with pytest.raises(ValueError, match=r"^data\.train: no label holds cat, dog, which a network can therefore not"):
        train(config, quiet=True)
    assert not (tmp_path / "out").exists()
    allowed = config.model_copy(update={"data": config.data.model_copy(update={"allow_missing_classes": True})})
    assert train(allowed).step == 4
    assert "no label holds cat, dog" in " ".join(capfd.readouterr().err.split())


def test_a_rare_class_of_a_large_set_is_no_reason_to_stop(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(first_look, "MOST_TRAINING", 3)
    train(mask_config(tmp_path, classes=("ground", "cat", "thing"), label_values={0: 0, 255: 2}))
    assert "data.train: cat: in none of 3 labels drawn from 4" in " ".join(capfd.readouterr().err.split())


def test_nothing_labelled(tmp_path):
    with pytest.raises(ValueError, match=r"nothing but ground, class 0, and ignored pixels"):
        train(mask_config(tmp_path, mask=np.full((48, 64), 255, np.uint8)), quiet=True)


def test_a_resumed_training_is_not_looked_at_again(tmp_path, monkeypatch):
    config = mask_config(tmp_path, label_values={0: 0, 255: 1})
    train(config, quiet=True, stop_after=1)
    monkeypatch.setattr("deeplab_fast.training.preparing.look_at_training", None)
    assert train(config, quiet=True, resume=True).step == 4


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (lambda root: (root / "JPEGImages/val_0001.jpg").unlink(), FileNotFoundError, r"^image not found: .*line 2 of"),
        (
            lambda root: (root / "JPEGImages/val_0002.jpg").write_text("none"),
            ValueError,
            r"val_0002\.jpg is no readable picture$",
        ),
        (
            lambda root: Image.new("L", (8, 8)).save(root / "SegmentationClass/val_0003.png"),
            ValueError,
            r"val_0003\.png: are 8 x 8 pixels, should be 64 x 48",
        ),
        (
            lambda root: Image.new("L", (64, 48), 9).save(root / "SegmentationClass/val_0000.png"),
            ValueError,
            r"val_0000\.png: have 9 \(3072 pixels\), should be 0 to 4",
        ),
        (
            lambda root: [path.unlink() for path in (root / "JPEGImages").glob("val*")],
            FileNotFoundError,
            r"val_0000\.jpg \(line 1 of .*\); and 3 more: deeplab-fast check lists them$",
        ),
        (
            lambda root: [Image.new("L", (64, 48)).save(path) for path in (root / "SegmentationClass").glob("val*")],
            ValueError,
            r"^data\.val: its labels hold nothing but background, class 0, \(4 were read\)",
        ),
    ],
    ids=["missing", "unreadable", "size", "value", "all missing", "only class 0"],
)
def test_the_validation_set_is_looked_at_first(tmp_path, spoil, error, said):
    root = write_set(tmp_path)
    spoil(root)
    with pytest.raises(error, match=said):
        train(small_config(root, tmp_path / "out", evaluate_every=4), quiet=True)
    assert not (tmp_path / "out").exists()
    assert train(small_config(root, tmp_path / "out"), quiet=True).step == 4  # it is not needed


def test_a_broken_training_label_is_found_while_looking(tmp_path):
    root = write_set(tmp_path)
    for path in (root / "SegmentationClass").glob("train*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"^labels not found: .*; and 7 more"):
        train(small_config(root, tmp_path / "out"), quiet=True)
