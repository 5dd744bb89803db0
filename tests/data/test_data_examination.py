"""What a dataset holds: values of label files, examination from end to end, and the quick looks before a training."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from deeplab_fast import data, pictures
from deeplab_fast.data import problems
from deeplab_fast.data.examination import classes_seen, examine, header_problems

CLASSES = ("ground", "thing")


def write(folder, name, label, size=None):
    """A grey photo of the label's size, or another, and the label."""
    for kind in ("photos", "masks"):
        (folder / kind).mkdir(exist_ok=True)
    label = np.array(label, np.uint8)
    shape = label.shape if size is None else size
    pictures.save_image(folder / "photos" / f"{name}.png", np.full((*shape, 3), 10 * len(name), np.uint8))
    Image.fromarray(label).save(folder / "masks" / f"{name}.png")


def made(folder, classes=CLASSES, **options):
    return data.Folder(folder / "photos", folder / "masks", classes, **options)


MASK = [[0, 255, 255], [0, 0, 255]]

# --- Values of label files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [[0, 255, 255], [0, 0, 255]]),
        ({"label_values": {0: 0, 255: 1}}, [[0, 1, 1], [0, 0, 1]]),
        ({"label_values": {0: 0, 255: 1}, "ignore_index": None}, [[0, 1, 1], [0, 0, 1]]),
        ({"label_values": {0: None, 255: 1}}, [[255, 1, 1], [255, 255, 1]]),
        ({"label_values": {255: 1}, "ignore_index": 0}, [[255, 1, 1], [255, 255, 1]]),
        ({"label_values": {0: 1}}, [[1, 255, 255], [1, 1, 255]]),
        ({"ignore_index": 0}, [[255, 255, 255], [255, 255, 255]]),
    ],
)
def test_values_of_label_files(tmp_path, options, expected):
    write(tmp_path, "a", MASK)
    dataset = made(tmp_path, **options)
    assert dataset[0].label.tolist() == expected
    assert dataset.label_of(0).tolist() == expected
    assert dataset.ignore_index == 255


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ignore_index": None}, r"a\.png: have 255 \(3 pixels\), should be 0 to 1 \(ground … thing\)$"),
        ({"ignore_index": 7}, None),
        ({"label_values": {255: 1}}, r"have 0 \(3 pixels\), should be a value that label_values names: 255:1$"),
        (
            {"label_values": {0: 0}, "ignore_index": None},
            r"have 255 \(3 pixels\), should be a value that label_values names: 0:0$",
        ),
    ],
)
def test_values_that_have_no_meaning(tmp_path, options, said):
    write(tmp_path, "a", MASK)
    if said is None:
        assert made(tmp_path, **options)[0].label is not None
        return
    with pytest.raises(problems.LabelsOutside, match=said) as error:
        made(tmp_path, **options)[0]
    assert list(error.value.values.values()) == [3]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({0: 0, 255: 2}, "label_values: meaning of 255 is 2, should be a class from 0 to 1, or ignored"),
        ({0: -1}, "label_values: 0: is -1, should be at least 0"),
        ({-1: 0}, "label_values: is -1, should be at least 0"),
    ],
)
def test_values_that_cannot_be(tmp_path, values, said):
    write(tmp_path, "a", MASK)
    with pytest.raises(ValueError, match=said):
        made(tmp_path, label_values=values)


# --- From end to end -----------------------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path):
    """Two good samples, and one with each problem."""
    write(tmp_path, "a", [[0, 1, 255], [0, 0, 255]])
    write(tmp_path, "bb", [[0, 0], [0, 0], [0, 1]])
    write(tmp_path, "c_missing", MASK)
    (tmp_path / "masks" / "c_missing.png").unlink()
    write(tmp_path, "d_text", MASK)
    (tmp_path / "photos" / "d_text.png").write_text("no picture")
    write(tmp_path, "e_cut", np.random.default_rng(0).integers(0, 2, (40, 40)))
    mask = tmp_path / "masks" / "e_cut.png"
    mask.write_bytes(mask.read_bytes()[:-60])
    write(tmp_path, "f_size", MASK, size=(3, 2))
    write(tmp_path, "g_value", [[0, 7, 7], [9, 0, 1]])
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1])
def test_examination(broken, workers, monkeypatch):
    monkeypatch.setattr("deeplab_fast.data.reading.FEW", 1)
    seen = []
    found = examine(made(broken), workers=workers, progress=lambda *at: seen.append(at))
    assert seen == [(done, 7) for done in range(1, 8)]
    assert [(problem.name, problem.kind) for problem in found.problems] == [
        ("c_missing", problems.MISSING),
        ("d_text", problems.UNREADABLE),
        ("e_cut", problems.UNREADABLE),
        ("f_size", problems.SIZES),
        ("g_value", problems.VALUES),
    ]
    assert found.outside == {7: 2, 9: 1}
    assert (found.samples, found.usable, found.unlabelled, found.ignored) == (7, 2, 0, 2)
    assert found.pixels.tolist() == [8, 2]
    assert found.images.tolist() == [2, 2]
    assert (found.smallest, found.largest) == ((2, 3), (3, 2))
    values = np.repeat([10.0, 20.0], 6)
    np.testing.assert_allclose(found.mean, [values.mean()] * 3)
    np.testing.assert_allclose(found.deviation, [values.std()] * 3)
    assert found.missing == ()


def test_examination_of_images_alone(tmp_path):
    write(tmp_path, "a", MASK)
    found = examine(data.Folder(tmp_path / "photos", None, CLASSES))
    assert (found.usable, found.unlabelled, found.missing) == (1, 1, CLASSES)


# --- Quick looks ---------------------------------------------------------------------------------------------------


def test_headers(broken):
    found = header_problems(made(broken))
    assert [type(error) for error in found] == [FileNotFoundError, ValueError, problems.SizesDiffer]
    assert "masks/c_missing.png" in str(found[0])
    assert "photos/d_text.png" in str(found[1])
    assert "f_size.png: are 3 x 2 pixels, should be 2 x 3" in str(found[2])


def test_headers_decode_nothing(tmp_path, monkeypatch):
    write(tmp_path, "a", MASK)
    monkeypatch.setattr(Image.Image, "load", None)
    assert header_problems(made(tmp_path)) == []


def test_headers_of_a_turned_photo(tmp_path):
    write(tmp_path, "a", np.zeros((20, 30)))
    (tmp_path / "photos" / "a.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (20, 30)).save(tmp_path / "photos" / "a.jpg", exif=exif)
    dataset = made(tmp_path)
    assert dataset[0].image.shape == (20, 30, 3)
    assert header_problems(dataset) == []


def test_headers_of_labels_in_mat_files(tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat
    for name in ("images", "annotations", "imageLists"):
        (tmp_path / name).mkdir()
    contents = {"a": {"S": np.ones((4, 6))}, "b": {"S": np.ones((6, 4))}, "c": {"T": np.ones((4, 6))}}
    for name, content in contents.items():
        Image.new("RGB", (6, 4)).save(tmp_path / "images" / f"{name}.jpg")
        savemat(tmp_path / "annotations" / f"{name}.mat", content)
    (tmp_path / "imageLists" / "all.txt").write_text("a\nb\nc\n")
    found = list(map(str, header_problems(data.COCOStuff10k(tmp_path, "all"))))
    assert len(found) == 2
    assert "b.mat: are 4 x 6 pixels, should be 6 x 4" in found[0]
    assert "c.mat: have no such array" in found[1]


def test_classes_are_looked_for_until_each_was_seen(tmp_path):
    for number in range(30):
        write(tmp_path, f"n{number}", [[0, number % 3]])
    dataset = made(tmp_path, ("x", "y", "z", "none"))
    found = classes_seen(dataset, [0, 1, 2], 30)
    assert found.seen == {0, 1, 2}
    assert found.read < 20
    assert classes_seen(dataset, [0, 1, 2, 3], 30)[:3] == ({0, 1, 2}, False, 30)
    assert classes_seen(dataset, [3], 10).read == 10
    assert classes_seen(dataset, None, 30).read == 30


def test_classes_that_coco_stuff_never_labels():
    assert len(data.COCOStuff164k.never_labelled) == 11
    assert set(data.COCOStuff164k.never_labelled) < set(data.COCOSTUFF_CLASSES)
