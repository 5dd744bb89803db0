"""Datasets in each layout, written in miniature: what is read, and what is said of what is broken."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
from torch.utils.data import DataLoader

from deeplab_fast import data, pictures
from deeplab_fast.data.cocostuff import COCOSTUFF_CLASSES

RNG = np.random.default_rng(0)
PHOTOS = {name: RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8) for name in "abc"}
LABELS = {name: np.where(RNG.random((5, 7)) < 0.2, 255, RNG.integers(0, 21, (5, 7))) for name in "abc"}
SHAPES = ("background", "disc", "square")


def write(path: Path, content: str | np.ndarray) -> None:
    """A text, a photo or a label picture, by the kind of its content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    elif content.ndim == 3:
        Image.fromarray(content).save(path, "PNG")  # whatever the ending: pixels are to come back exactly
    else:
        pictures.save_labels(path, content)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for name in "abc":
        write(root / "JPEGImages" / f"{name}.jpg", PHOTOS[name])
        write(root / "SegmentationClass" / f"{name}.png", LABELS[name])
        write(root / "SegmentationClassAug" / f"{name}.png", LABELS[name].T.reshape(5, 7))
    lists = {"train": "a\nb\n", "val": "\ufeffc\r\n\r\n", "trainval": "a\nb\nc", "test": "b\n"}
    for split, text in lists.items():
        write(root / "ImageSets" / "Segmentation" / f"{split}.txt", text)
    aug = "/JPEGImages/b.jpg /SegmentationClassAug/b.png\nJPEGImages/a.jpg SegmentationClassAug/a.png\n"
    write(root / "ImageSets" / "SegmentationAug" / "train_aug.txt", aug)
    return root


def assert_sample(sample: data.Sample, name: str, label: np.ndarray | None) -> None:
    assert sample.name == name
    assert sample.image.dtype == np.uint8
    np.testing.assert_array_equal(sample.image, PHOTOS[name])
    if label is None:
        assert sample.label is None
    else:
        assert sample.label.dtype == np.int64
        np.testing.assert_array_equal(sample.label, label)


# ------------------------------------------------------------------------------------------------------- VOC


@pytest.mark.parametrize("parent", [False, True])
def test_voc(voc, parent):
    root = voc.parent if parent else voc
    train = data.VOC12(root, "train")
    assert train.names == ["a", "b"]
    assert len(train) == 2
    assert train.num_classes == 21
    assert train.classes[15] == "person"
    assert train.ignore_index == 255
    np.testing.assert_array_equal(train.palette, pictures.voc_palette())
    for index, name in enumerate("ab"):
        assert_sample(train[index], name, LABELS[name])
    assert [sample.name for sample in data.VOC12(root, "trainval")] == ["a", "b", "c"]  # an IndexError ends the loop
    assert_sample(data.VOC12(root, "val")[0], "c", LABELS["c"])  # a mark in front, Windows line ends, empty lines


def test_voc_augmented(voc):
    train = data.VOC12(voc, "train_aug")
    assert train.names == ["b", "a"]
    for index, name in enumerate("ba"):
        assert_sample(train[index], name, LABELS[name].T.reshape(5, 7))


def test_voc_test_has_no_labels(voc):
    shutil.rmtree(voc / "SegmentationClass")
    assert_sample(data.VOC12(voc, "test")[0], "b", None)


def test_voc_missing_parts_are_named_at_once(voc, tmp_path):
    with pytest.raises(ValueError, match="split: is 'tset', should be one of train, val"):
        data.VOC12(voc, "tset")
    with pytest.raises(FileNotFoundError, match=r"root: folder not found: .*nowhere"):
        data.VOC12(tmp_path / "nowhere", "train")
    with pytest.raises(FileNotFoundError, match=r"looked for .*JPEGImages and .*VOC2012.JPEGImages"):
        data.VOC12(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match=r"list of the split 'trainval_aug' not found: .*trainval_aug\.txt"):
        data.VOC12(voc, "trainval_aug")
    with pytest.raises(ValueError, match=r"root: path is the file .*, should be a folder"):
        data.VOC12(voc / "JPEGImages" / "a.jpg", "train")
    list_path = voc / "ImageSets" / "Segmentation" / "train.txt"
    list_path.write_text("\n \n")
    with pytest.raises(ValueError, match=r"train\.txt: names no samples"):
        data.VOC12(voc, "train")
    list_path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"train\.txt: is no UTF-8 text"):
        data.VOC12(voc, "train")
    shutil.rmtree(voc / "SegmentationClass")
    with pytest.raises(FileNotFoundError, match="SegmentationClass"):
        data.VOC12(voc, "trainval")
    (voc / "ImageSets" / "SegmentationAug" / "train_aug.txt").write_text("/JPEGImages/a.jpg\n")
    with pytest.raises(ValueError, match=r"line 1 of .*train_aug\.txt: is '/JPEGImages/a\.jpg', should be the paths"):
        data.VOC12(voc, "train_aug")


def break_image(root: Path) -> None:
    (root / "JPEGImages" / "b.jpg").write_bytes(b"no picture")


def cut_image(root: Path) -> None:
    path = root / "JPEGImages" / "b.jpg"
    path.write_bytes(path.read_bytes()[:90])


def lose_image(root: Path) -> None:
    (root / "JPEGImages" / "b.jpg").unlink()


def lose_labels(root: Path) -> None:
    (root / "SegmentationClass" / "b.png").unlink()


def colour_labels(root: Path) -> None:
    write(root / "SegmentationClass" / "b.png", PHOTOS["b"])


def turn_labels(root: Path) -> None:
    write(root / "SegmentationClass" / "b.png", np.ascontiguousarray(LABELS["b"].T))


def add_wrong_labels(root: Path) -> None:
    label = LABELS["b"].copy()
    label[0, :3] = 21, 254, 21
    write(root / "SegmentationClass" / "b.png", label)


BROKEN = [
    (break_image, ValueError, r"image .*b\.jpg is no readable picture"),
    (cut_image, ValueError, r"image .*b\.jpg is no readable picture"),
    (lose_image, FileNotFoundError, r"image not found: .*b\.jpg \(line 2 of .*train\.txt\)"),
    (lose_labels, FileNotFoundError, r"labels not found: .*b\.png \(line 2 of .*train\.txt\)"),
    (colour_labels, ValueError, r"label picture .*b\.png: mode is RGB, should be palette or grey"),
    (turn_labels, ValueError, r"labels of .*b\.png: are 5 x 7 pixels, should be 7 x 5, as the image .*b\.jpg"),
    (
        add_wrong_labels,
        ValueError,
        r"b\.png: have 21, 254 \(3 pixels\), should be 0 to 20 \(background … tvmonitor\) or 255",
    ),
]


@pytest.mark.parametrize(("damage", "error", "message"), BROKEN, ids=[case[0].__name__ for case in BROKEN])
def test_broken_files(voc, damage, error, message, caplog):
    damage(voc)
    train = data.VOC12(voc, "train")
    assert_sample(train[0], "a", LABELS["a"])
    with pytest.raises(error, match=message):
        train[1]

    train = data.VOC12(voc, "train", on_error="skip")
    with caplog.at_level(logging.WARNING, "deeplab_fast.data"):
        problems = [train[1], train[1]]
    assert all(isinstance(problem, data.Problem) and problem.name == "b" for problem in problems)
    assert train.problems == [str(problems[0])]  # told once
    assert len(caplog.records) == 1
    with pytest.raises(error, match=message):
        raise error(train.problems[0])
    assert_sample(train[0], "a", LABELS["a"])


def test_problems_come_out_of_workers(voc, tmp_path, monkeypatch):
    lose_image(voc)
    log = tmp_path / "log.txt"
    monkeypatch.setattr(logging.getLogger("deeplab_fast.data"), "handlers", [logging.FileHandler(log)])
    dataset = data.VOC12(voc, "trainval", on_error="skip")
    loader = DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=data.collate_samples)
    items = [item for batch in loader for item in batch]
    assert [item.name for item in items] == ["a", "b", "c"]
    assert dataset.problems == []
    assert log.read_text() == ""  # a worker says nothing, so that nothing is said twice
    dataset.report(item for item in items if isinstance(item, data.Problem))
    assert len(dataset.problems) == 1
    assert "image not found" in dataset.problems[0]
    assert log.read_text() == f"left out b: {dataset.problems[0]}\n"
    assert_sample(items[2], "c", LABELS["c"])


def test_on_error_is_checked(voc):
    with pytest.raises(ValueError, match="on_error: is 'ignore', should be 'raise' or 'skip'"):
        data.VOC12(voc, "train", on_error="ignore")


# ------------------------------------------------------------------------------------------------ COCO-Stuff


def test_names_of_cocostuff():
    assert len(COCOSTUFF_CLASSES) == len(set(COCOSTUFF_CLASSES)) == 182
    known = {1: "person", 12: "street sign", 13: "stop sign", 90: "toothbrush", 91: "hair brush", 92: "banner"}
    known |= {106: "clouds", 124: "grass", 149: "road", 157: "sky-other", 169: "tree", 182: "wood"}
    assert {number: COCOSTUFF_CLASSES[number - 1] for number in known} == known


@pytest.fixture
def ten_thousand(tmp_path: Path) -> Path:
    savemat = pytest.importorskip("scipy.io").savemat
    root = tmp_path / "cocostuff-10k"
    (root / "annotations").mkdir(parents=True)
    for name in "ab":
        write(root / "images" / f"{name}.jpg", PHOTOS[name])
        stored = np.where(LABELS[name] == 255, 0, LABELS[name] + 1).astype(np.uint8)
        stored[0, 0] = 182
        savemat(root / "annotations" / f"{name}.mat", {"S": stored, "names": "x"})
    for split, text in {"train": "b\n", "test": "a\n", "all": "a\nb\n"}.items():
        write(root / "imageLists" / f"{split}.txt", text)
    return root


def test_cocostuff_10k(ten_thousand):
    dataset = data.COCOStuff10k(ten_thousand, "all")
    assert dataset.names == ["a", "b"]
    assert dataset.num_classes == 182
    for index, name in enumerate("ab"):
        expected = LABELS[name].copy()
        expected[0, 0] = 181
        assert_sample(dataset[index], name, expected)
    assert data.COCOStuff10k(ten_thousand, "train").names == ["b"]
    assert data.COCOStuff10k(ten_thousand, "test").names == ["a"]


def test_cocostuff_10k_broken(ten_thousand):
    from scipy.io import savemat

    dataset = data.COCOStuff10k(ten_thousand, "all")
    path = ten_thousand / "annotations" / "a.mat"
    for content, message in (
        ({"S": np.full((5, 7), 183, np.uint8)}, r"have 182 \(35 pixels\), should be 0 to 181 \(person … wood\)"),
        ({"S": np.full((5, 7), 256, np.int16)}, r"have 256 \(35 pixels\)"),
        ({"S": np.ones((7, 5), np.uint8)}, r"are 5 x 7 pixels, should be 7 x 5"),
        ({"T": np.ones((5, 7), np.uint8)}, "have no such array under the key S"),
        ({"S": "text"}, r"have shape \(1,\) and dtype <U4 under the key S"),
    ):
        savemat(path, content)
        with pytest.raises(ValueError, match=message):
            dataset[0]
    for content in (b"", b"MATLAB 5.0 MAT-file", path.read_bytes()[:150]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.mat: are no readable \.mat file|a\.mat: have no such array"):
            dataset[0]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"labels not found: .*a\.mat \(line 1 of .*all\.txt\)"):
        dataset[0]
    with pytest.raises(ValueError, match="split: is 'val', should be one of train, test, all"):
        data.COCOStuff10k(ten_thousand, "val")
    shutil.rmtree(ten_thousand / "annotations")
    with pytest.raises(FileNotFoundError, match=r"folder not found: .*annotations"):
        data.COCOStuff10k(ten_thousand, "all")


def test_cocostuff_164k(tmp_path):
    for name, split in (("b", "train2017"), ("a", "train2017"), ("c", "val2017")):
        write(tmp_path / "images" / split / f"{name}.jpg", PHOTOS[name])
        label = LABELS[name].copy()
        label[0, 0] = 181
        write(tmp_path / "annotations" / split / f"{name}.png", label)
    write(tmp_path / "images" / "train2017" / "._a.jpg", "left by another system")
    train = data.COCOStuff164k(tmp_path, "train")
    assert train.names == data.COCOStuff164k(tmp_path, "train2017").names == ["a", "b"]
    assert data.COCOStuff164k(tmp_path, "val").names == ["c"]
    expected = LABELS["b"].copy()
    expected[0, 0] = 181
    assert_sample(train[1], "b", expected)
    write(tmp_path / "annotations" / "train2017" / "b.png", np.full((5, 7), 182))
    with pytest.raises(ValueError, match="should be 0 to 181"):
        train[1]
    with pytest.raises(ValueError, match="split: is 'test2017', should be one of train2017, val2017"):
        data.COCOStuff164k(tmp_path, "test2017")
    shutil.rmtree(tmp_path / "annotations" / "val2017")
    with pytest.raises(FileNotFoundError, match=r"folder not found: .*val2017"):
        data.COCOStuff164k(tmp_path, "val")


# ---------------------------------------------------------------------------------------------------- Folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    for name, ending in (("a", ".jpg"), ("b", ".PNG"), ("c", ".png")):
        write(tmp_path / "photos" / f"{name}{ending}", PHOTOS[name])
        write(tmp_path / "masks" / f"{name}.png", np.minimum(LABELS[name], 2))
    write(tmp_path / "photos" / "notes.txt", "not a photo")
    write(tmp_path / "some.txt", "c\na.jpg\n")
    return tmp_path


def test_folder(own):
    dataset = data.Folder(own / "photos", own / "masks", SHAPES)
    assert dataset.names == ["a", "b", "c"]
    assert dataset.classes == SHAPES
    for index, name in enumerate("abc"):
        assert_sample(dataset[index], name, np.minimum(LABELS[name], 2))
    listed = data.Folder(own / "photos", own / "masks", list(SHAPES), list=own / "some.txt")
    assert listed.names == ["c", "a"]
    assert_sample(listed[1], "a", np.minimum(LABELS["a"], 2))
    assert_sample(data.Folder(own / "photos", None, SHAPES)[0], "a", None)


def test_folder_with_another_ignored_value(own):
    label = np.minimum(LABELS["a"], 2)
    label[1, 1] = 255
    write(own / "masks" / "a.png", label)
    dataset = data.Folder(own / "photos", own / "masks", SHAPES, ignore_index=2)
    assert_sample(dataset[0], "a", np.where(label == 2, 255, label))
    assert dataset.ignore_index == 255


def test_folder_reads_16_bit_labels(own):
    label = np.minimum(LABELS["a"], 2).astype(np.uint16)
    Image.fromarray(label).save(own / "masks" / "a.png")
    dataset = data.Folder(own / "photos", own / "masks", SHAPES)
    assert_sample(dataset[0], "a", label.astype(np.int64))
    label[0, 0] = 1000
    Image.fromarray(label).save(own / "masks" / "a.png")
    with pytest.raises(ValueError, match=r"have 1000 \(1 pixels\)"):
        dataset[0]


def test_folder_palette(own):
    dataset = data.Folder(own / "photos", None, SHAPES, palette=[(1, 2, 3), (4, 5, 6)])
    assert dataset.palette.shape == (256, 3)
    assert dataset.palette.dtype == np.uint8
    assert dataset.palette[:2].tolist() == [[1, 2, 3], [4, 5, 6]]
    np.testing.assert_array_equal(dataset.palette[2:], pictures.voc_palette()[2:])
    for palette in ([1, 2, 3], [(0, 0, 256)], [(0.5, 0, 0)], np.zeros((257, 3), int)):
        with pytest.raises(ValueError, match=r"palette: (array is|values are)"):
            data.Folder(own / "photos", None, SHAPES, palette=palette)


def test_folder_errors(own):
    photos, masks = own / "photos", own / "masks"
    with pytest.raises(FileNotFoundError, match=r"images: folder not found: .*fotos"):
        data.Folder(own / "fotos", masks, SHAPES)
    with pytest.raises(FileNotFoundError, match=r"labels: folder not found: .*mask"):
        data.Folder(photos, own / "mask", SHAPES)
    with pytest.raises(FileNotFoundError, match=r"list not found: .*none\.txt"):
        data.Folder(photos, masks, SHAPES, list=own / "none.txt")
    (own / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: names no samples"):
        data.Folder(own / "empty", None, SHAPES)
    with pytest.raises(TypeError, match="classes: is 'disc', should be a sequence of names"):
        data.Folder(photos, masks, "disc")
    with pytest.raises(ValueError, match="classes: number of names is 0, should be 1 to 255"):
        data.Folder(photos, masks, [])
    with pytest.raises(ValueError, match=r"classes: is .*, should be different names, disc is there more than once"):
        data.Folder(photos, masks, ["disc", "disc"])
    with pytest.raises(ValueError, match="ignore_index: is -1, should be at least 0"):
        data.Folder(photos, masks, SHAPES, ignore_index=-1)
    (own / "some.txt").write_text("a\nz\n")
    with pytest.raises(FileNotFoundError, match=r"image not found: .*z\.\* \(line 2 of .*some\.txt\)"):
        data.Folder(photos, masks, SHAPES, list=own / "some.txt")[1]
    write(photos / "a.png", PHOTOS["a"])
    with pytest.raises(ValueError, match=r"a stands for .*a\.jpg and .*a\.png, should be one file"):
        data.Folder(photos, masks, SHAPES)


# ----------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_shards_have_every_sample_once(own, world):
    dataset = data.Folder(own / "photos", own / "masks", SHAPES)
    shards = [data.shard(dataset, rank, world) for rank in range(world)]
    assert sorted(name for part in shards for name in part.names) == dataset.names
    for part in shards:
        assert [sample.name for sample in part] == part.names
        assert len(part) == len(part.names)
        assert part.classes == SHAPES


def test_shard_reports_to_its_dataset(own):
    (own / "masks" / "b.png").unlink()
    dataset = data.Folder(own / "photos", own / "masks", SHAPES, on_error="skip")
    part = data.shard(dataset, 1, 2)
    assert isinstance(part[0], data.Problem)
    assert part.problems == dataset.problems
    assert len(dataset.problems) == 1
    with pytest.raises(ValueError, match="rank: is 2, should be below 2"):
        data.shard(dataset, 2, 2)
    with pytest.raises(ValueError, match="world: is 0, should be at least 1"):
        data.shard(dataset, 0, 0)
