"""What a recipe may have beside the published one: AdamW, warm-up, clipping, frozen stages, EMA, early stopping."""

from __future__ import annotations

import copy

import pytest
import torch
from small_trainings import differences, first_weights, logged, make_with_dropout, small_config, write_set

from deeplab_fast import evaluation, models, training
from deeplab_fast.config import parse_config
from deeplab_fast.training import checkpoints
from deeplab_fast.training.display import Display
from deeplab_fast.training.processes import Processes


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("options"))


def trainer_of(config) -> training.Trainer:
    return training.Trainer(config, torch.device("cpu"), Processes(), Display(config, shown=False))


def in_one_go_and_in_parts(first, second, parts: list[int]) -> dict:
    """Train both, the second in parts, and compare all they leave; the first's checkpoint."""
    training.train(first, quiet=True)
    for number, stop in enumerate(parts):
        training.train(second, quiet=True, resume=number > 0, stop_after=stop)
    training.train(second, quiet=True, resume=True)
    whole, resumed = (checkpoints.load(config.output / "last.pth") for config in (first, second))
    for content in (whole, resumed):
        content["deeplab_fast"]["config"].pop("output")
    assert differences(whole, resumed) == []
    assert logged(first.output) == logged(second.output)
    return whole


# --- Optimizer -----------------------------------------------------------------------------------------------------


def test_steps_of_adamw_by_hand(root, tmp_path):
    recipe = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.1, "betas": [0.8, 0.95]}
    trainer = trainer_of(small_config(root, tmp_path, weights=first_weights(tmp_path), **recipe))
    parameters = dict(trainer.model.named_parameters())
    name = "aspp.c0.weight"  # of the classifier: 10 times as fast
    expected, batches = copy.deepcopy(parameters[name].detach()), trainer._batches()
    mean = square = torch.zeros_like(expected)
    for step in range(2):
        trainer._step(batches)
        rate = 10 * 1e-3 * (1 - step / 4) ** 0.9
        gradient = parameters[name].grad
        expected = expected * (1 - rate * 0.1)
        mean, square = 0.8 * mean + 0.2 * gradient, 0.95 * square + 0.05 * gradient**2
        unbiased = mean / (1 - 0.8 ** (step + 1)), square / (1 - 0.95 ** (step + 1))
        expected = expected - rate * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
        torch.testing.assert_close(parameters[name].detach(), expected, rtol=1e-5, atol=1e-6)


def test_adamw_with_warmup_and_clipping_resumes(root, tmp_path):
    recipe = {"optimizer": "adamw", "lr": 1e-4, "warmup": 4, "gradient_clip": 0.5, "iterations": 6, "evaluate_every": 3}
    configs = [small_config(root, tmp_path / name, **recipe) for name in ("whole", "parts")]
    state = in_one_go_and_in_parts(*configs, parts=[2, 3])["optimizer"]["state"]
    assert {"exp_avg", "exp_avg_sq"} <= state[0].keys()


def test_warmup_rises_to_poly(root, tmp_path):
    config = small_config(root, tmp_path, iterations=6, lr=0.01, lr_every=2, warmup=3, warmup_factor=0.1)
    training.train(config, quiet=True)
    poly = [1, 1, (4 / 6) ** 0.9, (4 / 6) ** 0.9, (2 / 6) ** 0.9, (2 / 6) ** 0.9]
    warmup = [0.1, 0.4, 0.7, 1, 1, 1]
    expected = [0.01 * one * other for one, other in zip(poly, warmup, strict=True)]
    assert [float(line[2]) for line in logged(tmp_path)] == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("clip", [1e-3, 1e9])
def test_gradients_are_clipped_together(root, tmp_path, clip):
    config = small_config(root, tmp_path / "clipped", weights=first_weights(tmp_path), gradient_clip=clip)
    gradients = []
    for one in (
        config,
        config.model_copy(update={"training": config.training.model_copy(update={"gradient_clip": None})}),
    ):
        trainer = trainer_of(one)
        trainer._step(trainer._batches())
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]))
    clipped, whole = gradients
    assert whole.norm() > 1e-3
    torch.testing.assert_close(clipped, whole * min(1, clip / whole.norm().item()), rtol=1e-4, atol=1e-9)


# --- Frozen stages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("deeplabv2_small", ["layer1", "layer2", "layer3", "layer4", "layer5"]),
        ("deeplabv2_resnet101", ["layer1", "layer2", "layer3", "layer4", "layer5"]),
        ("deeplabv2_vgg16", ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"]),
    ],
)
def test_stages(name, expected):
    with torch.device("meta"):
        assert list(training.trunk_stages(models.create(name, 5))) == expected


@pytest.mark.parametrize(
    ("frozen", "prefixes"), [(2, ("layer1.", "layer2.")), (["layer2", "layer4.block1"], ("layer2.", "layer4.block1."))]
)
def test_frozen_stages_stay(root, tmp_path, frozen, prefixes):
    weights = first_weights(tmp_path)
    config = small_config(root, tmp_path / "out", {"msc": False}, weights, frozen=frozen, iterations=2)
    training.train(config, quiet=True)
    before = torch.load(weights, weights_only=True)
    after = checkpoints.load(tmp_path / "out" / "last.pth")["model"]
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) == name.startswith(prefixes), name


@pytest.mark.parametrize(
    ("frozen", "said"),
    [
        (6, "training.frozen: is 6, should be at most 5, the number of stages: layer1, layer2, layer3, layer4, layer5"),
        (
            ["layer6"],
            "training.frozen: is 'layer6', should be layer1, layer2, layer3, layer4 or layer5, or the name of",
        ),
        (["layer1", "layer2", "layer3", "layer4", "layer5", "aspp"], "has no parameter that requires a gradient"),
    ],
)
def test_what_cannot_be_frozen(root, tmp_path, frozen, said):
    with pytest.raises(ValueError, match=said):
        trainer_of(small_config(root, tmp_path, frozen=frozen))


# --- Moving average ------------------------------------------------------------------------------------------------


def test_the_average_is_saved_and_evaluated(root, tmp_path, monkeypatch):
    monkeypatch.setattr("deeplab_fast.training.trainer.make_model", make_with_dropout)
    trainer = trainer_of(small_config(root, tmp_path, ema=0.75, iterations=3, evaluate_every=3, lr=0.1))
    batches, expected = trainer._batches(), {}
    for step in range(3):
        trainer._step(batches)
        for name, tensor in trainer.model.state_dict().items():
            before = expected.get(name, tensor)
            expected[name] = tensor.clone() if step == 0 else before + 0.25 * (tensor - before)
    trainer.step = 3
    trainer._evaluate()
    for name in ("best.pth", "last.pth"):
        trainer._save(name)
        loaded, _ = make_with_dropout(None, 5)
        models.load_weights(loaded, tmp_path / name)
        for key, tensor in loaded.state_dict().items():
            if tensor.is_floating_point():  # batch norm's counter is a whole number, and of no use
                torch.testing.assert_close(tensor, expected[key], rtol=1e-5, atol=1e-6)
    weight = trainer.model.state_dict()["scores.weight"]
    assert (weight - loaded.state_dict()["scores.weight"]).abs().max() > 1e-3
    scores = evaluation.evaluate(evaluation.Predictor(loaded, 5), trainer.validation).matrix.scores()
    assert trainer.mean_iou == scores.mean_iou


def test_average_early_stopping_and_kept_checkpoints_resume(root, tmp_path, monkeypatch):
    monkeypatch.setattr("deeplab_fast.training.trainer.make_model", make_with_dropout)
    recipe = {"iterations": 12, "evaluate_every": 2, "checkpoint_every": 2, "ema": 0.5, "early_stopping": 3, "keep": 2}
    configs = [small_config(root, tmp_path / name, **recipe) for name in ("whole", "parts")]
    content = in_one_go_and_in_parts(*configs, parts=[1, 3, 6])
    assert content["ema"]["averaged"] == content["step"]
    for name in ("best.pth", f"step-{content['step']}.pth", f"step-{content['step'] - 2}.pth"):
        whole, resumed = (torch.load(config.output / name, weights_only=True) for config in configs)
        assert differences(whole["model"], resumed["model"]) == []


# --- Early stopping and checkpoints --------------------------------------------------------------------------------


def scripted(monkeypatch, scores: list[float]) -> list[int]:
    """Evaluations give these mean IoUs, one after the other; the list, which grows, of steps they were made in."""
    made: list[int] = []

    class Result:
        problems = ()

        def __init__(self, mean_iou: float):
            self.matrix = self
            self.mean_iou, self.pixel_accuracy = mean_iou, 0.5

        def scores(self):
            return self

    def evaluation(self):
        made.append(self.step)
        return Result(scores[len(made) - 1])

    monkeypatch.setattr(training.Trainer, "_evaluation", evaluation)
    monkeypatch.setattr("deeplab_fast.training.trainer.make_model", make_with_dropout)
    return made


@pytest.mark.parametrize("parts", [[], [1], [2, 3, 4]])
def test_ends_when_it_gets_no_better(root, tmp_path, monkeypatch, parts):
    made = scripted(monkeypatch, [0.1, 0.3, 0.2, 0.3, 0.9])
    config = small_config(root, tmp_path, iterations=9, evaluate_every=1, early_stopping=2)
    for number, stop in enumerate(parts):
        assert not training.train(config, quiet=True, resume=number > 0, stop_after=stop).stopped_early or stop == 4
    result = training.train(config, quiet=True, resume=bool(parts))
    assert result.stopped_early
    assert (result.step, result.mean_iou, result.best_mean_iou) == (4, 0.3, 0.3)
    assert torch.load(result.best, weights_only=True)["step"] == 2
    # Resumed, it stays at its end.
    assert training.train(config, quiet=True, resume=True) == result
    assert made == [1, 2, 3, 4]


def test_does_not_end_while_it_gets_better(root, tmp_path, monkeypatch):
    scripted(monkeypatch, [0.1, 0.1, 0.2, 0.1, 0.3, 0.2])
    config = small_config(root, tmp_path, iterations=6, evaluate_every=1, early_stopping=2)
    result = training.train(config, quiet=True)
    assert (result.step, result.stopped_early) == (6, False)


def test_earlier_checkpoints_are_kept(root, tmp_path, monkeypatch):
    monkeypatch.setattr("deeplab_fast.training.trainer.make_model", make_with_dropout)
    config = small_config(root, tmp_path / "out", iterations=7, checkpoint_every=2, keep=2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "step-of-mine.pth").touch()
    training.train(config, quiet=True, stop_after=4)
    assert list(checkpoints.kept(config.output)) == [2, 4]
    training.train(config, quiet=True, resume=True)
    assert list(checkpoints.kept(config.output)) == [6, 7]
    assert (tmp_path / "out" / "step-of-mine.pth").exists()
    assert (config.output / "step-7.pth").read_bytes() == (config.output / "last.pth").read_bytes()

    # From one of them the training goes on as it did.
    other = config.model_copy(update={"output": tmp_path / "other"})
    other.output.mkdir()
    (other.output / "last.pth").write_bytes((config.output / "step-6.pth").read_bytes())
    training.train(other, quiet=True, resume=True)
    states = [checkpoints.load(one.output / "last.pth") for one in (config, other)]
    assert differences(states[0]["model"], states[1]["model"]) == []


def test_a_folder_with_kept_checkpoints_is_not_begun_in(root, tmp_path):
    (tmp_path / "step-10.pth").touch()
    with pytest.raises(
        FileExistsError, match=r"step-10\.pth exists; without last\.pth; move it away or choose another"
    ):
        training.train(small_config(root, tmp_path), quiet=True)


# --- Entries -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"optimizer": "adam"}, "training.optimizer: is 'adam': input should be 'sgd' or 'adamw'"),
        ({"betas": [0.9, 1]}, "training.betas.1: is 1: input should be less than 1"),
        ({"warmup": -1}, "training.warmup: is -1"),
        ({"iterations": 20, "warmup": 20}, "training.warmup: is 20, should be below iterations, 20"),
        ({"warmup_factor": 0}, "training.warmup_factor: is 0"),
        ({"gradient_clip": 0}, "training.gradient_clip: is 0"),
        ({"ema": 1}, "training.ema: is 1: input should be less than 1"),
        ({"ema": 0}, "training.ema: is 0"),
        ({"keep": -1}, "training.keep: is -1"),
        ({"early_stopping": 0}, "training.early_stopping: is 0"),
        ({"early_stopping": 3, "evaluate_every": 0}, "training.early_stopping: is 3, should be null where evaluate_ev"),
        ({"frozen": -1}, "training.frozen: is -1: input should be greater than or equal to 0"),
        ({"frozen": "layer1"}, "training.frozen: is 'layer1': input should be a valid"),
    ],
)
def test_wrong_entries(entries, said):
    with pytest.raises(ValueError, match="test: ") as caught:
        parse_config({"data": {"kind": "voc12", "root": "x"}, "training": entries}, "test")
    assert said in str(caught.value)
