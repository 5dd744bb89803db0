"""Kills, full disks and losses that are not finite: the last complete checkpoint survives."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from small_trainings import environment, file_size_limit, logged, python, small_config, write_set

from deeplab_fast import data, files
from deeplab_fast.config import parse_config
from deeplab_fast.training import SegmentationLoss, TrainingLog, checkpoints, read_log, train

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")

TRAIN = """
import sys
from deeplab_fast.config import read_config
from deeplab_fast.training import train
train(read_config(sys.argv[1]), quiet=True, resume=sys.argv[2] == "resume")
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("failures"))


def partial_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".partial")]


def written_at(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


# --- Kills ---------------------------------------------------------------------------------------------------------


def test_killed_at_any_moment(root, tmp_path):
    output, last = tmp_path / "out", tmp_path / "out" / "last.pth"
    config = small_config(root, output, iterations=5000, checkpoint_every=1)
    file = tmp_path / "config.yaml"
    file.write_text(config.model_dump_json())  # JSON is YAML
    steps = [0]
    for delay in (0.0, 0.013, 0.171):
        before = written_at(last)
        command = python(TRAIN, file, "resume" if before else "anew")
        with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as process:
            until = time.monotonic() + 100
            while written_at(last) == before and process.poll() is None and time.monotonic() < until:
                time.sleep(0.001)
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            _, error = process.communicate()
        assert process.returncode == -signal.SIGKILL, error
        steps.append(checkpoints.load(last)["step"])
        assert steps[-1] > steps[-2]
    files._partial_name(output).write_bytes(b"half")
    result = train(config, quiet=True, resume=True, stop_after=steps[-1] + 2)
    assert result.step == steps[-1] + 2
    assert [int(line[0]) for line in logged(output)] == list(range(1, result.step + 1))
    assert partial_files(output) == []


# --- Loss and gradients --------------------------------------------------------------------------------------------


@pytest.fixture
def trained(root, tmp_path):
    """Two steps of four, evaluated; its configuration, and the bytes of its checkpoints."""
    config = small_config(root, tmp_path, checkpoint_every=2, evaluate_every=2)
    train(config, quiet=True, stop_after=2)
    return config, {name: (tmp_path / name).read_bytes() for name in ("last.pth", "best.pth")}


def unchanged(folder: Path, before: dict[str, bytes]) -> bool:
    return all((folder / name).read_bytes() == content for name, content in before.items())


def test_loss_that_is_not_finite(trained, monkeypatch):
    config, before = trained
    collate, batches = data.collate, []

    def poisoned(items):
        batch = collate(items)
        batches.append(batch)
        return batch._replace(images=batch.images * float("nan")) if len(batches) == 2 else batch

    monkeypatch.setattr(data, "collate", poisoned)
    with pytest.raises(FloatingPointError, match=r"the loss is nan in step 4; nothing is saved, last\.pth is of an"):
        train(config, quiet=True, resume=True)
    assert unchanged(config.output, before)
    assert [line[0] for line in logged(config.output)] == ["1", "2", "2", "3"]
    assert partial_files(config.output) == []

    monkeypatch.undo()
    assert train(config, quiet=True, resume=True).step == 4


def test_gradient_that_is_not_finite(trained, monkeypatch):
    config, before = trained
    forward = SegmentationLoss.forward
    # The root of 0 is 0, and its slope is infinite.
    monkeypatch.setattr(
        SegmentationLoss,
        "forward",
        lambda self, logits, labels: forward(self, logits, labels) + (0 * logits.sum()) ** 0.5,
    )
    with pytest.raises(FloatingPointError, match="a gradient is not finite in step 3"):
        train(config, quiet=True, resume=True)
    assert unchanged(config.output, before)


def test_learning_rate_that_is_too_high(root, tmp_path):
    config = small_config(root, tmp_path, iterations=10, lr=1e25, checkpoint_every=1)
    with pytest.raises(FloatingPointError, match=r"in step \d+; nothing is saved"):
        train(config, quiet=True)
    for tensor in checkpoints.load(tmp_path / "last.pth")["model"].values():
        assert not tensor.isnan().any()


# --- Full disks ----------------------------------------------------------------------------------------------------


def test_checkpoint_that_cannot_be_written(trained):
    config, before = trained
    with (
        file_size_limit(len(before["last.pth"]) // 2),
        pytest.raises(
            OSError, match=r"checkpoint could not be written: .*File too large.*the one before is kept"
        ) as error,
    ):
        train(config, quiet=True, resume=True)
    assert error.value.errno == errno.EFBIG
    assert Path(error.value.filename).parent == config.output
    assert unchanged(config.output, before)
    assert partial_files(config.output) == []
    assert train(config, quiet=True, resume=True).step == 4


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own in memory, of a size that is asked for."""
    mounted = []

    def mount(size: int) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=20)
        except FileNotFoundError:
            pytest.skip("there is no mount")
        if done.returncode:
            pytest.skip("a file system may not be mounted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True, timeout=20)


def test_full_disk(root, small_disk, tmp_path):
    recipe = {"iterations": 3, "checkpoint_every": 1}
    train(small_config(root, tmp_path / "elsewhere", **recipe), quiet=True, stop_after=1)
    needed = (tmp_path / "elsewhere" / "last.pth").stat().st_size
    output = small_disk(needed * 3 // 2)  # for one checkpoint and the log, not for two
    with pytest.raises(OSError, match=r"checkpoint could not be written: .*No space left.*last\.pth") as error:
        train(small_config(root, output, **recipe), quiet=True)
    assert error.value.errno == errno.ENOSPC
    assert checkpoints.load(output / "last.pth")["step"] == 1
    assert partial_files(output) == []


def test_log_that_cannot_be_written(tmp_path):
    log = TrainingLog(tmp_path, 0)
    for step in range(1, 12):
        log.write(step, loss=1.5, lr=0.1)
    with (
        file_size_limit(log.path.stat().st_size + 1),
        pytest.raises(OSError, match=r"File too large: .*log\.csv"),
    ):
        log.write(12, loss=1.5, lr=0.1)  # of this line, the 1 of 12 is written
    assert log.path.read_text().endswith("\n1")
    assert [row["step"] for row in read_log(log.path)] == [str(step) for step in range(1, 12)]
    TrainingLog(tmp_path, 8).write(9, loss=2)
    assert [row["step"] for row in read_log(log.path)] == [str(step) for step in range(1, 10)]


def test_log_of_something_else(tmp_path):
    (tmp_path / "log.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"log\.csv: has columns \['a', 'b'\], should have step, loss"):
        TrainingLog(tmp_path, 3)
    assert (tmp_path / "log.csv").read_text() == "a,b\n1,2\n"


def test_checkpoint_of_what_cannot_be_pickled(tmp_path):
    path = tmp_path / "last.pth"
    checkpoints.save(path, {"step": 1})
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        checkpoints.save(path, {"step": lambda: 2})
    assert path.read_bytes() == before
    assert partial_files(tmp_path) == []
    assert torch.load(path, weights_only=True) == {"step": 1}


# --- Data ----------------------------------------------------------------------------------------------------------


def broken_set(folder: Path, split: str) -> Path:
    """A set in which the first photo of the split is missing."""
    root = write_set(folder)
    (root / "JPEGImages" / f"{split}_0000.jpg").unlink()
    return root


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_photo_is_named(tmp_path, workers):
    config = small_config(broken_set(tmp_path, "train"), tmp_path / "out", iterations=8, workers=workers)
    with pytest.raises(FileNotFoundError, match=r"^image not found: .*train_0000\.jpg \(line 1 of .*train\.txt\)$"):
        train(config, quiet=True)


def test_a_failing_evaluation_loses_no_step(tmp_path):
    root = write_set(tmp_path)
    photo = root / "JPEGImages" / "val_0000.jpg"
    whole = photo.read_bytes()
    photo.write_bytes(whole[: len(whole) // 2])  # its header is whole
    config = small_config(root, tmp_path / "out", evaluate_every=4)
    with pytest.raises(ValueError, match=r"val_0000\.jpg"):
        train(config, quiet=True)
    assert checkpoints.load(tmp_path / "out" / "last.pth")["step"] == 4
    photo.write_bytes(whole)
    assert train(config, quiet=True, resume=True).mean_iou is not None


def test_photos_left_out_of_an_evaluation_are_named(tmp_path, capfd):
    root = broken_set(tmp_path, "val")
    entries = small_config(root, tmp_path / "out", evaluate_every=4).model_dump(mode="json")
    entries["data"]["on_error"] = "skip"
    result = train(parse_config(entries, "test"))
    assert result.mean_iou is not None
    assert "val_0000.jpg" in "".join(capfd.readouterr().err.split())


# --- Ctrl-C --------------------------------------------------------------------------------------------------------


def test_ctrl_c_finishes_the_step_and_saves(root, tmp_path):
    output = tmp_path / "out"
    config = small_config(root, output, iterations=5000, workers=1)
    file = tmp_path / "config.yaml"
    file.write_text(config.model_dump_json())
    with subprocess.Popen(python(TRAIN, file, "anew"), env=environment(), stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 100
        while process.poll() is None and time.monotonic() < until:
            if (output / "log.csv").exists() and len(read_log(output / "log.csv")) > 2:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert "last.pth is saved" in error
    step = checkpoints.load(output / "last.pth")["step"]
    assert len(read_log(output / "log.csv")) == step > 2
