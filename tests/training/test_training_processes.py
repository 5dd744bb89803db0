"""Training in two processes, connected by gloo, as torchrun would start them."""

from __future__ import annotations

import json
import socket
import subprocess

import pytest
import torch
from small_trainings import environment, first_weights, logged, make_with_dropout, python, small_config, write_set

from deeplab_fast import evaluation
from deeplab_fast.config.build import make_dataset
from deeplab_fast.config.weights import read_weights
from deeplab_fast.training import checkpoints, train

TRAIN = """
import dataclasses, json, sys
from deeplab_fast.config import read_config
from deeplab_fast.training import train
result = train(read_config(sys.argv[1]), quiet=True)
print(json.dumps([result.step, result.mean_iou, result.best_mean_iou]))
"""

RESUME = """
import json, sys
from pathlib import Path
from small_trainings import differences, logged, make_with_dropout
from torch import distributed
from deeplab_fast.config import read_config
from deeplab_fast.training import checkpoints, train, trainer
trainer.make_model = make_with_dropout
distributed.init_process_group("gloo")  # one for all trainings: the next could meet the one before on its port
config = read_config(sys.argv[1])
outputs = [config.output / "whole", config.output / "parts"]
whole, parts = (config.model_copy(update={"output": output}) for output in outputs)
train(whole, quiet=True)
train(parts, quiet=True, stop_after=3)
train(parts, quiet=True, resume=True)
first, second = (checkpoints.load(output / "last.pth") for output in outputs)
found = [place for key in ("model", "optimizer", "sampler", "random") for place in differences(first[key], second[key])]
same_numbers = first["random"][0]["cpu"].equal(first["random"][1]["cpu"])
print(json.dumps([found, same_numbers, logged(outputs[0]) == logged(outputs[1])]))
distributed.destroy_process_group()
"""

FAIL = """
import os, sys
from deeplab_fast import data
from deeplab_fast.config import read_config
from deeplab_fast.training import train
collate, batches = data.collate, []
def failing(items):
    batches.append(items)
    if len(batches) == 2 and os.environ["RANK"] == "1":
        raise RuntimeError("a broken photo")
    return collate(items)
data.collate = failing
train(read_config(sys.argv[1]), quiet=True)
"""

# The second process gets SIGTERM in step 3; what each has when it evaluates is compared on the way.
SIGNAL = """
import json, os, signal, sys
from small_trainings import differences, make_with_dropout
from torch import distributed
from deeplab_fast import evaluation
from deeplab_fast.config import read_config
from deeplab_fast.training import TrainingTerminated, train, trainer
trainer.make_model = make_with_dropout
evaluate, step, found = evaluation.evaluate, trainer.Trainer._step, []
def comparing(predictor, dataset, **options):
    states = [None, None]
    distributed.all_gather_object(states, predictor.model.state_dict())
    found.extend(differences(*states))
    return evaluate(predictor, dataset, **options)
def signalled(self, batches):
    if self.step == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, batches)
evaluation.evaluate, trainer.Trainer._step = comparing, signalled
try:
    train(read_config(sys.argv[1]), quiet=True, resume="auto")
except TrainingTerminated as error:
    print(json.dumps([found, error.code, str(error)]))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("processes"))


def in_two_processes(code: str, config, folder, seconds: int = 120) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of each; ends both, and fails, after a time."""
    file = folder / "config.yaml"
    file.write_text(config.model_dump_json())  # JSON is YAML
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    started = [
        subprocess.Popen(
            python(code, file),
            env=environment(RANK=rank, LOCAL_RANK=rank, **shared),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=seconds) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [(process.returncode, *output) for process, output in zip(started, outputs, strict=True)]


def results(ended: list[tuple[int, str, str]]) -> list:
    for status, _, error in ended:
        assert status == 0, error
    return [json.loads(output.splitlines()[-1]) for _, output, _ in ended]


def test_two_processes_are_one_with_twice_the_batch(root, tmp_path):
    options = {"msc": False, "frozen_batch_norm": True}
    recipe = {"iterations": 5, "accumulation": 2, "evaluate_every": 5, "lr": 0.0001}
    weights = first_weights(tmp_path)
    alone = small_config(root, tmp_path / "alone", options, weights, batch_size=4, **recipe)
    together = small_config(root, tmp_path / "together", options, weights, batch_size=2, **recipe)
    train(alone, quiet=True)
    first, second = results(in_two_processes(TRAIN, together, tmp_path))
    assert first == second
    assert first[0] == 5

    for one, two in zip(logged(alone.output), logged(together.output), strict=True):
        assert one[0] == two[0]
        if one[1]:
            assert [float(value) for value in two[1:3]] == pytest.approx([float(value) for value in one[1:3]], rel=1e-4)
    one, two = (checkpoints.load(config.output / "last.pth") for config in (alone, together))
    assert one["model"].keys() == two["model"].keys()
    for name, tensor in one["model"].items():
        torch.testing.assert_close(two["model"][name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    assert one["sampler"] == two["sampler"]
    assert len(two["random"]) == 2

    # Of the very same weights, the scores are the same in one process.
    trained = read_weights(together.output / "last.pth")
    validation = make_dataset(together.data, "val")
    again = evaluation.evaluate(evaluation.Predictor(trained.model, validation.num_classes), validation)
    assert again.matrix.scores().mean_iou == pytest.approx(first[1], abs=2e-4)  # a pixel of 12,288 on the edge


def test_two_processes_resume_with_dropout(root, tmp_path):
    config = small_config(root, tmp_path, iterations=6, evaluate_every=2, workers=1)
    for found, same_numbers, same_log in results(in_two_processes(RESUME, config, tmp_path)):
        assert found == []
        assert not same_numbers  # each process drops out on its own
        assert same_log


def test_no_process_waits_for_one_that_failed(root, tmp_path):
    config = small_config(root, tmp_path / "out", checkpoint_every=1)
    first, second = in_two_processes(FAIL, config, tmp_path, seconds=90)
    assert first[0] != 0
    assert second[0] != 0
    assert "a broken photo" in second[2]
    assert checkpoints.load(tmp_path / "out" / "last.pth")["step"] == 1


def test_a_signal_to_one_process_ends_all_and_the_scores_are_those_of_the_file(root, tmp_path):
    """Batch norm's statistics differ between processes; the log has to be of those that are saved."""
    config = small_config(root, tmp_path / "out", iterations=50, evaluate_every=2)
    for found, code, message in results(in_two_processes(SIGNAL, config, tmp_path)):
        assert found == []
        assert code == 143
        assert message.startswith("after step 3; last.pth is saved")
    assert checkpoints.load(config.output / "last.pth")["step"] == 3

    best = torch.load(config.output / "best.pth", weights_only=True)
    assert best["step"] == 2
    model, _ = make_with_dropout(None, 5)
    model.load_state_dict(best["model"])
    validation = make_dataset(config.data, "val")
    again = evaluation.evaluate(evaluation.Predictor(model, 5), validation)
    [score] = [float(line[3]) for line in logged(config.output) if line[3]]
    assert again.matrix.scores().mean_iou == pytest.approx(score, rel=1e-6)
