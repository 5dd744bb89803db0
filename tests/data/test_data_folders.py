"""Folders of one's own as people have them: labels in colour, suffixes, a folder for each split, lists of pairs."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from deeplab_fast import data
from deeplab_fast.commands.check import _datasets
from deeplab_fast.config import build, parse_config

CLASSES = ["sky", "road", "car"]
COLORS = [(70, 130, 180), (128, 64, 128), (0, 0, 142)]
RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (6, 8, 3), np.uint8)
LABEL = RNG.integers(0, 3, (6, 8)).astype(np.uint8)
VOID = np.where(RNG.random((6, 8)) < 0.3, 255, LABEL).astype(np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def colored(label: np.ndarray, void: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
    """Labels (H, W) as a picture in colour."""
    palette = np.array([*COLORS, *[void] * 253], np.uint8)
    return palette[label]


def config(**entries):
    return parse_config({"data": {"kind": "folder", "classes": CLASSES, **entries}}, "test").data


def check_sample(sample, name: str, label: np.ndarray):
    assert sample.name == name
    np.testing.assert_array_equal(sample.image, PHOTO)
    np.testing.assert_array_equal(sample.label, label)
    assert sample.label.dtype == np.int64


# --- Labels in colour ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_labels_in_colour(tmp_path, mode):
    save(tmp_path / "photos" / "a.png", PHOTO)
    (tmp_path / "masks").mkdir()
    Image.fromarray(colored(VOID)).convert(mode, palette=Image.Palette.ADAPTIVE).save(tmp_path / "masks" / "a.png")
    meanings = {color: k for k, color in enumerate(COLORS)}
    dataset = data.Folder(tmp_path / "photos", tmp_path / "masks", CLASSES, label_colors={**meanings, (0, 0, 0): None})
    check_sample(dataset[0], "a", VOID)
    with pytest.raises(
        ValueError, match=r"labels of .*a\.png: have the colours 0, 0, 0 \(\d+ pixels\), should be named"
    ):
        data.Folder(tmp_path / "photos", tmp_path / "masks", CLASSES, label_colors=meanings)[0]


@pytest.mark.parametrize(
    "colors",
    [
        {"70, 130, 180": 0, "128,64,128": 1, "0,0,142": 2, "0, 0, 0": "ignore"},
        {"70, 130, 180": 0, "128,64,128": 1, "0,0,142": 2, "0, 0, 0": None},
    ],
)
def test_colours_of_a_configuration(tmp_path, colors):
    save(tmp_path / "photos" / "a.png", PHOTO)
    save(tmp_path / "masks" / "a.png", colored(VOID))
    entries = {"images": tmp_path / "photos", "labels": tmp_path / "masks", "val": "", "label_colors": colors}
    check_sample(build.make_dataset(config(**entries), "")[0], "a", VOID)


def test_colours_of_the_palette_and_several_of_a_class(tmp_path):
    save(tmp_path / "photos" / "a.png", PHOTO)
    save(tmp_path / "masks" / "a.png", colored(LABEL))
    entries = {"images": tmp_path / "photos", "labels": tmp_path / "masks"}
    read = config(**entries, palette=COLORS, label_colors="palette")
    check_sample(build.make_dataset(read, "")[0], "a", LABEL)
    several = {"70,130,180": 1, "128,64,128": 1, "0,0,142": 0}
    check_sample(build.make_dataset(config(**entries, label_colors=several), "")[0], "a", np.array([1, 1, 0])[LABEL])


def test_jpeg_labels_in_colour_are_refused(tmp_path):
    save(tmp_path / "photos" / "a.png", PHOTO)
    save(tmp_path / "masks" / "a.jpg", colored(LABEL))
    dataset = data.Folder(
        tmp_path / "photos", tmp_path / "masks", CLASSES, label_colors={(0, 0, 0): 0}, label_ending=".jpg"
    )
    with pytest.raises(ValueError, match=r"a\.jpg is a JPEG, which changes colours near edges"):
        dataset[0]


# --- Endings, splits, pairs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image_ending", "label_ending", "saved"),
    [(None, "_mask.png", ".png"), (".ppm", ".tif", ".ppm"), ("_leftImg8bit.png", "_ids.bmp", "_leftImg8bit.png")],
)
def test_endings_and_suffixes(tmp_path, image_ending, label_ending, saved):
    for name in ("a", "b"):
        save(tmp_path / "all" / f"{name}{saved}", PHOTO)
        save(tmp_path / "masks" / f"{name}{label_ending}", LABEL)
    save(tmp_path / "all" / "other.gif", LABEL)
    (tmp_path / "list.txt").write_text(f"b{saved}\na\n")
    entries = {"images": tmp_path / "all", "labels": tmp_path / "masks", "label_ending": label_ending}
    read = config(**entries, image_ending=image_ending)
    for split, names in (("", ["a", "b"]), (str(tmp_path / "list.txt"), ["b", "a"])):
        dataset = build.make_dataset(read, split)
        assert dataset.names == names
        for sample, name in zip(dataset, names, strict=True):
            check_sample(sample, name, LABEL)


def test_a_folder_with_photos_and_labels_together(tmp_path):
    save(tmp_path / "a.jpg", PHOTO, quality=95)
    save(tmp_path / "a_mask.png", LABEL)
    dataset = data.Folder(tmp_path, tmp_path, CLASSES, image_ending=".jpg", label_ending="_mask.png")
    assert dataset.names == ["a"]
    np.testing.assert_array_equal(dataset[0].label, LABEL)
    save(tmp_path / "b.jpg", PHOTO)
    (tmp_path / "list.txt").write_text("b")
    endings = {"image_ending": ".jpg", "label_ending": "_mask.png"}
    listed = data.Folder(tmp_path, tmp_path, CLASSES, list=tmp_path / "list.txt", **endings)
    with pytest.raises(FileNotFoundError, match=r"labels not found: .*b_mask\.png \(line 1 of"):
        listed[0]


@pytest.mark.parametrize("shared", [False, True])
def test_a_folder_for_each_split(tmp_path, shared, capsys):
    for split, names in (("train", ["0", "1"]), ("val", ["0"])):
        for name in names:
            save(tmp_path / split / "photos" / f"{name}.png", PHOTO)
            save(tmp_path / ("all" if shared else split) / "masks" / f"{name}.png", LABEL)
    splits = ("train", "val")
    labels = tmp_path / "all" / "masks" if shared else {name: tmp_path / name / "masks" for name in splits}
    read = config(images={name: tmp_path / name / "photos" for name in splits}, labels=labels)
    sets = {name: build.make_dataset(read, name) for name in splits}
    assert {name: one.names for name, one in sets.items()} == {"train": ["0", "1"], "val": ["0"]}
    for one in sets.values():
        check_sample(one[0], "0", LABEL)
        assert one.entries[0].image.parent.parent.name in splits
    assert len(_datasets(read)) == 2
    assert "in common" not in capsys.readouterr().err  # they only have a name in common
    with pytest.raises(ValueError, match="split: is 'test', should be train or val, as in data"):
        build.make_dataset(read, "test")


@pytest.mark.parametrize("separator", ["\t", ", ", " ", ","])
def test_lists_of_pairs(tmp_path, separator):
    save(tmp_path / "photos" / "day" / "a.png", PHOTO)
    save(tmp_path / "photos" / "night" / "a.png", PHOTO)
    save(tmp_path / "masks" / "a_day.png", LABEL)
    elsewhere = tmp_path / "elsewhere" / "a.png"
    save(elsewhere, LABEL)
    (tmp_path / "train.txt").write_text(f"day/a.png{separator}a_day.png\nnight/a.png{separator}{elsewhere}\n")
    paths = {"images": tmp_path / "photos", "labels": tmp_path / "masks"}
    dataset = build.make_dataset(config(**paths, pairs=True), str(tmp_path / "train.txt"))
    for sample, name in zip(dataset, ["day/a", "night/a"], strict=True):
        check_sample(sample, name, LABEL)


def test_names_with_spaces_are_separated_by_tabs(tmp_path):
    save(tmp_path / "photos" / "a cat.png", PHOTO)
    save(tmp_path / "masks" / "the cat.png", LABEL)
    (tmp_path / "train.txt").write_text("a cat.png\tthe cat.png\n")
    paths = tmp_path / "photos", tmp_path / "masks"
    check_sample(data.Folder(*paths, CLASSES, list=tmp_path / "train.txt", pairs=True)[0], "a cat", LABEL)
    (tmp_path / "train.txt").write_text("a.png\n")
    with pytest.raises(
        ValueError, match=r"line 1 of .*train\.txt: is 'a\.png', should be the paths of an image and of"
    ):
        data.Folder(*paths, CLASSES, list=tmp_path / "train.txt", pairs=True)
    with pytest.raises(ValueError, match="pairs: is True, should be False without a list"):
        data.Folder(*paths, CLASSES, pairs=True)


# --- What is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"images": {"train": "a"}}, "data: val is 'val', should be one of train, as in images"),
        ({"images": {"train": "a", "val": "b"}, "labels": {"train": "c"}}, "data: labels has folders for train, shou"),
        ({"labels": {"train": "c", "val": "d"}}, "data: labels has folders for train, val, so should images"),
        ({"images": 3}, "data.images: is 3"),
        ({"pairs": True, "val": ""}, "data: pairs needs train and val, list files"),
        ({"images": {"train": "a", "val": "b"}, "pairs": True}, "data: pairs is for one folder of images"),
        ({"label_ending": ""}, "data.label_ending: is ''"),
        ({"label_ending": "masks/a.png"}, "data.label_ending: is 'masks/a.png'"),
        ({"label_colors": {"red": 0}}, "data.label_colors: is 'red', should be like '128, 64, 128', red, green and"),
        ({"label_colors": {"1, 2, 256": 0}}, "data.label_colors: is '1, 2, 256', should be like"),
        ({"label_colors": {"1, 2, 3": -1}}, "data.label_colors.1, 2, 3: is -1"),
        ({"label_colors": "palette"}, "data: label_colors: is 'palette', which needs a palette with a colour for each"),
        ({"label_colors": {"0,0,0": 0}, "label_values": {0: 0}}, "data: label_colors and label_values: should be one"),
        ({"kind": "voc12", "root": "x", "images": None, "labels": None, "classes": None, "label_ending": "_m.png"},
         "data: label_ending belong to kind folder, the kind is voc12"),
    ],
)  # fmt: skip
def test_wrong_entries(entries, said):
    with pytest.raises(ValueError, match="test: ") as caught:
        config(**{"images": "i", "labels": "l", **entries})
    assert said in str(caught.value)


def test_colours_that_are_none(tmp_path):
    save(tmp_path / "a.png", PHOTO)
    for colors, said in (
        ({(0, 0, 0): 3}, r"label_colors: meaning of \(0, 0, 0\) is 3, should be a class from 0 to 2, or ignored"),
        ({(0, 0, 300): 1}, r"label_colors: colour is \(0, 0, 300\), should be red, green and blue"),
    ):
        with pytest.raises(ValueError, match=said):
            data.Folder(tmp_path, tmp_path, CLASSES, label_colors=colors)
