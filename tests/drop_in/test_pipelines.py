"""Scripts in the styles of five methods: the same labels by pydensecrf, by the drop-in, and by deeplab_fast.compat."""

from __future__ import annotations

import functools
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from photos import PHOTOS, photo, scores

pytest.importorskip("pydensecrf")
torch = pytest.importorskip("torch")

from deeplab_fast import compat, crf  # noqa: E402
from deeplab_fast.pydensecrf import densecrf, utils  # noqa: E402

SCRIPTS = Path(__file__).parent / "scripts"
# What a user imports instead of the script's own function or class `refine`.
INSTEAD = {
    "stego": compat.stego.batched_crf,
    "toco": compat.toco.DenseCRF,
    "irn": compat.irn.crf_inference_label,
    "mctformer": compat.irn.crf_inference,
    "cutler": compat.toco.DenseCRF,
}
SIZE = (113, 150)


@functools.cache
def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Photos (N, H, W, 3) and a network's logits (N, K, h, w)."""
    photos = np.stack([photo(name, *SIZE) for name in PHOTOS])
    coarse = [np.log(scores(one, 4).clip(1e-4))[:, 4::8, 4::8] for one in photos]
    return photos, np.stack(coarse)


def run(name: str, instead: object = None) -> list[np.ndarray]:
    names = runpy.run_path(str(SCRIPTS / f"{name}.py"))
    main = names["main"]
    if instead is not None:
        main.__globals__["refine"] = instead
    return [np.asarray(labels) for labels in main(*inputs())]


@pytest.fixture(autouse=True)
def shared_module(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)


@functools.cache
def by_pydensecrf(name: str) -> list[np.ndarray]:
    import pydensecrf

    assert "deeplab_fast" not in pydensecrf.__file__
    return run(name)


def assert_same_labels(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    assert len(np.unique(np.concatenate([one.ravel() for one in expected]))) > 1
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype.kind == "i"
        assert (one != other).mean() <= 1e-4  # the policy for float32: ties may fall either way


@pytest.mark.parametrize("name", INSTEAD)
def test_the_drop_in_gives_the_same_labels(name, monkeypatch):
    expected = by_pydensecrf(name)
    for module in (densecrf, utils):
        stem = module.__name__.rpartition(".")[2]
        monkeypatch.setitem(sys.modules, f"pydensecrf.{stem}", module)
        monkeypatch.setattr(sys.modules["pydensecrf"], stem, module)
    assert_same_labels(run(name), expected)


@pytest.mark.parametrize("name", INSTEAD)
def test_a_changed_import_gives_the_same_labels(name):
    assert_same_labels(run(name, INSTEAD[name]), by_pydensecrf(name))


# --- Pages -----------------------------------------------------------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs"


def test_the_imports_of_pipelines():
    imports = re.findall(r"`(from deeplab_fast[^`]*|import deeplab_fast[^`]*)`", (DOCS / "pipelines.md").read_text())
    assert len(imports) >= 6
    for line in imports:
        exec(line, {})


def test_the_parameters_of_choosing_parameters():
    text = (DOCS / "choosing-parameters.md").read_text()
    rows = re.findall(r"^\| (`.*?`) \| ([\d., ]+) \| ([\d., ]+) \|", text, re.M)
    found = {}
    for names, spatial, bilateral in rows:
        for name in re.findall(r"`([\w-]+)`", names):
            found[name] = tuple(float(number) for number in f"{spatial}, {bilateral}".split(", "))
    assert found == {
        name: (one.pos_w, one.pos_xy_std, one.bi_w, one.bi_xy_std, one.bi_rgb_std) for name, one in crf.PRESETS.items()
    }
