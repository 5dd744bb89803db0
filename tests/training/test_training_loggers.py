"""Loggers beside log.csv: one's own, a function, one that the configuration names, TensorBoard."""

from __future__ import annotations

import sys
import types

import pytest
from small_trainings import make_with_dropout, small_config, write_set

from deeplab_fast import training
from deeplab_fast.config import parse_config


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("loggers"))


@pytest.fixture(autouse=True)
def _small_network(monkeypatch):
    monkeypatch.setattr("deeplab_fast.training.trainer.make_model", make_with_dropout)


class Recorder:
    """A logger that keeps what it is told."""

    def __init__(self):
        self.told: list[tuple[int, dict[str, float]]] = []
        self.closed = 0

    def log(self, step, values):
        self.told.append((step, dict(values)))

    def close(self):
        self.closed += 1


def told_by_file(output) -> list[tuple[int, dict[str, float]]]:
    rows = training.read_log(output / "log.csv")
    return [(int(row.pop("step")), {key: float(value) for key, value in row.items() if value}) for row in rows]


def test_loggers_are_told_what_the_file_is(root, tmp_path):
    recorder, by_function = Recorder(), []
    config = small_config(root, tmp_path, iterations=3, evaluate_every=3)
    loggers = [recorder, lambda step, values: by_function.append((step, dict(values)))]
    training.train(config, quiet=True, loggers=loggers)
    assert recorder.closed == 1
    assert [(step, set(values)) for step, values in recorder.told] == [
        *((step, {"loss", "lr", "images_per_second", "seconds"}) for step in (1, 2, 3)),
        (3, {"mean_iou", "pixel_accuracy"}),
    ]
    for told in (recorder.told, by_function):
        assert [(step, pytest.approx(values, rel=1e-8)) for step, values in told] == told_by_file(tmp_path)


def test_loggers_are_closed_after_a_failure(root, tmp_path, monkeypatch):
    recorder = Recorder()

    def fail(self, _):
        raise OSError("the power is off")

    monkeypatch.setattr(training.Trainer, "_step", fail)
    with pytest.raises(OSError, match="the power is off"):
        training.train(small_config(root, tmp_path), quiet=True, loggers=[recorder])
    assert recorder.closed == 1


def test_the_configuration_names_one(root, tmp_path, monkeypatch):
    module, recorder, configs = types.ModuleType("my_logging"), Recorder(), []
    module.make = lambda config: configs.append(config) or recorder
    module.number, module.nothing = 3, lambda config: None
    monkeypatch.setitem(sys.modules, "my_logging", module)
    config = small_config(root, tmp_path / "out", iterations=1, logger="my_logging:make")
    training.train(config, quiet=True)
    assert configs == [config]
    assert recorder.told[0][0] == recorder.closed == 1

    for name, said in (
        ("my_logging:absent", "training.logger: is 'my_logging:absent', should be a function in a module that can be"),
        ("no_such_module:make", "training.logger: is 'no_such_module:make', should be a function in a module that can"),
        ("my_logging:number", "training.logger: is a int, should be a function of the configuration"),
        ("my_logging:nothing", "training.logger: my_logging:nothing: is a NoneType, should be a Logger, with log and"),
    ):
        with pytest.raises((TypeError, ValueError), match=said):
            training.train(small_config(root, tmp_path / "not", logger=name), quiet=True)
    with pytest.raises(TypeError, match="loggers: is a int, should be a Logger, with log and close, or a function of"):
        training.train(small_config(root, tmp_path / "not"), quiet=True, loggers=[3])


def test_events_for_tensorboard(root, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = small_config(root, tmp_path, iterations=3, evaluate_every=3, tensorboard=True)
    training.train(config, quiet=True, stop_after=2)
    training.train(config, quiet=True, resume=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = {event.step: event.value for event in events.Scalars("loss")}
    told = told_by_file(tmp_path)
    assert losses == pytest.approx({step: values["loss"] for step, values in told if "loss" in values}, rel=1e-6)
    assert [event.step for event in events.Scalars("mean_iou")] == [3]


def test_wrong_entry():
    with pytest.raises(ValueError, match=r"training\.logger: is 'wandb'"):
        parse_config({"data": {"kind": "voc12", "root": "x"}, "training": {"logger": "wandb"}}, "test")
