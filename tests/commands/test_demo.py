"""The demo: its annotations fit their photos, and the pictures it promises appear."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from deeplab_fast import pictures

pytest.importorskip("skimage", reason="the demo's photos come with scikit-image")
sys.path.append(str(Path(__file__).parents[2] / "demo"))
annotate = pytest.importorskip("annotate", reason="the demo is in the source checkout only")
import run as demo  # noqa: E402

NAMES = [path.stem for path in sorted(annotate.FOLDER.glob("*.json"))]


def load(name):
    return annotate.load(annotate.FOLDER / f"{name}.json")


def test_there_are_enough_photos_of_both_kinds():
    photos = annotate.load_all()
    assert len(photos) >= 5
    assert {photo.kind for photo in photos} == {"scores", "labels"}
    assert max(len(photo.classes) for photo in photos) > 2
    assert set(demo.HERO) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_annotation_fits_its_photo(name):
    photo = load(name)
    height, width = photo.labels.shape
    assert photo.image.shape == (height, width, 3)
    present = set(np.unique(photo.labels)) - {pictures.IGNORED}
    assert present == set(range(len(photo.classes))), "every class is drawn somewhere"
    prob = photo.probabilities()
    assert prob.shape == (len(photo.classes), height, width)
    np.testing.assert_allclose(prob.sum(axis=0), 1, atol=1e-4)
    left, top, right, bottom = photo.crop
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_demo_writes_its_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "OUT", tmp_path / "out")
    monkeypatch.setattr(demo, "REPEATS", 1)
    monkeypatch.setattr(annotate, "load_all", lambda: [load(name) for name in demo.HERO])
    monkeypatch.setattr(demo, "import_peer", lambda: None)
    demo.main()
    assert (tmp_path / "out" / "hero.jpg").stat().st_size < 400_000
    assert pictures.read_image(tmp_path / "out" / "hero.jpg").shape[1] == pytest.approx(demo.HERO_WIDTH, abs=8)
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert table.count("\n| ") == len(demo.HERO)
    for name in demo.HERO:
        photo = load(name)
        panel = pictures.read_image(tmp_path / "out" / f"{name}.png")
        assert panel.shape[1] == 3 * photo.image.shape[1] + 12
        for path in demo.input_files(photo):
            assert path.exists()


def test_refined_masks_move_to_the_edges_of_the_photo():
    """To hug the objects, in numbers: label boundaries lie where the photo's colours change more."""
    for name in ("astronaut", "coffee"):
        photo = load(name)
        refined = demo.compare(photo, None)["labels"]
        steps = np.abs(np.diff(photo.image.astype(int), axis=1)).sum(axis=2)

        def contrast(labels, steps=steps):
            return steps[labels[:, 1:] != labels[:, :-1]].mean()

        assert contrast(refined) > 1.5 * contrast(photo.rough())
