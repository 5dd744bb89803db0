"""Volumes in files: NIfTI (through nibabel, the extra `medical`) and `.npy`; read as arrays, labels written back.

In arrays the slowest axis comes first, (D, H, W) or z, y, x; NIfTI has them the other way round.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from deeplab_fast import files
from deeplab_fast.crf.refining import checked_spacing
from deeplab_fast.errors import ArgumentError, one_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "NIFTI_ENDINGS",
    "VOLUME_ENDINGS",
    "Volume",
    "is_volume_file",
    "labels_writer",
    "read_volume",
    "write_labels",
]

NIFTI_ENDINGS = (".nii", ".nii.gz")
VOLUME_ENDINGS = (*NIFTI_ENDINGS, ".npy")


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume, and where it lies.

    Attributes:
        values: float32 (C, D, H, W): C modalities, or K classes of scores.
        spacing: distance of neighbouring slices, rows and columns; millimetres, if the file says so.
        affine: (4, 4) float64, from voxel numbers (x, y, z) to the scanner's coordinates; None of a `.npy`.
    """

    values: NDArray[np.float32]
    spacing: tuple[float, float, float]
    affine: NDArray[np.float64] | None = None


def is_volume_file(path: str | os.PathLike[str]) -> bool:
    """Whether a name ends as that of NIfTI, which holds volumes and nothing else."""
    return os.fspath(path).lower().endswith(NIFTI_ENDINGS)


def read_volume(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], spacing: Sequence[float] | None = None
) -> Volume:
    """Read a volume, or its modalities from a file each.

    Args:
        paths: NIfTI of three axes, or of four, the last being modalities (or classes); or `.npy` (D, H, W) or
            (C, D, H, W), real numbers. Several are put together, and must be of one size, and NIfTI of one place.
        spacing: (depth, height, width); by default what NIfTI's header says, and 1 each for `.npy`.

    Raises:
        FileNotFoundError: for a missing file.
        ModuleNotFoundError: for NIfTI without nibabel, saying how to install it.
        ValueError: for another ending, an unreadable file, another number of axes, or files that do not fit.
    """
    parts = [_read(Path(path)) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    if not parts:
        raise ArgumentError("paths", paths, "at least one file")
    first = parts[0]
    for part in parts[1:]:
        if part.values.shape[1:] != first.values.shape[1:]:
            raise ArgumentError("paths", f"{_size(first)} and {_size(part)}", "the same of all files", what="size")
        if (
            part.affine is not None
            and first.affine is not None
            and not np.allclose(part.affine, first.affine, atol=1e-3)
        ):
            raise ArgumentError("paths", "different places in space", "in one, resampled", what="modalities")
    across = checked_spacing(first.spacing if spacing is None else spacing, 3)
    values = first.values if len(parts) == 1 else np.concatenate([part.values for part in parts])
    return Volume(values, across, first.affine)  # type: ignore[arg-type]


def write_labels(path: str | os.PathLike[str], labels: ArrayLike, like: Volume | None = None) -> None:
    """Write labels (D, H, W), whole or not at all; arguments and errors as those of `labels_writer`."""
    files.atomic_write(path, labels_writer(path, labels, like))


def labels_writer(
    path: str | os.PathLike[str], labels: ArrayLike, like: Volume | None = None
) -> Callable[[BinaryIO], object]:
    """A function that writes labels (D, H, W) to an open file, as NIfTI or `.npy`, whichever the name says.

    Args:
        path: ending in .nii, .nii.gz or .npy.
        labels: (D, H, W), integers of 0..65535; uint8 in the file where they fit.
        like: the volume that they belong to: its place and spacing are the file's.

    Raises:
        ModuleNotFoundError: for NIfTI without nibabel.
        ValueError: for another ending, shape or other labels.
    """
    path, labels = Path(path), np.asarray(labels)
    if not path.name.lower().endswith(VOLUME_ENDINGS):
        raise ArgumentError("path", str(path), f"a name that ends in {one_of(VOLUME_ENDINGS)}")
    if labels.ndim != 3 or labels.size == 0 or (like is not None and labels.shape != like.values.shape[1:]):
        wanted = "(D, H, W), not empty" if like is None else f"{like.values.shape[1:]}, as the volume"
        raise ArgumentError("labels", labels.shape, wanted, what="shape")
    if labels.dtype.kind not in "biu" or not 0 <= labels.min() <= labels.max() <= 65535:
        raise ArgumentError("labels", f"{labels.min()} to {labels.max()}", "integers of 0..65535", what="values")
    labels = labels.astype(np.uint8 if labels.max() <= 255 else np.uint16)
    if path.name.lower().endswith(NIFTI_ENDINGS):
        content = _nifti(labels, like, compressed=path.name.lower().endswith(".gz"))
    else:
        buffer = io.BytesIO()
        np.save(buffer, labels)
        content = buffer.getvalue()
    return files.writer_of(content)


def _size(volume: Volume) -> str:
    return "×".join(map(str, volume.values.shape[1:]))


def _read(path: Path) -> Volume:
    if not path.is_file():
        raise FileNotFoundError(f"volume not found: {path}")
    if is_volume_file(path):
        return _read_nifti(path)
    if path.suffix.lower() != ".npy":
        raise ArgumentError("paths", str(path), f"a name that ends in {one_of(VOLUME_ENDINGS)}")
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is no readable numpy file: {error}") from error
    return Volume(_modalities(path, values), (1.0, 1.0, 1.0))


def _modalities(path: Path, values: NDArray[Any]) -> NDArray[np.float32]:
    if values.ndim not in (3, 4) or values.size == 0 or values.dtype.kind not in "biuf":
        raise ValueError(
            f"{path}: shape is {values.shape}, dtype {values.dtype}, should be (D, H, W) or (C, D, H, W), real numbers"
        )
    return np.ascontiguousarray(values if values.ndim == 4 else values[None], np.float32)


def _read_nifti(path: Path) -> Volume:
    nibabel = _nibabel()
    try:
        image = nibabel.load(path)
        values = np.asanyarray(image.dataobj)
    except Exception as error:  # nibabel's own kinds, zlib's, struct's, …
        raise ValueError(f"{path} is no readable NIfTI file: {error}") from error
    if values.ndim == 5 and values.shape[3] == 1:  # vectors: the fourth axis is time
        values = values[:, :, :, 0]
    if values.ndim not in (3, 4):
        raise ValueError(f"{path}: has {values.ndim} axes, should have three, or four, the last being modalities")
    x, y, z = (float(zoom) for zoom in image.header.get_zooms()[:3])
    if not all(math.isfinite(zoom) and zoom > 0 for zoom in (x, y, z)):
        raise ValueError(f"{path}: spacing is {x}, {y}, {z}, should be positive")
    return Volume(_modalities(path, values.T), (z, y, x), np.asarray(image.affine, np.float64))


def _nifti(labels: NDArray[Any], like: Volume | None, compressed: bool) -> bytes:
    nibabel = _nibabel()
    spacing = (1.0, 1.0, 1.0) if like is None else like.spacing
    affine = None if like is None else like.affine
    image = nibabel.Nifti1Image(labels.T, np.diag([*spacing[::-1], 1.0]) if affine is None else affine)
    image.header.set_zooms(spacing[::-1])
    content: bytes = image.to_bytes()
    return gzip.compress(content, mtime=0) if compressed else content  # the same labels are the same bytes


def _nibabel() -> Any:
    if importlib.util.find_spec("nibabel") is None:
        raise ModuleNotFoundError("NIfTI is read through nibabel, which is not installed: pip install nibabel")
    import nibabel

    return nibabel
