"""`deeplab-fast crf` of a volume."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from command import run, succeeds
from volumes import SPACING, volume

from deeplab_fast import crf

WORDS = ["--pos-xy-std", 2, "--bi-w", 5, "--bi-xy-std", 9, "--bi-rgb-std", "20,200"]


@pytest.fixture
def folder(tmp_path):
    image, _, prob = volume()
    np.save(tmp_path / "t1.npy", image[0])
    np.save(tmp_path / "t2.npy", image[1])
    np.save(tmp_path / "both.npy", image)
    np.save(tmp_path / "logits.npy", np.log(prob) + 3)
    np.save(tmp_path / "labels.npy", np.where(prob.max(0) > 0.6, prob.argmax(0), 255).astype(np.uint8))
    return tmp_path


def expected(prob: np.ndarray, spacing: tuple | None = SPACING) -> np.ndarray:
    params = crf.parameters(pos_xy_std=2, bi_w=5, bi_xy_std=9, bi_rgb_std=(20, 200))
    return crf.refine(volume()[0], prob, params, spacing=spacing)


def test_modalities_in_files_of_their_own(folder):
    words = ["crf", "t1.npy", "logits.npy", "-o", "out.npy", "--modality", "t2.npy", "--spacing", "3,1,1", *WORDS]
    result = succeeds(run(folder, *words, "--save-probabilities"))
    assert "voxels changed" in result.stdout
    assert "taken as logits" in result.stderr
    Q = expected(volume()[2])
    np.testing.assert_array_equal(np.load(folder / "out.npy"), Q.argmax(0))
    with np.load(folder / "out.npz") as saved:
        np.testing.assert_allclose(saved["probabilities"], Q, atol=2e-3)


def test_one_file_and_labels(folder):
    succeeds(run(folder, "crf", "both.npy", "labels.npy", "-o", "out.npy", "--gt-prob", 0.8, *WORDS))
    labels = np.load(folder / "labels.npy")
    prob = crf.probabilities_from_labels(labels.reshape(-1, labels.shape[-1]), 3, 0.8).reshape(3, *labels.shape)
    np.testing.assert_array_equal(np.load(folder / "out.npy"), expected(prob, None).argmax(0))


@pytest.mark.skipif(importlib.util.find_spec("nibabel") is None, reason="nibabel is not installed")
def test_nifti(folder):
    import nibabel

    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    for name in ("t1", "t2", "logits"):
        nibabel.save(nibabel.Nifti1Image(np.load(folder / f"{name}.npy").T, affine), folder / f"{name}.nii.gz")
    words = ["crf", "t1.nii.gz", "logits.nii.gz", "-o", "out.nii.gz", "--modality", "t2.nii.gz", *WORDS]
    succeeds(run(folder, *words))
    written = nibabel.load(folder / "out.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj).T, expected(volume()[2]).argmax(0))
    np.testing.assert_allclose(written.affine, affine)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["both.npy", "logits.npy", "-o", "out.png"], 2, "--out: is 'out.png', should be a name that ends in .nii"),
        (["both.npy", "logits.npy", "-o", "both.npy"], 2, "both.npy is an input"),
        (["both.npy", "t1.npy", "-o", "out.npy", "--kind", "probabilities"], 1, "scores: values are"),
        (["both.npy", "flat.npy", "-o", "out.npy"], 1, "flat.npy: shape is (3, 4)"),
        (["both.npy", "small.npy", "-o", "out.npy"], 1, "small.npy: scores: size is (2, 3, 4), should be (12, 15, 10)"),
        (["both.npy", "none.npy", "-o", "out.npy"], 1, "volume not found: none.npy"),
        (["both.npy", "logits.npy", "-o", "out.npy", "--spacing", "1,x"], 2, "--spacing: is '1,x', should be three"),
        (
            ["both.npy", "logits.npy", "-o", "out.npy", "--spacing", "1,2"],
            2,
            "--spacing: is (1.0, 2.0), should be 3 pos",
        ),
        (["both.npy", "logits.npy", "-o", "out.npy", "--bi-rgb-std", "a"], 2, "--bi-rgb-std: is 'a', should be a num"),
        (
            ["both.npy", "logits.npy", "-o", "out.npy", "--bi-rgb-std", "1,2,3"],
            2,
            "--bi-rgb-std: is (1.0, 2.0, 3.0), sh",
        ),
        (["both.npy", "logits.npy", "-o", "out.npy", "--overlay"], 2, "--palette belong to photos, both.npy is a vol"),
        (["both.npy", "logits.npy", "-o", "out.npy", "--layout", "hwk"], 2, "belong to photos, both.npy is a volume"),
        (["both.npy", "logits.npy", "-o", "out.npy", "--gt-prob", "0.8"], 2, "--gt-prob belongs to labels"),
        (["photo.png", "logits.npy", "-o", "out.png", "--spacing", "1,1,1"], 2, "--spacing belongs to a volume, photo"),
        (["both.npy", "logits.npy", "-o", "out.npy", "--modality", "small.npy"], 2, "--modality: size is 12×15×10 and"),
    ],
)
def test_bad_use(folder, words, code, message):
    np.save(folder / "flat.npy", np.zeros((3, 4)))
    np.save(folder / "small.npy", np.zeros((2, 3, 4)))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    failed = run(folder, "crf", *words)
    assert failed.exit_code == code, failed.stderr
    assert message in " ".join(failed.stderr.split()).replace(f"{folder}/", "")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
