"""Arrays of scores from files, `.npy`, `.npz`, `.pt`, `.safetensors`, and dictionaries with those of some classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from deeplab_fast import unpickling
from deeplab_fast.errors import ArgumentError, at
from deeplab_fast.scores.meaning import ScoreMap, as_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUMPY_ENDINGS = (".npy", ".npz")
TORCH_ENDINGS = (".pt", ".pth")
ARRAY_ENDINGS = (*NUMPY_ENDINGS, *TORCH_ENDINGS, ".safetensors")
# In files of several arrays: the class numbers of the maps; and what is taken first of maps that it could belong to.
KEYS = "keys"
PREFERRED = ("high_res",)


@dataclass(frozen=True, eq=False)
class StoredScores:
    """What a file holds for an image.

    Attributes:
        array: scores or labels, of any dtype and shape.
        keys: whole numbers, those of the classes that the array has maps of, in their order; None where it has all.
    """

    array: NDArray[Any]
    keys: NDArray[np.int64] | None = None


def find_scores(folder: Path, name: str) -> Path | None:
    """The file in a folder that has the scores of an image, by the image's name; None if there is none."""
    return next((path for path in (folder / f"{name}{end}" for end in ARRAY_ENDINGS) if path.is_file()), None)


def read_array(path: Path, key: str | None = None) -> NDArray[Any]:
    """Read one array of a file; ``key`` names it where the file holds several.

    Raises:
        FileNotFoundError, ModuleNotFoundError, ValueError: as `read_stored` does; ValueError also for a file that
            has the maps of some classes only.
    """
    stored = read_stored(path, key)
    if stored.keys is not None:
        raise ArgumentError("input", f"{path}, with maps of the classes {_shown(stored.keys)} only", "maps of all")
    return stored.array


def read_stored(path: Path, key: str | None = None) -> StoredScores:
    """Read an image's scores or labels.

    `.npy`: an array, or a pickled dictionary, of which nothing is run: see `deeplab_fast.unpickling`. `.npz`, `.pt`,
    `.pth`, `.safetensors`: an array, or several by name. Among several, `keys` are the numbers of the classes that
    another one has the maps of, as in `{"keys": (k,), "high_res": (k, h, w)}`; a dictionary whose own keys are numbers
    has one map, (h, w), for each.

    Args:
        path: the file.
        key: name of the array, where it is neither the only one nor called high_res.

    Raises:
        FileNotFoundError: if there is no such file.
        ModuleNotFoundError: if torch or safetensors is needed to read it, and missing.
        ValueError: if it is no such file, holds other objects, or it is not clear which array is meant.
    """
    if not path.exists():
        raise FileNotFoundError(f"input not found: {path}")
    ending = path.suffix.lower()
    kind = "numpy" if ending in NUMPY_ENDINGS else "torch" if ending in TORCH_ENDINGS else "safetensors"
    reader = {"numpy": _numpy, "torch": _torch, "safetensors": _safetensors}[kind]
    try:
        return _stored(path, reader(path, key), key)
    except (PermissionError, MemoryError, ModuleNotFoundError, ArgumentError):
        raise
    except (
        Exception
    ) as error:  # damaged files raise EOFError, BadZipFile, zlib.error, UnpicklingError, KeyError and more
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"input {path} is no readable {kind} file: {text}") from error


def _stored(path: Path, content: Any, key: str | None) -> StoredScores:
    if isinstance(content, np.ndarray):
        return StoredScores(content)
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}, neither an array nor several by name")
    if content and key is None and all(isinstance(name, int) for name in content):
        return _by_class(content)
    arrays = {str(name): value for name, value in content.items() if isinstance(value, np.ndarray)}
    keys = content.get(KEYS) if key != KEYS else None
    others = [name for name in arrays if name != KEYS or keys is None]
    array = arrays[_chosen(path, others, key)]
    return StoredScores(array, None if keys is None else _class_numbers(keys))


def _by_class(content: Mapping[Any, Any]) -> StoredScores:
    """A map (h, w) for each class, by its number."""
    numbers = sorted(content)
    maps = [np.asarray(content[number]) for number in numbers]
    if any(one.ndim != 2 or one.shape != maps[0].shape for one in maps):
        raise ValueError(f"its maps have the shapes {sorted({one.shape for one in maps})}, should have one, (H, W)")
    return StoredScores(np.stack(maps), _class_numbers(numbers))


def _class_numbers(keys: Any) -> NDArray[np.int64]:
    numbers = np.atleast_1d(np.asarray(keys)).ravel()
    if numbers.dtype.kind not in "iu" or numbers.size == 0:
        raise ArgumentError(KEYS, f"{numbers.dtype}, {numbers.size} of them", "numbers of classes", what="dtype")
    if numbers.min() < 0 or len(np.unique(numbers)) < numbers.size:
        raise ArgumentError(KEYS, _shown(numbers), "different numbers of classes, 0 or more", what="values")
    return numbers.astype(np.int64)


def _shown(numbers: NDArray[Any]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", …" if len(numbers) > 8 else "")


def _chosen(path: Path, names: Sequence[str], key: str | None) -> str:
    if key is not None:
        if key not in names:
            raise ArgumentError("key", key, f"one of {', '.join(names)}, the arrays of {path}")
        return key
    preferred = [name for name in PREFERRED if name in names]
    if len(names) != 1 and not preferred:
        if not names:
            raise ValueError("it holds no array")
        raise ArgumentError("key", None, f"one of {', '.join(names)}, the arrays of {path}")
    return preferred[0] if preferred else names[0]


# ------------------------------------------------------------------------------------------------------ by ending


def _numpy(path: Path, key: str | None) -> Any:
    with open(path, "rb") as file:
        if path.suffix.lower() == ".npy" and _holds_objects(file):
            content = unpickling.read_plain(file)  # an array of one dictionary
            if not (isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict)):
                raise ValueError("it holds an array of Python objects that is not one dictionary")
            return content[0]
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        # Only what is wanted: the others may be large.
        names = [name for name in loaded.files if name != KEYS or key == KEYS]
        wanted = {_chosen(path, names, key), *({KEYS} & {*loaded.files})}
        return {name: loaded[name] for name in wanted}


def _holds_objects(file: BinaryIO) -> bool:
    """Whether a `.npy` file holds an array of Python objects; if so, the file is read up to where they are pickled."""
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        _, _, dtype = headers[np.lib.format.read_magic(file)](file)
    except (ValueError, KeyError):
        return False  # numpy says what is wrong with it
    return dtype.hasobject and dtype.fields is None


def _torch(path: Path, key: str | None) -> Any:
    try:
        import torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"to read {path}, install torch: pip install torch") from None

    def as_arrays(content: Any) -> Any:
        if isinstance(content, torch.Tensor):
            content = content.detach()
            # numpy has no bfloat16.
            return (content.float() if content.dtype == torch.bfloat16 else content).numpy()
        if isinstance(content, unpickling.Array):
            return content.values
        if isinstance(content, Mapping):
            return {name: as_arrays(value) for name, value in content.items()}
        return content

    with open(path, "rb") as file:
        if file.read(1) not in (b"P", b"\x80"):  # a zip archive, or a pickle
            raise ValueError("torch.save did not write it")
    return as_arrays(unpickling.read_torch(path))


def _safetensors(path: Path, key: str | None) -> Any:
    try:
        from safetensors.numpy import load_file
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"to read {path}, install safetensors: pip install safetensors") from None
    return load_file(path)


def read_scores(
    path: Path,
    size: tuple[int, int],
    *,
    kind: str = "auto",
    layout: str = "auto",
    key: str | None = None,
    classes: int | None = None,
) -> ScoreMap:
    """Read the scores of an image of size (H, W) from a file; see `read_array` and `as_scores`.

    Raises:
        FileNotFoundError, TypeError, ValueError: as these do; the message names the file.
    """
    array = read_array(path, key)
    try:
        return as_scores(array, size, kind=kind, layout=layout, classes=classes)
    except (TypeError, ValueError) as error:
        raise at(path, error) from error
