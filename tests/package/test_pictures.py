"""Reading photos and label pictures, drawing, and files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab_fast import pictures
from deeplab_fast.files import atomic_write, atomic_write_all, check_destination

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 21, (6, 8))


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# --------------------------------------------------------------------------------------------------- reading


def test_rgb_comes_back(tmp_path):
    pictures.save_image(tmp_path / "photo.png", PHOTO)
    np.testing.assert_array_equal(pictures.read_image(tmp_path / "photo.png"), PHOTO)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, orientation):
    # What a camera held like this stores, for the picture PHOTO that its owner saw.
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(undo(PHOTO))).save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(pictures.read_image(tmp_path / "photo.png"), PHOTO)


def test_grey_alpha_palette_and_16_bits(tmp_path):
    grey = PHOTO[..., 0]
    path = tmp_path / "photo.png"
    Image.fromarray(grey).save(path)
    np.testing.assert_array_equal(pictures.read_image(path), np.repeat(grey[..., None], 3, 2))
    Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    np.testing.assert_array_equal(pictures.read_image(path), np.repeat(grey[..., None], 3, 2))
    alpha = np.where(np.arange(8) < 4, 255, 0).astype(np.uint8)
    Image.fromarray(np.dstack([PHOTO, np.broadcast_to(alpha, grey.shape)])).save(path)
    read = pictures.read_image(path)
    np.testing.assert_array_equal(read[:, :4], PHOTO[:, :4])
    assert (read[:, 4:] == 255).all()
    pictures.save_labels(path, LABELS)
    np.testing.assert_array_equal(pictures.read_image(path), pictures.voc_palette()[LABELS])


def test_unreadable_pictures(tmp_path):
    path = tmp_path / "photo.png"
    with pytest.raises(FileNotFoundError, match=r"image not found: .*photo\.png"):
        pictures.read_image(path)
    with pytest.raises(ValueError, match=r"image .*: is a folder, should be a picture file"):
        pictures.read_image(tmp_path)
    path.write_text("no picture")
    with pytest.raises(ValueError, match=r"image .*photo\.png is no readable picture$"):
        pictures.read_image(path)
    pictures.save_image(path, RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"is no readable picture: .*truncated"):
        pictures.read_image(path)


def test_too_many_pixels(tmp_path, monkeypatch):
    pictures.save_image(tmp_path / "photo.png", PHOTO)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"image .* has too many pixels: .*48 pixels"):
        pictures.read_image(tmp_path / "photo.png")


@pytest.mark.parametrize("made", ["palette", "grey", "16 bit"])
def test_labels_come_back(tmp_path, made):
    path = tmp_path / "labels.png"
    if made == "palette":
        pictures.save_labels(path, LABELS)
    else:
        Image.fromarray(LABELS.astype(np.uint8 if made == "grey" else np.uint16)).save(path)
    read = pictures.read_labels(path)
    np.testing.assert_array_equal(read, LABELS)
    assert read.dtype == np.int64


def test_colour_is_no_label_picture(tmp_path):
    pictures.save_image(tmp_path / "labels.png", PHOTO)
    with pytest.raises(ValueError, match=r"label picture .*labels\.png: mode is RGB, should be palette or grey"):
        pictures.read_labels(tmp_path / "labels.png")


# --------------------------------------------------------------------------------------------------- drawing


def test_voc_palette():
    palette = pictures.voc_palette()
    assert palette[[0, 1, 2, 15, 20, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192],
    ]  # fmt: skip
    assert len(np.unique(palette, axis=0)) == 256


def test_overlay_tints_and_draws_lines():
    labels = np.array([[1, 1, 255, 255]])
    image = np.full((1, 4, 3), 100, np.uint8)
    shown = pictures.overlay(image, labels, strength=0.5)
    assert shown[0].tolist() == [[114, 50, 50], [255, 255, 255], [100, 100, 100], [100, 100, 100]]
    shown = pictures.overlay(image, labels, strength=1, lines=False)
    assert shown[0, 1].tolist() == [128, 0, 0]
    assert shown.dtype == np.uint8
    assert (image == 100).all()


def test_panel_puts_pictures_side_by_side():
    left, right = np.full((50, 40, 3), 10, np.uint8), np.full((50, 60, 3), 200, np.uint8)
    plain = pictures.panel([left, right], gap=5)
    assert plain.shape == (50, 105, 3)
    np.testing.assert_array_equal(plain[:, :40], left)
    np.testing.assert_array_equal(plain[:, 45:], right)
    captioned = pictures.panel([left, right], ["one", "a longer one"], gap=5)
    top = captioned.shape[0] - 50
    np.testing.assert_array_equal(captioned[top:], plain)
    assert captioned[:top, :40].min() < 100
    assert captioned[:top, 45:].min() < 200
    assert (captioned[:, 40:45] == 255).all()
    with pytest.raises(ValueError, match=r"pictures: list of heights is \[40, 50\], should be one height"):
        pictures.panel([left, right[:40]])
    with pytest.raises(ValueError, match="captions: number is 1, should be 2, as of the pictures"):
        pictures.panel([left, right], ["one"])


# --------------------------------------------------------------------------------------------------- writing


def test_labels_are_a_palette_png(tmp_path):
    path = tmp_path / "ünï cödé.png"
    pictures.save_labels(path, LABELS)
    with Image.open(path) as picture:
        assert picture.mode == "P"
        assert picture.format == "PNG"
        np.testing.assert_array_equal(np.reshape(picture.getpalette(), (-1, 3))[:21], pictures.voc_palette()[:21])
    with pytest.raises(ValueError, match=r"path: is 'x\.jpg', should be a name that ends in \.png, as a palette"):
        pictures.save_labels(tmp_path / "x.jpg", LABELS)
    with pytest.raises(ValueError, match=r"labels: values are -1 to .*, should be in 0\.\.255"):
        pictures.save_labels(tmp_path / "x.png", LABELS - 1 - LABELS.min())
    assert files(tmp_path) == [path.name]


def test_unknown_format(tmp_path):
    for name in ("x", "x.npy", "x.docx"):
        with pytest.raises(ValueError, match="should be a name that ends in"):
            pictures.save_image(tmp_path / name, PHOTO)
    assert files(tmp_path) == []


def test_a_failing_writer_leaves_nothing(tmp_path):
    def fill_the_disk(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "old.png").write_bytes(b"old")
    for name in ("old.png", "new.png"):
        with pytest.raises(OSError, match="No space left"):
            atomic_write(tmp_path / name, fill_the_disk)
    assert files(tmp_path) == ["old.png"]
    assert (tmp_path / "old.png").read_bytes() == b"old"


def test_both_files_or_none(tmp_path, monkeypatch):
    real, calls = os.replace, []

    def fails_the_second_time(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", fails_the_second_time)
    with pytest.raises(OSError, match="No space left"):
        atomic_write_all({tmp_path / n: lambda file: file.write(b"x") for n in ("a", "b")})
    assert len(calls) == 2
    assert files(tmp_path) == []


def test_an_interrupt_leaves_nothing(tmp_path):
    def interrupted(file):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "x.png", interrupted)
    assert files(tmp_path) == []


def test_existing_files_and_links_are_replaced(tmp_path):
    (tmp_path / "target.png").write_bytes(b"old")
    (tmp_path / "link.png").symlink_to("target.png")
    pictures.save_image(tmp_path / "link.png", PHOTO)
    assert (tmp_path / "link.png").is_symlink()
    np.testing.assert_array_equal(pictures.read_image(tmp_path / "target.png"), PHOTO)


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    pictures.save_image(tmp_path / "x.png", PHOTO)
    assert (tmp_path / "x.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_destinations_are_checked(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="folder of the output not found"):
        check_destination(tmp_path / "absent" / "x.png")
    with pytest.raises(NotADirectoryError, match="folder of the output: is the file"):
        check_destination(tmp_path / "file" / "x.png")
    with pytest.raises(IsADirectoryError, match="output: is the folder"):
        check_destination(tmp_path)
