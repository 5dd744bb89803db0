"""A training that is interrupted and resumed gives the bits of one that is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_trainings import differences, logged, make_with_dropout, small_config, write_set

from deeplab_fast.config import Config, parse_config
from deeplab_fast.data import write_shapes
from deeplab_fast.training import checkpoints, train

STEPS = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("resume"))


def in_one_go_and_in_parts(first: Config, second: Config, parts: list[int]) -> None:
    """Train both, the second in parts, and compare all they leave."""
    train(first, quiet=True)
    for number, stop in enumerate(parts):
        train(second, quiet=True, resume=number > 0, stop_after=stop)
    train(second, quiet=True, resume=True)
    whole, resumed = (checkpoints.load(config.output / "last.pth") for config in (first, second))
    assert whole["step"] == resumed["step"] == first.training.iterations
    assert whole["optimizer"]["state"]  # momentum
    for key in ("model", "optimizer", "scheduler", "scaler", "sampler", "random", "best", "mean_iou"):
        assert differences(whole[key], resumed[key], key) == []
    assert logged(first.output) == logged(second.output)


@pytest.mark.parametrize(
    ("options", "recipe"),
    [
        ({"msc": True}, {"accumulation": 2}),
        ({"msc": False}, {"workers": 1, "evaluate_every": 2}),
    ],
    ids=["msc", "worker"],
)
def test_resumed_network_has_the_same_bits(root, tmp_path, options, recipe):
    configs = [small_config(root, tmp_path / name, options, iterations=STEPS, **recipe) for name in ("whole", "parts")]
    in_one_go_and_in_parts(*configs, parts=[3])


@pytest.mark.parametrize("workers", [0, 1])
def test_dropout_goes_on(root, tmp_path, monkeypatch, workers):
    monkeypatch.setattr("deeplab_fast.training.trainer.make_model", make_with_dropout)
    recipe = {"iterations": 3 * STEPS, "workers": workers, "evaluate_every": 5}
    configs = [small_config(root, tmp_path / name, **recipe) for name in ("whole", "parts")]
    in_one_go_and_in_parts(*configs, parts=[1, 7, 16])


def test_steps_after_the_checkpoint_are_logged_once(root, tmp_path, monkeypatch):
    """As after a kill: the log is ahead of the checkpoint."""
    monkeypatch.setattr("deeplab_fast.training.trainer.make_model", make_with_dropout)
    config = small_config(root, tmp_path, iterations=6, evaluate_every=3)
    train(config, quiet=True, stop_after=4)
    ahead = (tmp_path / "log.csv").read_text().splitlines(keepends=True)[-1].split(",", 1)[1]
    with open(tmp_path / "log.csv", "a", newline="") as file:
        file.write(f"5,{ahead}6,{ahead}6,0.1")  # the last line was cut off
    train(config, quiet=True, resume=True)
    steps = [line[0] for line in logged(tmp_path)]
    assert steps == ["1", "2", "3", "3", "4", "5", "6", "6"]  # 3 and 6 have a line of the evaluation, too


def test_finished_training_stays(root, tmp_path, monkeypatch):
    monkeypatch.setattr("deeplab_fast.training.trainer.make_model", make_with_dropout)
    config = small_config(root, tmp_path, iterations=3, evaluate_every=3)
    first = train(config, quiet=True)
    files = {path: path.read_bytes() for path in Path(tmp_path).iterdir()}
    assert train(config, quiet=True, resume=True) == first
    assert {path: path.read_bytes() for path in Path(tmp_path).iterdir()} == files
    assert first.mean_iou is not None
    assert first.best == tmp_path / "best.pth"


def test_first_weights_may_be_gone(root, tmp_path):
    train(small_config(root, tmp_path / "before", iterations=1), quiet=True)
    weights = tmp_path / "before" / "last.pth"
    entries = small_config(root, tmp_path / "after", iterations=2).model_dump(mode="json")
    entries["model"]["weights"] = str(weights)
    config = parse_config(entries, "test")
    train(config, quiet=True, stop_after=1)
    weights.unlink()
    assert train(config, quiet=True, resume=True).step == 2


# --- What is refused -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def begun(root, tmp_path_factory):
    """The output of a training that was interrupted."""
    output = tmp_path_factory.mktemp("begun")
    train(small_config(root, output), quiet=True, stop_after=1)
    return output


@pytest.mark.parametrize(
    ("section", "changes", "said"),
    [
        ("model", {"name": "unet", "options": {}}, "model.name: is 'unet', should be 'deeplabv2_small'"),
        ("model", {"options": {"msc": True}}, "model.options: is {'msc': True}, should be {'msc': False}"),
        ("training", {"iterations": 5}, "training.iterations: is 5, should be 4"),
        ("training", {"lr": 0.5}, "training.lr: is 0.5, should be 0.0005"),
        ("training", {"weight_decay": 0.5}, "training.weight_decay: is 0.5"),
        ("training", {"optimizer": "adamw"}, "training.optimizer: is 'adamw', should be 'sgd'"),
        ("training", {"warmup": 2}, "training.warmup: is 2, should be 0"),
        ("training", {"lr_every": 3}, "training.lr_every: is 3, should be 1"),
        ("training", {"classifier_factor": 1}, "training.classifier_factor: is 1.0, should be 10"),
        (None, {"seed": 5}, "seed: is 5, should be 0"),
    ],
)
def test_another_training_is_not_resumed(root, begun, section, changes, said):
    before = (begun / "last.pth").read_bytes()
    entries = small_config(root, begun).model_dump(mode="json")
    (entries[section] if section else entries).update(changes)
    with pytest.raises(ValueError, match="as in the checkpoint") as caught:
        train(parse_config(entries, "test"), quiet=True, resume=True)
    assert said in str(caught.value)
    assert (begun / "last.pth").read_bytes() == before


def test_another_list_of_samples_is_not_resumed(root, begun, tmp_path):
    fewer = write_shapes(tmp_path / "fewer", train=4, val=4, size=(64, 48))
    with pytest.raises(ValueError, match=r"data\.train: number of samples is 4, should be 8"):
        train(small_config(fewer, begun), quiet=True, resume=True)


def test_output_is_not_overwritten(root, begun):
    before = {path: path.read_bytes() for path in begun.iterdir()}
    with pytest.raises(FileExistsError, match=r"last\.pth exists; go on from it \(--resume\) or choose another folder"):
        train(small_config(root, begun), quiet=True)
    assert {path: path.read_bytes() for path in begun.iterdir()} == before


def test_nothing_to_resume(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint not found: .*last\.pth"):
        train(small_config(root, tmp_path), quiet=True, resume=True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no checkpoint", "is a text that begins with 'no checkpoint'"),
        (b"", "is empty"),
        ({"model": {}}, "has no optimizer, scheduler, sampler, step"),
        ([1], "has no model"),
    ],
)
def test_no_checkpoint(root, tmp_path, content, said):
    if isinstance(content, bytes):
        (tmp_path / "last.pth").write_bytes(content)
    else:
        torch.save(content, tmp_path / "last.pth")
    with pytest.raises(ValueError, match=rf"checkpoint .*last\.pth.* {said}"):
        train(small_config(root, tmp_path), quiet=True, resume=True)


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_checkpoint_that_is_not_finite(root, begun, tmp_path, part):
    content = torch.load(begun / "last.pth", weights_only=True)
    tensors = content["model"] if part == "model" else content["optimizer"]["state"][0]
    name = "layer1.conv1.conv.weight" if part == "model" else "momentum_buffer"
    tensors[name][0, 0, 0, 0] = float("nan")
    torch.save(content, tmp_path / "last.pth")
    with pytest.raises(ValueError, match=rf"checkpoint .*last\.pth: {part}\..*{name} has 1 of \d+ values that are NaN"):
        train(small_config(root, tmp_path), quiet=True, resume=True)


@pytest.mark.parametrize("stop", [0, -3])
def test_stop_after_at_least_one_step(root, tmp_path, stop):
    with pytest.raises(ValueError, match=rf"stop_after: is {stop}, should be at least 1"):
        train(small_config(root, tmp_path), quiet=True, stop_after=stop)
    assert list(tmp_path.iterdir()) == []


# --- Variants of the recipe ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_near_float32(root, tmp_path, precision):
    losses = []
    for name in ("float32", precision):
        train(small_config(root, tmp_path / name, iterations=3, precision=name, evaluate_every=3), quiet=True)
        losses.append([float(line[1]) for line in logged(tmp_path / name) if line[1]])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]
    scaler = checkpoints.load(tmp_path / precision / "last.pth")["scaler"]
    assert bool(scaler) == (precision == "float16")


def test_float32_goes_on_in_float16(root, begun, tmp_path):
    (tmp_path / "last.pth").write_bytes((begun / "last.pth").read_bytes())
    assert train(small_config(root, tmp_path, precision="float16"), quiet=True, resume=True).step == 4


def test_crf_loss_is_added(root, tmp_path):
    recipe = {"iterations": 3, "crf_loss": {"weight": 1e-3, "sigma_xy": 20, "scale_factor": 1.0}}
    train(small_config(root, tmp_path / "without", iterations=3), quiet=True)
    train(small_config(root, tmp_path / "with", **recipe), quiet=True)
    without, added = ([float(line[1]) for line in logged(tmp_path / name)] for name in ("without", "with"))
    assert added[0] != pytest.approx(without[0], rel=1e-3)
    assert all(map(torch.isfinite, torch.tensor(added)))
    weights = [checkpoints.load(tmp_path / name / "last.pth")["model"] for name in ("without", "with")]
    assert differences(*weights)
