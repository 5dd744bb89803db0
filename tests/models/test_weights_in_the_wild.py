"""`models.load_weights` of other people's checkpoints: where the weights are in them; and of files that are none."""

from __future__ import annotations

import argparse
import collections
import datetime
import functools
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from small_weights import assert_same, small, written
from torch import Tensor, nn

from deeplab_fast import models


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in state.items()}


class Settings(dict):
    """A dictionary whose entries are attributes, as configurations are in many projects."""

    __getattr__ = dict.get


class Wrapped(nn.Module):
    """A network of another project that has ours in it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.zeros(3), persistent=False)
        self.activation = functools.partial(torch.clamp, min=0)


# --- Where the weights are -----------------------------------------------------------------------------------------


LAYOUTS = {
    "model and arguments": lambda state: {"model": state, "args": argparse.Namespace(out=Path("runs"), items=3)},
    "scores of numpy": lambda state: {
        "model": state,
        "best": np.float64(0.7),
        "miou": np.float32(0.6),
        "iou": np.ones(3),
        "others": [np.ones(2, np.longdouble), np.array([None, "a"]), np.array([b"a"]), np.ones(2, complex)],
    },
    "net": lambda state: {"net": state, "acc": 71.2, "epoch": 3},
    "model_state_dict": lambda state: {"epoch": 3, "model_state_dict": state, "loss": torch.tensor(0.3)},
    "nested": lambda state: {"checkpoint": {"weights": {"module": state}}},
    "a list": lambda state: [state, {"lr": 0.1}],
    "model.": lambda state: {"state_dict": prefixed(state, "model.")},
    "student.": lambda state: prefixed(state, "student."),
    "module.model.": lambda state: prefixed(state, "module.model."),
    "beside others": lambda state: {**prefixed(state, "backbone."), "loss.weight": torch.ones(3)},
    "compiled parts": lambda state: {
        key.replace("layer1.", "layer1._orig_mod."): tensor for key, tensor in prefixed(state, "_orig_mod.").items()
    },
    "objects": lambda state: {
        "config": Settings(lr=0.1, nested=Settings(a=1)),
        "history": collections.defaultdict(list, loss=[1.0]),
        "queue": collections.deque([1, 2]),
        "time": datetime.datetime(2020, 1, 1),
        "state_dict": state,
    },
    "optimizer": lambda state: {
        "model": state,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
    },
    "arrays": lambda state: {key: tensor.numpy() for key, tensor in state.items()},
    "arrays of other orders": lambda state: {
        key: tensor.numpy().astype(tensor.numpy().dtype.newbyteorder(">"), order="F") for key, tensor in state.items()
    },
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_finds_weights(layout: str, zipped: bool, tmp_path: Path):
    source, model = small(seed=1), small(seed=2)
    content = LAYOUTS[layout](source.state_dict())
    report = models.load_weights(model, written(tmp_path, content, _use_new_zipfile_serialization=zipped))
    assert_same(model, source.state_dict())
    assert report.loaded == len(source.state_dict())
    assert report.notes == []


def test_names_what_lies_beside(tmp_path: Path):
    content = {"model": small(seed=1).state_dict(), "criterion": {"weight": torch.ones(3)}}
    assert models.load_weights(small(), written(tmp_path, content)).ignored == ["criterion.weight"]


def test_takes_pickled_modules(tmp_path: Path):
    """Their classes are not imported: only their tensors are read."""
    source, model = small(seed=1), small(seed=2)
    models.load_weights(model, written(tmp_path, {"model": nn.DataParallel(Wrapped(source))}))
    assert_same(model, source.state_dict())


def test_takes_a_state_converted_as_a_whole(tmp_path: Path):
    source, model = small(seed=1), small(seed=2)
    for key, tensor in source.state_dict().items():
        if key.endswith("num_batches_tracked"):
            tensor.fill_(100_000 if "layer2" in key else 4000)
    report = models.load_weights(model, written(tmp_path, {k: v.half() for k, v in source.state_dict().items()}))
    assert torch.equal(model.base.aspp.c0.weight, source.base.aspp.c0.weight.half().float())
    assert model.base.layer1.conv1.bn.num_batches_tracked == 4000
    counter = model.base.layer2.block1.reduce.bn.num_batches_tracked
    assert (counter.dtype, counter.item()) == (torch.int64, 0)  # 100,000 is Inf in float16, and stays as it was
    assert report.ignored
    assert all("layer2" in key for key in report.ignored)


def test_takes_torchvisions_under_a_prefix(tmp_path: Path):
    """ResNet's names are not ours: they are found as torchvision's, two of them in one file by their key."""
    source = {"conv1.weight": torch.ones(1), "layer1.0.conv1.weight": torch.ones(1), "bn1.bias": torch.ones(1)}
    state = prefixed(source, "module.encoder_q.") | prefixed({k: 2 * v for k, v in source.items()}, "module.encoder_k.")
    path = written(tmp_path, {"state_dict": state})
    with pytest.raises(ValueError, match="holds weights for the model under 'encoder_q' and 'encoder_k'; pass key="):
        models.load_weights(small(), path)
    with pytest.raises(ValueError, match="are torchvision's, of a ResNet"):
        models.load_weights(small(), path, key="encoder_q")


def test_safetensors_by_content(tmp_path: Path):
    library = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    source, model = small(seed=1), small(seed=2)
    library.save_file(source.state_dict(), tmp_path / "weights.pth")
    models.load_weights(model, tmp_path / "weights.pth")
    assert_same(model, source.state_dict())
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "weights.pth").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cut\.safetensors: cannot be read as tensors, .*fetch it again$"):
        models.load_weights(model, tmp_path / "cut.safetensors")
    written(tmp_path, source.state_dict(), "weights.safetensors")
    models.load_weights(model, tmp_path / "weights.safetensors")


# --- More than one -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flat", [True, False])
def test_key_chooses(flat: bool, tmp_path: Path):
    states = {"student": small(seed=1).state_dict(), "teacher": small(seed=2).state_dict()}
    content = prefixed(states["student"], "student.") | prefixed(states["teacher"], "teacher.") if flat else states
    path, model = written(tmp_path, {"state_dict": content}), small(seed=3)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="holds weights for the model under 'student' and 'teacher'; pass key= to say"):
        models.load_weights(model, path)
    with pytest.raises(ValueError, match="has none for the model under the key 'ema'; there are weights under 'stu"):
        models.load_weights(model, path, key="ema")
    assert_same(model, before)
    for key, expected in {"teacher": "teacher", "state_dict.student": "student"}.items():
        models.load_weights(model, path, key=key)
        assert_same(model, states[expected])


def test_key_of_the_outermost_names(tmp_path: Path):
    state, mean = small(seed=1).state_dict(), small(seed=2).state_dict()
    path, model = written(tmp_path, {**state, "ema": mean}), small(seed=3)
    with pytest.raises(ValueError, match="under 'base' and 'ema'; pass key="):
        models.load_weights(model, path)
    for key, expected in {"base": state, "ema": mean}.items():
        models.load_weights(model, path, key=key)
        assert_same(model, expected)


def test_several_that_are_equal_or_do_not_fit(tmp_path: Path):
    state, model = small(seed=1).state_dict(), small(seed=2)
    models.load_weights(
        model, written(tmp_path, {"model": state, "model_ema": {k: v.clone() for k, v in state.items()}})
    )
    assert_same(model, state)
    path = written(tmp_path, {"model": state, "pretrained": small(5).state_dict()})
    for network, taken, other in ((small(3), "model", "pretrained"), (small(5), "pretrained", "model")):
        notes = [f"weights under '{taken}' taken; those under '{other}' fit less"]
        assert models.load_weights(network, path).notes == notes
        assert models.load_weights(network, path, key=taken).notes == []


# --- What is no number ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["base.layer2.block1.reduce.conv.weight", "base.layer1.conv1.bn.running_var"])
def test_refuses_what_is_not_finite(name: str, value: float, tmp_path: Path):
    state, model = small(seed=1).state_dict(), small(seed=2)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state[name].view(-1)[1:3] = value
    state["base.layer5.block1.reduce.bn.bias"][0] = value
    message = rf"{name} has 2 of \d+ values that are NaN or Inf \(and 1 more tensors have such\)"
    with pytest.raises(ValueError, match=message):
        models.load_weights(model, written(tmp_path, state))
    assert_same(model, before)


def test_finite_as_the_model_will_have_it(tmp_path: Path):
    state = {key: t.double() if t.is_floating_point() else t for key, t in small(seed=1).state_dict().items()}
    state["base.aspp.c0.bias"][0] = 1e300
    with pytest.raises(ValueError, match=r"base\.aspp\.c0\.bias has 1 of 3 values"):
        models.load_weights(small(), written(tmp_path, state))


def test_what_is_left_out_may_be_anything(tmp_path: Path):
    state = small(5, seed=1).state_dict()
    state["base.aspp.c0.bias"][0] = float("nan")
    models.load_weights(
        small(3), written(tmp_path, {"model": state, "loss": torch.tensor(float("nan"))}), classifier="fresh"
    )


def test_refuses_tensors_that_are_no_arrays(tmp_path: Path):
    state = small(seed=1).state_dict()
    state["base.aspp.c0.bias"] = state["base.aspp.c0.bias"].to_sparse()
    with pytest.raises(ValueError, match=r"base\.aspp\.c0\.bias is torch\.sparse_coo \(3,\), should be torch\.strided"):
        models.load_weights(small(), written(tmp_path, state))
    state["base.aspp.c0.bias"] = torch.zeros(3, device="meta")
    with pytest.raises(ValueError, match=r"base\.aspp\.c0\.bias has no data"):
        models.load_weights(small(), written(tmp_path, state))


# --- Files that are no weights -------------------------------------------------------------------------------------


class Malicious:
    """Runs a command when unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class Evaluates(Malicious):
    """Runs Python when unpickled."""

    def __reduce__(self):
        return eval, (f"__import__('pathlib').Path({self.command!r}).touch()",)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_is_run(zipped: bool, tmp_path: Path):
    state, made = small(seed=1).state_dict(), tmp_path / "made"
    for content, name in ((Malicious(f"touch {made}"), f"{os.name}.system"), (Evaluates(str(made)), "builtins.eval")):
        path = written(tmp_path, {"model": state, "note": content}, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=rf"would run code when unpickled \({name}\), .*do not use it$"):
            models.load_weights(small(), path)
    assert not made.exists()


def test_code_by_other_names_is_not_run_either(tmp_path: Path):
    """Whatever a file names, it is not imported: what it would make is an empty dictionary."""

    class Calls:
        def __reduce__(self):
            return unlikely, (str(tmp_path / "made"),)

    state, model = small(seed=1).state_dict(), small(seed=2)
    models.load_weights(model, written(tmp_path, {"model": state, "note": Calls()}))
    assert_same(model, state)
    assert not (tmp_path / "made").exists()


def unlikely(path: str) -> None:
    Path(path).touch()


def test_allows_nothing_afterwards(tmp_path: Path):
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        before = set(torch.serialization.get_safe_globals())
        models.load_weights(small(), written(tmp_path, LAYOUTS["model and arguments"](small().state_dict())))
        assert set(torch.serialization.get_safe_globals()) == before
    finally:
        torch.serialization.clear_safe_globals()


def no_weights(folder: Path) -> dict[str, str]:
    """Files that are no weights, by name, and what the error says of each."""
    whole = written(folder, small().state_dict(), "whole.pth").read_bytes()
    old = written(folder, small().state_dict(), "old.pth", _use_new_zipfile_serialization=False).read_bytes()
    files = {
        "empty.pth": (b"", "is empty; fetch it again"),
        "empty.caffemodel": (b"", "is empty; fetch it again"),
        "text.pth": (b"no weights\n", "is a text that begins with 'no weights', not a file of weights; fetch it again"),
        "login.pth": (b"\n<!DOCTYPE html>\n<html><title>Sign in</title>", "is a web page, .*; fetch the file itself"),
        "login.caffemodel": (b"<html><body>", "is a web page"),
        "denied.safetensors": (b"<?xml version='1.0'?><Error>", "is a web page"),
        "lfs.pth": (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "is a pointer of Git LFS.*git lfs pull`",
        ),
        "packed.pth": (b"\x1f\x8b\x08\x00", r"is an archive \(gzip or tar\); unpack it"),
        "keras.pth": (b"\x89HDF\r\n\x1a\n\0\0", "is an HDF5 file"),
        "picture.pth": (b"\xff\xd8\xff\xe0\0\x10JFIF", r"is not a file of weights: it begins with b'\\xff\\xd8"),
        "cut.pth": (whole[: len(whole) // 2], r"is cut short: .* after [\d,]+ bytes; fetch it again"),
        "cut-old.pth": (
            old[: len(old) // 2],
            "cannot be read as tensors, it may be damaged or cut short .*; fetch it again",
        ),
        "pickle.pth": (pickle.dumps({"model": {}}), "is a pickle that torch.save did not write; where it was made"),
    }
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    np.savez(folder / "arrays.pth", weight=np.ones(3))
    (folder / "arrays.npz.pth").write_bytes((folder / "arrays.pth.npz").read_bytes())
    with zipfile.ZipFile(folder / "zipped.pth", "w") as archive:
        archive.writestr("model/readme.txt", "weights")
    with zipfile.ZipFile(folder / "program.pth", "w") as archive:
        for name in ("data.pkl", "code/__torch__.py", "constants.pkl"):
            archive.writestr(f"program/{name}", "")
    written(folder, small().state_dict(), "protocol.pth", pickle_protocol=4)
    made = {
        "arrays.npz.pth": r"holds arrays of numpy \(npz\)",
        "zipped.pth": "is a zip archive of model/readme.txt, not one of torch.save; unpack it",
        "program.pth": "is a TorchScript program, not its weights; save those",
        "protocol.pth": "was written with another pickle protocol than torch.save's own; write it again",
    }
    return {name: said for name, (_, said) in files.items()} | made


def test_says_what_a_file_is(tmp_path: Path):
    model = small()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for name, said in no_weights(tmp_path).items():
        with pytest.raises(ValueError, match=rf"^weights .*{name}: {said}") as error:
            models.load_weights(model, tmp_path / name)
        assert "\n" not in str(error.value)
        assert "weights_only" not in str(error.value)
    assert_same(model, before)


def test_paths_that_are_no_files(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"weights not found: .*none\.pth"):
        models.load_weights(small(), tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"weights .*: is a folder, should be a file"):
        models.load_weights(small(), tmp_path)


def test_files_without_tensors(tmp_path: Path):
    itself: dict[str, object] = {}
    itself["self"] = itself
    for content, message in (
        ([1, 2], "holds a list, should hold tensors by name"),
        (torch.zeros(3), "holds a Tensor, should hold tensors by name"),
        ({}, "holds nothing, should hold tensors by name"),
        ({"epoch": 3, "args": argparse.Namespace()}, "holds 'epoch', 'args', should hold tensors by name"),
        (itself, "holds itself"),
        ({"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1)}, "has two tensors of the name 'a.b'"),
        ({"epoch": 3, "head": torch.zeros(1)}, "do not fit the model: missing .*; unexpected base.head"),
    ):
        with pytest.raises(ValueError, match=message):
            models.load_weights(small(), written(tmp_path, content))
