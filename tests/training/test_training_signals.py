"""SIGTERM, and evaluations that were interrupted: nothing is lost, and what is due is made up for."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from small_trainings import differences, logged, make_with_dropout, small_config, write_set

from deeplab_fast import evaluation
from deeplab_fast.training import TrainingLog, TrainingTerminated, checkpoints, read_log, train
from deeplab_fast.training.trainer import Trainer

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("signals"))


@pytest.fixture
def configs(root, tmp_path, monkeypatch):
    """Of one training that is interrupted, and of one that is not; both evaluate after steps 2, 4 and 6."""
    monkeypatch.setattr("deeplab_fast.training.trainer.make_model", make_with_dropout)
    return [small_config(root, tmp_path / name, iterations=6, evaluate_every=2) for name in ("parts", "whole")]


def resumed_is_the_same(parts, whole) -> None:
    """Go on with one, train the other in one go, and compare all that they leave."""
    train(parts, quiet=True, resume=True)
    train(whole, quiet=True)
    for name in ("last.pth", "best.pth"):
        first, second = (torch.load(config.output / name, weights_only=True) for config in (parts, whole))
        assert first.keys() == second.keys()
        for key in first.keys() - {"deeplab_fast"}:  # its configuration names the folder
            assert differences(first[key], second[key], f"{name}: {key}") == []
    assert logged(parts.output) == logged(whole.output)


class Killed(BaseException):
    """Stands for kill -9: nothing handles it."""


def in_the_second_evaluation(monkeypatch, action) -> None:
    evaluate, calls = evaluation.evaluate, []

    def interrupted(predictor, dataset, **options):
        calls.append(options)
        if len(calls) == 2:
            action()
        return evaluate(predictor, dataset, **options)

    monkeypatch.setattr(evaluation, "evaluate", interrupted)


def kill():
    raise Killed


@pytest.mark.parametrize("moment", ["in it", "before it is saved"])
def test_an_evaluation_that_was_killed_is_made_up_for(configs, monkeypatch, moment):
    save = Trainer._save

    def killed(self, name):
        if self.evaluated == self.step == 4:  # the log has its line already
            raise Killed
        save(self, name)

    with monkeypatch.context() as patch:
        if moment == "in it":
            in_the_second_evaluation(patch, kill)
        else:
            patch.setattr(Trainer, "_save", killed)
        with pytest.raises(Killed):
            train(configs[0], quiet=True)
    state = checkpoints.load(configs[0].output / "last.pth")
    assert (state["step"], state["evaluated"]) == (4, 2)
    resumed_is_the_same(*configs)


def test_the_last_evaluation_is_made_up_for(configs, monkeypatch):
    parts = configs[0].model_copy(update={"training": configs[0].training.model_copy(update={"evaluate_every": 3})})
    with monkeypatch.context() as patch:
        in_the_second_evaluation(patch, kill)
        with pytest.raises(Killed):
            train(parts, quiet=True)
    assert train(parts, quiet=True, resume=True).mean_iou is not None
    assert [row["step"] for row in read_log(parts.output / "log.csv") if row["mean_iou"]] == ["3", "6"]


def test_log_lines_of_an_evaluation_that_is_made_again(tmp_path):
    log = TrainingLog(tmp_path, 0)
    for step in (1, 2):
        log.write(step, loss=0.5)
        log.write(step, mean_iou=0.25)
    TrainingLog(tmp_path, 2, evaluated=1)
    assert [(row["step"], row["mean_iou"]) for row in read_log(log.path)] == [("1", ""), ("1", "0.25"), ("2", "")]


# --- SIGTERM -------------------------------------------------------------------------------------------------------


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_finishes_the_step_and_saves(configs, monkeypatch):
    before, step = signal.getsignal(signal.SIGTERM), Trainer._step

    def terminated(self, batches):
        if self.step == 2:
            terminate()
            terminate()  # as it comes from torchrun and from the cluster
        return step(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", terminated)
        with pytest.raises(
            TrainingTerminated, match=r"^after step 3; last\.pth is saved, --resume goes on from it$"
        ) as error:
            train(configs[0], quiet=True)
    assert error.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert checkpoints.load(configs[0].output / "last.pth")["step"] == 3
    resumed_is_the_same(*configs)


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGTERM, TrainingTerminated), (signal.SIGINT, KeyboardInterrupt)],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_a_signal_ends_an_evaluation_at_once(configs, monkeypatch, number, error):
    with monkeypatch.context() as patch:
        in_the_second_evaluation(patch, lambda: os.kill(os.getpid(), number))
        with pytest.raises(error, match=r"^after step 4, before its evaluation; last\.pth is saved"):
            train(configs[0], quiet=True)
    assert checkpoints.load(configs[0].output / "last.pth")["evaluated"] == 2
    resumed_is_the_same(*configs)


# --- resume="auto" -------------------------------------------------------------------------------------------------


def test_auto_starts_and_goes_on(configs):
    parts, whole = configs
    assert train(parts, quiet=True, resume="auto", stop_after=3).step == 3
    assert train(parts, quiet=True, resume="auto", stop_after=5).step == 5
    resumed_is_the_same(parts, whole)


def test_best_of_another_training_is_not_overwritten(configs):
    folder = configs[0].output
    folder.mkdir()
    (folder / "best.pth").write_bytes(b"of weeks")
    for resume in (False, "auto"):
        with pytest.raises(FileExistsError, match=r"best\.pth exists; without last\.pth; move it away or choose"):
            train(configs[0], quiet=True, resume=resume)
    assert (folder / "best.pth").read_bytes() == b"of weeks"


def test_no_other_way_to_resume(configs):
    with pytest.raises(ValueError, match="resume: is 'always', should be False, True or 'auto'"):
        train(configs[0], quiet=True, resume="always")
