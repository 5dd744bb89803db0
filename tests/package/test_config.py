"""Configuration files: what is read, and what errors say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deeplab_fast.config import Config, DataConfig, build, device, parse_config, read_config
from deeplab_fast.crf import PRESETS

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
DATA = "data: {kind: voc12, root: VOC2012}\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "own.yaml"
    path.write_text(text)
    return path


def test_there_are_configurations():
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_read(path):
    config = read_config(path)
    assert build.make_crf(config.crf) is not None
    again = parse_config(config.model_dump(mode="json"), "checkpoint")
    assert again == config
    with torch.device("meta"):
        build.make_model(config.model.model_copy(update={"weights": None}), 3)


def test_defaults_are_the_published_recipe(tmp_path):
    recipe = read_config(written(tmp_path, DATA)).training
    assert (recipe.iterations, recipe.batch_size, recipe.accumulation, recipe.crop) == (20_000, 5, 2, 321)
    assert (recipe.lr, recipe.momentum, recipe.weight_decay, recipe.power) == (2.5e-4, 0.9, 5e-4, 0.9)
    assert recipe.lr_every == 10
    assert recipe.scales == [0.5, 0.75, 1, 1.25, 1.5]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (DATA + "trainig: {lr: 1}", "trainig: is unknown"),
        (DATA + "training: {learning_rate: 1}", "training.learning_rate: is unknown"),
        (DATA + "training: {lr: 0}", "training.lr: is 0: input should be greater than 0"),
        (DATA + "training: {momentum: 1}", "training.momentum: is 1: input should be less than 1"),
        (DATA + "training: {weight_decay: -1}", "training.weight_decay: is -1"),
        (DATA + "training: {weight_decay: .nan}", "training.weight_decay: is nan"),
        (DATA + "training: {iterations: 0}", "training.iterations: is 0"),
        (DATA + "training: {batch_size: 2.5}", "training.batch_size: is 2.5: input should be a valid integer"),
        (DATA + "training: {lr: fast}", "training.lr: is 'fast': input should be a valid number"),
        (DATA + "training: {scales: []}", "training.scales: is []"),
        (DATA + "training: {scales: [1, -1]}", "training.scales.1: is -1"),
        (DATA + "training: {precision: float8}", "training.precision: is 'float8'"),
        (DATA + "training: {crf_loss: {sigma_rgb: 0}}", "training.crf_loss.sigma_rgb: is 0"),
        (DATA + "crf: {iterations: -1}", "crf.iterations: is -1"),
        (DATA + "crf: {preset: best}", "crf.preset: is 'best': input should be 'deeplab', 'irn', 'psa', 'afa', 'toco"),
        (DATA + "model: {pixels: grey}", "model.pixels: is 'grey'"),
        (DATA + "seed: -1", "seed: is -1"),
        ("seed: 1", "data: is missing"),
        ("data: {root: here}", "data.kind: is missing"),
        ("data: {kind: voc13, root: here}", "data.kind: is 'voc13'"),
        ("data: {kind: voc12}", "data: kind voc12 needs root"),
        ("data: {kind: voc12, root: here, classes: [a]}", "data: classes belong to kind folder, the kind is voc12"),
        ("data: {kind: voc12, root: here, generate: {}}", "data: generate belongs to kind shapes"),
        ("data: {kind: folder}", "data: kind folder needs images, labels, classes"),
        ("data: {kind: folder, images: a, classes: [b]}", "data: kind folder needs labels"),
        ("data: {kind: folder, images: a, labels: b, classes: 3}", "data.classes: is 3"),
        ("data: 3", "data: is 3"),
    ],
)
def test_errors_name_file_and_entry(tmp_path, text, said):
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=r"^configuration ") as caught:
        read_config(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_every_wrong_entry_is_named(tmp_path):
    with pytest.raises(ValueError, match="unknown") as caught:
        read_config(written(tmp_path, DATA + "training: {lr: -1, crop: 0, size: 3}"))
    for entry in ("training.lr", "training.crop", "training.size"):
        assert entry in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"- data", b"data: {kind: [", b"\xff\xfe", b"text"])
def test_no_configuration(tmp_path, content):
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^configuration .*own\.yaml: (is no readable YAML|should hold sections)"):
        read_config(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"configuration not found: .*absent\.yaml"):
        read_config(tmp_path / "absent.yaml")


def test_folder(tmp_path):
    text = "data: {kind: folder, images: a, labels: b, classes: [sky, tree], palette: [[0, 0, 0], [1, 2, 3]]}"
    read = read_config(written(tmp_path, text)).data
    assert read.classes == ["sky", "tree"]
    assert read.palette == [(0, 0, 0), (1, 2, 3)]
    assert read.ignore_index == 255


# --- Overrides -----------------------------------------------------------------------------------------------------


def test_overrides_replace_entries(tmp_path):
    path = written(tmp_path, DATA + "training: {lr: 0.1, crop: 65}")
    overrides = ["training.lr=1e-3", "model.options={msc: false}", "crf.bi_w=2", "seed=7", "data.root=else=where"]
    config = read_config(path, overrides)
    assert config.training.lr == 1e-3
    assert config.training.crop == 65
    assert config.model.options == {"msc": False}
    assert config.crf.bi_w == 2
    assert config.seed == 7
    assert config.data.root == Path("else=where")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.lr", "overrides: is 'training.lr', should be like training.lr=0.001"),
        ("=3", "overrides: is '=3'"),
        ("training..lr=3", "overrides: is 'training..lr=3'"),
        ("training.lr.more=3", "should be about an entry, lr is no section"),
        ("training.lr=[", "should be YAML after the ="),
        ("training.lr=-1", "training.lr: is -1"),
        ("training.rate=1", "training.rate: is unknown"),
    ],
)
def test_wrong_overrides(tmp_path, override, said):
    with pytest.raises(ValueError, match=r"^(overrides|configuration)") as caught:
        read_config(written(tmp_path, DATA + "training: {lr: 0.1}"), [override])
    assert said in str(caught.value)


# --- What is made from it ------------------------------------------------------------------------------------------


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert device.device_of("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="device: is 'cuda', should be one of the 0 GPUs that torch finds"):
        device.device_of("cuda")
    with pytest.raises(ValueError, match="device: is 'graphics'"):
        device.device_of("graphics")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert device.device_of("auto") == torch.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device.device_of("auto") == device.device_of("cuda") == torch.device("cuda:3")
    assert device.device_of("cuda:1") == torch.device("cuda:1")


def test_shapes_are_written_once(tmp_path):
    entries = {"kind": "shapes", "root": str(tmp_path / "new" / "set"), "generate": {"train": 2, "val": 1}}
    config = parse_config({"data": entries}, "test")
    assert isinstance(config, Config)
    assert len(build.make_dataset(config.data, "train")) == 2
    marker = tmp_path / "new" / "set" / "shapes.json"
    before = marker.stat().st_mtime_ns
    assert len(build.make_dataset(config.data, "val")) == 1
    assert marker.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", PRESETS)
def test_crf_presets(name):
    crf = parse_config({"data": {"kind": "voc12", "root": "x"}, "crf": {"preset": name, "iterations": 3}}, "test").crf
    assert "iterations=3" in repr(build.make_crf(crf))


def test_another_set_of_shapes_is_not_taken_for_the_one_wanted(tmp_path):
    entries = {"kind": "shapes", "root": tmp_path / "set", "generate": {"train": 2, "val": 1, "size": (64, 48)}}
    assert len(build.make_dataset(DataConfig(**entries), "train")) == 2
    entries["generate"]["train"] = 3
    with pytest.raises(ValueError, match=r"set: was made with train 2, should have train 3: delete it, or choose"):
        build.make_dataset(DataConfig(**entries), "train")


def test_entries_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="ignore_index belong to kind folder, the kind is voc12"):
        DataConfig(kind="voc12", root="here", ignore_index=254)
    with pytest.raises(ValueError, match="root belongs to the other kinds"):
        DataConfig(kind="folder", root="here", images="i", labels="l", classes=["a"])
