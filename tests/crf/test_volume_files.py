"""Volumes in files: .npy, and NIfTI through nibabel."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from volumes import SPACING, volume

from deeplab_fast import crf
from deeplab_fast.crf import volumes

needs_nibabel = pytest.mark.skipif(
    importlib.util.find_spec("nibabel") is None, reason="nibabel is not installed: the extra medical has it"
)


def test_npy(tmp_path):
    image = volume()[0]
    np.save(tmp_path / "both.npy", image)
    np.save(tmp_path / "first.npy", image[0].astype(np.float64))
    np.save(tmp_path / "second.npy", image[1])
    both = crf.read_volume(tmp_path / "both.npy")
    assert (both.spacing, both.affine) == ((1, 1, 1), None)
    np.testing.assert_array_equal(both.values, image)
    parts = crf.read_volume([tmp_path / "first.npy", str(tmp_path / "second.npy")], spacing=SPACING)
    np.testing.assert_array_equal(parts.values, image)
    assert parts.spacing == SPACING
    volumes.write_labels(tmp_path / "labels.npy", image[0] > 0, both)
    labels = np.load(tmp_path / "labels.npy")
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, image[0] > 0)


@needs_nibabel
@pytest.mark.parametrize("ending", volumes.NIFTI_ENDINGS)
def test_nifti(tmp_path, ending):
    import nibabel

    image = volume((4, 5, 6))[0]
    affine = np.array([[0, 1.5, 0, 7], [-2, 0, 0, 8], [0, 0, 3, 9], [0, 0, 0, 1.0]])  # turned, as scanners leave them
    for name, values in (("both", image), ("first", image[0]), ("second", image[1])):
        nibabel.save(nibabel.Nifti1Image(values.T, affine), tmp_path / (name + ending))
    both = crf.read_volume(tmp_path / f"both{ending}")
    assert both.values.shape == (2, 4, 5, 6)
    np.testing.assert_array_equal(both.values, image)
    assert both.spacing == (3, 1.5, 2)
    parts = crf.read_volume([tmp_path / f"first{ending}", tmp_path / f"second{ending}"])
    np.testing.assert_array_equal(parts.values, image)

    labels = (image[0] > 30).astype(np.int64)
    volumes.write_labels(tmp_path / f"labels{ending}", labels, both)
    written = nibabel.load(tmp_path / f"labels{ending}")
    np.testing.assert_array_equal(np.asarray(written.dataobj).T, labels)
    np.testing.assert_allclose(written.affine, affine)
    assert written.get_data_dtype() == np.uint8
    before = (tmp_path / f"labels{ending}").read_bytes()
    volumes.write_labels(tmp_path / f"labels{ending}", labels, both)
    assert (tmp_path / f"labels{ending}").read_bytes() == before
    volumes.write_labels(tmp_path / f"many{ending}", 300 * labels)
    assert nibabel.load(tmp_path / f"many{ending}").get_data_dtype() == np.uint16


@needs_nibabel
def test_bad_nifti(tmp_path):
    import nibabel

    (tmp_path / "broken.nii.gz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken\.nii\.gz is no readable NIfTI file"):
        crf.read_volume(tmp_path / "broken.nii.gz")
    flat = np.zeros((4, 5), np.float32)
    nibabel.save(nibabel.Nifti1Image(flat, np.eye(4)), tmp_path / "flat.nii")
    with pytest.raises(ValueError, match=r"flat\.nii: has 2 axes, should have three, or four"):
        crf.read_volume(tmp_path / "flat.nii")
    for name, shift in (("here", 0), ("there", 5)):
        affine = np.eye(4)
        affine[:3, 3] = shift
        nibabel.save(nibabel.Nifti1Image(np.zeros((2, 3, 4), np.float32), affine), tmp_path / f"{name}.nii")
    with pytest.raises(ValueError, match="paths: modalities is different places in space"):
        crf.read_volume([tmp_path / "here.nii", tmp_path / "there.nii"])


def test_bad_files(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"volume not found: .*none\.npy"):
        crf.read_volume(tmp_path / "none.npy")
    np.save(tmp_path / "flat.npy", np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"flat\.npy: shape is \(3, 4\), .* should be \(D, H, W\) or \(C, D, H, W\)"):
        crf.read_volume(tmp_path / "flat.npy")
    (tmp_path / "text.npy").write_text("text")
    with pytest.raises(ValueError, match=r"text\.npy is no readable numpy file"):
        crf.read_volume(tmp_path / "text.npy")
    (tmp_path / "volume.raw").write_text("")
    with pytest.raises(
        ValueError, match=r"paths: is '.*volume\.raw', should be a name that ends in \.nii, \.nii\.gz or"
    ):
        crf.read_volume(tmp_path / "volume.raw")
    np.save(tmp_path / "small.npy", np.zeros((3, 4, 5)))
    np.save(tmp_path / "large.npy", np.zeros((3, 4, 6)))
    with pytest.raises(ValueError, match="paths: size is 3×4×5 and 3×4×6, should be the same of all files"):
        crf.read_volume([tmp_path / "small.npy", tmp_path / "large.npy"])
    with pytest.raises(ValueError, match=r"spacing: is \(1, 2\), should be 3 positive numbers"):
        crf.read_volume(tmp_path / "small.npy", (1, 2))
    for labels, message in ((np.zeros((3, 4), int), "shape is"), (np.full((1, 1, 1), -1), "values are -1 to -1")):
        with pytest.raises(ValueError, match=f"labels: {message}"):
            volumes.write_labels(tmp_path / "new.npy", labels)
    with pytest.raises(ValueError, match=r"path: is .*new\.png"):
        volumes.write_labels(tmp_path / "new.png", np.zeros((3, 4, 5), int))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "volume.nii").write_bytes(b"")
    with pytest.raises(ModuleNotFoundError, match="NIfTI is read through nibabel, which is not installed"):
        crf.read_volume(tmp_path / "volume.nii")
    assert sorted(path.name for path in tmp_path.iterdir() if "new" in path.name) == []
