"""The made-up dataset: its layout, its labels, and that it is written whole and only where it may be."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from deeplab_fast import data, pictures
from deeplab_fast.data import shapes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data.write_shapes(tmp_path_factory.mktemp("sets") / "shapes", train=24, val=6)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_layout(root):
    train, val, both = (data.Shapes(root, split) for split in ("train", "val", "trainval"))
    assert (len(train), len(val)) == (24, 6)
    assert both.names == train.names + val.names
    assert train.classes == shapes.CLASSES == ("background", "disc", "square", "triangle", "ring")
    assert len(list((root / "JPEGImages").iterdir())) == len(list((root / "SegmentationClass").iterdir())) == 30
    with Image.open(root / "SegmentationClass" / f"{train.names[0]}.png") as picture:
        assert picture.mode == "P"
        assert picture.getpalette() == pictures.voc_palette().ravel().tolist()
    assert sorted(os.listdir(root)) == ["ImageSets", "JPEGImages", "SegmentationClass", "shapes.json"]
    assert os.listdir(root.parent) == ["shapes"]  # nothing is left beside it


def test_labels(root):
    """Every class is there, and 255 exactly where objects end: on one side of every change of label."""
    counts = np.zeros(256, np.int64)
    for sample in data.Shapes(root, "trainval"):
        assert sample.image.shape == (120, 160, 3)
        counts += np.bincount(sample.label.ravel(), minlength=256)
        known = sample.label != 255
        for axis in (0, 1):
            first, second = np.delete(sample.label, -1, axis), np.delete(sample.label, 0, axis)
            both = np.delete(known, -1, axis) & np.delete(known, 0, axis)
            assert (first[both] == second[both]).all()
        assert len(np.unique(sample.label[known])) >= 2
    share = counts / counts.sum()
    assert counts[5:255].sum() == 0
    assert 0.5 < share[0] < 0.85
    assert (share[1:5] > 0.02).all()
    assert 0.01 < share[255] < 0.06


def test_colour_does_not_tell_the_class(root):
    """The mean colours of one class are spread so widely that the means of classes lie close together in them."""
    colours: dict[int, list[np.ndarray]] = {number: [] for number in range(1, 5)}
    for sample in data.Shapes(root, "train"):
        for number in colours:
            if (sample.label == number).any():
                colours[number].append(sample.image[sample.label == number].mean(axis=0))
    spread = [np.linalg.norm(np.std(colours[number], axis=0)) for number in colours]
    centres = [np.mean(colours[number], axis=0) for number in colours]
    furthest = max(np.linalg.norm(one - other) for one in centres for other in centres)
    assert furthest < min(spread)


def test_same_seed_same_files(root, tmp_path):
    again = data.write_shapes(tmp_path / "again", train=24, val=6)
    assert contents(again) == contents(root)
    longer = contents(data.write_shapes(tmp_path / "longer", train=2, val=7))
    assert all(longer[name] == content for name, content in contents(root).items() if "val_" in name)
    other = contents(data.write_shapes(tmp_path / "other", train=1, val=1, seed=1))
    assert other["JPEGImages/train_0000.jpg"] != contents(root)["JPEGImages/train_0000.jpg"]


@pytest.mark.parametrize("size", [(32, 32), (200, 40), (33, 95)])
def test_sizes(tmp_path, size):
    data.write_shapes(tmp_path / "set", train=3, val=1, size=size)
    for sample in data.Shapes(tmp_path / "set", "trainval"):
        assert sample.image.shape == (size[1], size[0], 3)
        assert len(np.unique(sample.label)) > 1


def test_replaces_only_its_own(tmp_path):
    target = tmp_path / "set"
    target.mkdir()
    data.write_shapes(target, train=2, val=1)  # an empty folder may be there
    data.write_shapes(target, train=1, val=1)
    assert data.Shapes(target, "trainval").names == ["train_0000", "val_0000"]
    assert len(list((target / "JPEGImages").iterdir())) == 2
    (target / "runs").mkdir()
    with pytest.raises(FileExistsError, match=r"something else than a set of shapes in it \(runs\)"):
        data.write_shapes(target, train=1, val=1)
    photos = tmp_path / "photos"
    (photos / "JPEGImages").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"\(no shapes\.json\), should be a new or empty folder"):
        data.write_shapes(photos)
    (tmp_path / "file").write_text("text")
    with pytest.raises(FileExistsError, match="is a file"):
        data.write_shapes(tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="parent folder"):
        data.write_shapes(tmp_path / "no" / "set")
    assert sorted(os.listdir(tmp_path)) == ["file", "photos", "set"]


def test_nothing_stays_of_a_set_that_fails(tmp_path, monkeypatch):
    data.write_shapes(tmp_path / "set", train=1, val=1)
    before = contents(tmp_path)
    written = []

    def fail_at_third(path, label):
        written.append(path)
        if len(written) == 3:
            raise OSError("disk full")
        pictures.save_labels(path, label)

    monkeypatch.setattr(shapes, "save_labels", fail_at_third)
    for name in ("set", "other"):
        written.clear()
        with pytest.raises(OSError, match="disk full"):
            data.write_shapes(tmp_path / name, train=3, val=1)
    assert contents(tmp_path) == before
    assert os.listdir(tmp_path) == ["set"]


def test_the_old_set_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    data.write_shapes(tmp_path / "set", train=1, val=1)
    before = contents(tmp_path)
    rename = Path.rename

    def fail_for_the_new_one(path, target):
        if path.name.endswith(".partial"):
            raise OSError("no renaming")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(OSError, match="no renaming"):
        data.write_shapes(tmp_path / "set", train=3, val=1)
    assert contents(tmp_path) == before
    assert os.listdir(tmp_path) == ["set"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"train": 0}, ValueError, "train: is 0, should be at least 1"),
        ({"val": 1.5}, TypeError, "val: is 1.5, should be an integer"),
        ({"size": (160, 20)}, ValueError, "size: is 20, should be at least 32"),
        ({"size": (160,)}, ValueError, r"size: is \(160,\), should be \(width, height\)"),
        ({"seed": -1}, ValueError, "seed: is -1, should be at least 0"),
    ],
)
def test_bad_arguments(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        data.write_shapes(tmp_path / "set", **arguments)
    assert os.listdir(tmp_path) == []
