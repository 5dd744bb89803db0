"""Scores in files: every format, dictionaries of some classes' maps, and what is refused without being run."""

from __future__ import annotations

import contextlib
import pickle
import struct

import numpy as np
import pytest

from deeplab_fast import scores, unpickling

MAPS = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
KEYS = np.array([0, 7, 14])


def saved(path, content):
    """Write an array or a dictionary in the format of the path's ending."""
    if path.suffix == ".npy":
        np.save(path, content, allow_pickle=True)
    elif path.suffix == ".npz":
        np.savez(path, **content)
    elif path.suffix == ".safetensors":
        pytest.importorskip("safetensors.numpy").save_file(content, path)
    else:
        torch = pytest.importorskip("torch")
        made = {name: torch.from_numpy(np.asarray(value)) for name, value in content.items()}
        torch.save(made if "keys" in made else made["logits"], path)
    return path


@pytest.mark.parametrize("ending", [".npz", ".pt", ".pth", ".safetensors"])
def test_every_format_holds_an_array(tmp_path, ending):
    stored = scores.read_stored(saved(tmp_path / f"a{ending}", {"logits": MAPS}))
    np.testing.assert_array_equal(stored.array, MAPS)
    assert stored.keys is None


@pytest.mark.parametrize("name", ["high_res", "scores"])
@pytest.mark.parametrize("ending", [".npy", ".npz", ".pt", ".safetensors"])
def test_every_format_holds_some_classes(tmp_path, ending, name):
    path = saved(tmp_path / f"a{ending}", {"keys": KEYS, name: MAPS})
    stored = scores.read_stored(path)
    np.testing.assert_array_equal(stored.array, MAPS)
    assert stored.keys is not None
    np.testing.assert_array_equal(stored.keys, KEYS)
    with pytest.raises(ValueError, match=r"with maps of the classes 0, 7, 14 only', should be maps of all"):
        scores.read_array(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_dictionaries_of_any_pickle_protocol(tmp_path, protocol):
    content = {"keys": [int(k) for k in KEYS], "cam": MAPS[:, ::2], "high_res": MAPS, "name": "2007_000032", "t": 0.5}
    header = "{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(117) + "\n"
    magic = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
    path = tmp_path / "a.npy"
    path.write_bytes(magic + pickle.dumps(np.array(content, object), protocol=protocol))
    stored = scores.read_stored(path)
    np.testing.assert_array_equal(stored.array, MAPS)
    np.testing.assert_array_equal(scores.read_stored(path, "cam").array, MAPS[:, ::2])
    path.write_bytes(
        magic + pickle.dumps(np.array({**content, "keys": KEYS[0], "high_res": MAPS[0]}, object), protocol)
    )
    np.testing.assert_array_equal(scores.read_stored(path).keys, [0])  # one number, as numpy pickles it


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_irn_stores_has_tensors_in_a_pickled_dictionary(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    content = {
        "keys": torch.tensor([3, 8, 14]),
        "cam": torch.from_numpy(MAPS).to(getattr(torch, dtype)),
        "high_res": MAPS,
    }
    np.save(tmp_path / "a.npy", content, allow_pickle=True)
    stored = scores.read_stored(tmp_path / "a.npy")
    np.testing.assert_array_equal(stored.array, MAPS)
    np.testing.assert_array_equal(stored.keys, [3, 8, 14])
    expected = torch.from_numpy(MAPS).to(getattr(torch, dtype)).float().numpy()
    np.testing.assert_array_equal(scores.read_stored(tmp_path / "a.npy", "cam").array.astype(np.float32), expected)
    # A view: its own strides and offset into memory that it shares.
    content["cam"] = torch.arange(60.0).view(3, 4, 5)[1:, :, ::2].transpose(1, 2)
    np.save(tmp_path / "a.npy", content, allow_pickle=True)
    np.testing.assert_array_equal(scores.read_stored(tmp_path / "a.npy", "cam").array, content["cam"].numpy())


def test_what_psa_stores_is_a_map_for_each_class(tmp_path):
    np.save(tmp_path / "a.npy", {14: MAPS[0], 3: MAPS[1]}, allow_pickle=True)
    stored = scores.read_stored(tmp_path / "a.npy")
    np.testing.assert_array_equal(stored.array, MAPS[[1, 0]])
    np.testing.assert_array_equal(stored.keys, [3, 14])


class Runs:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("ending", [".npy", ".pt", ".npz", ".safetensors"])
def test_no_code_is_run(tmp_path, ending):
    path, mark = tmp_path / f"a{ending}", tmp_path / "mark"
    if ending == ".pt":
        pytest.importorskip("torch").save({"keys": KEYS, "high_res": Runs(mark)}, path)
    elif ending == ".npy":
        np.save(path, {"keys": KEYS, "high_res": Runs(mark)}, allow_pickle=True)
    elif ending == ".npz":
        np.savez(path, keys=KEYS, high_res=np.array(Runs(mark), object))
    else:
        path.write_bytes(pickle.dumps(Runs(mark)))
    with pytest.raises((ValueError, ModuleNotFoundError)) as caught:
        scores.read_stored(path)
    assert not mark.exists()
    if ending == ".npy":
        assert "it asks for io.open, which is neither an array nor plain data" in str(caught.value)


def test_a_dtype_with_addresses_in_it_is_not_made(tmp_path):
    np.save(tmp_path / "a.npy", {"keys": KEYS, "high_res": np.array([None, "text"], object)}, allow_pickle=True)
    with pytest.raises(ValueError, match="holds no array"):
        scores.read_stored(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", {"high_res": np.zeros(3, "U4")}, allow_pickle=True)
    with pytest.raises(ValueError, match="an array that is not one of numbers"):
        scores.read_stored(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"keys": KEYS, "a": MAPS, "b": MAPS}, "key: is None, should be one of a, b, the arrays of"),
        ({"keys": KEYS.astype(float), "a": MAPS}, "keys: dtype is float64, 3 of them, should be numbers of classes"),
        ({"keys": KEYS[:0], "a": MAPS}, "keys: dtype is int64, 0 of them"),
        ({"keys": np.array([1, 1]), "a": MAPS}, "keys: values are 1, 1, should be different numbers"),
        ({"keys": np.array([-1, 1]), "a": MAPS}, "keys: values are -1, 1"),
        ({"keys": KEYS}, "holds no array"),
        ({1: MAPS[0], 2: MAPS[0, :2]}, "its maps have the shapes"),
        ({}, "holds no array"),
        ([1, 2], "no readable numpy file"),
    ],
)
def test_dictionaries_that_are_refused(tmp_path, content, message):
    path = tmp_path / "a.npy"
    np.save(path, np.array(content, object), allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        scores.read_stored(path)


def test_damaged_files_are_named(tmp_path):
    for ending in (".npy", ".npz", ".pt"):
        path = saved(tmp_path / f"a{ending}", {"keys": KEYS, "high_res": MAPS})
        whole = path.read_bytes()
        for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=r"input .*a\.\w+ is no readable (numpy|torch) file"):
                scores.read_stored(path)
        rng = np.random.default_rng(0)
        for _ in range(50):
            damaged = bytearray(whole)
            for place in rng.integers(0, len(whole), 5):
                damaged[place] = rng.integers(0, 256)
            path.write_bytes(bytes(damaged))
            with contextlib.suppress(ValueError):
                scores.read_stored(path)


def test_saved_scores_are_small_and_the_same_bytes_every_time(tmp_path):
    logits = np.random.default_rng(0).normal(1000, 5, (21, 41, 41)).astype(np.float32)
    scores.save_scores(tmp_path / "a.npz", logits)
    scores.save_scores(tmp_path / "b.npz", logits)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert (tmp_path / "a.npz").stat().st_size < logits.nbytes / 2
    read = scores.read_scores(tmp_path / "a.npz", (321, 321), classes=21)
    assert read.kind == "logits"
    np.testing.assert_allclose(read.values, logits - logits.max(axis=0), rtol=1e-3)


def test_resizing_is_that_of_torch():
    torch = pytest.importorskip("torch")
    for old, new in (((4, 5), (32, 40)), ((4, 5), (29, 41)), ((1, 1), (7, 3)), ((4, 5), (4, 11)), ((9, 7), (4, 5))):
        maps = np.random.default_rng(0).normal(size=(3, *old)).astype(np.float32)
        expected = torch.nn.functional.interpolate(torch.from_numpy(maps)[None], new, mode="bilinear")[0]
        np.testing.assert_allclose(scores.resize_scores(maps, new), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_plain_pickles_hold_plain_data(tmp_path):
    content = {"a": [1, 2.5, None, True, "text", b"bytes", (1, 2)], "b": np.float32(3)}
    path = tmp_path / "a.pickle"
    path.write_bytes(pickle.dumps(content))
    with open(path, "rb") as file:
        read = unpickling.read_plain(file)
    assert read == {"a": [1, 2.5, None, True, "text", b"bytes", [1, 2]], "b": 3.0}
