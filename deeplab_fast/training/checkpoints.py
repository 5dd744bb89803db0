"""Checkpoints: written beside and renamed, so that whatever happens, the last complete one can be loaded."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch

from deeplab_fast.files import atomic_write
from deeplab_fast.models import weight_files

LAST, BEST = "last.pth", "best.pth"
_STEP = re.compile(r"step-[1-9]\d*\.pth$")


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint: tensors, numbers, texts, lists and dictionaries of them.

    The file appears whole or not at all: a process that is killed, or a disk that is full, leaves the one before.

    Raises:
        OSError: if it cannot be written; it names the file and says why.
    """
    try:
        atomic_write(path, lambda file: torch.save(content, file), sync=True)
    except (OSError, RuntimeError) as error:
        reason = _reason(error)
        raise OSError(
            getattr(reason, "errno", None) or 5,
            f"checkpoint could not be written: {reason}; the one before is kept",
            str(path),
        ) from error


def _reason(error: BaseException) -> BaseException:
    """torch turns a full disk into a RuntimeError about its own writer."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint that `save` wrote, on the CPU; no code in it is run.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is none, or a weight or a number of the optimizer is NaN or Inf.
    """
    content = weight_files.read(path, "checkpoint")
    wanted = ("model", "optimizer", "scheduler", "sampler", "step")
    missing = [key for key in wanted if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f"checkpoint {path}: has no {', '.join(missing)}, should be one of a training")
    trained = {name: content[name] for name in ("model", "ema", "optimizer") if name in content}
    weight_files.check_finite(path, weight_files.tensors_in(trained), "checkpoint")
    return content


def kept(folder: Path) -> dict[int, Path]:
    """The checkpoints of earlier steps in a folder, step-N.pth, by N, in order."""
    found = {int(path.stem.removeprefix("step-")): path for path in folder.glob("step-*.pth") if _STEP.match(path.name)}
    return dict(sorted(found.items()))


def keep(folder: Path, step: int, count: int) -> None:
    """Copy `last.pth`, of step `step`, to `step-N.pth`, and remove all such of earlier steps but `count` - 1.

    Raises:
        OSError: if it cannot be written; nothing is removed then.
    """
    with open(folder / LAST, "rb") as last:
        atomic_write(folder / f"step-{step}.pth", lambda file: shutil.copyfileobj(last, file), sync=True)
    for number in [number for number in kept(folder) if number <= step][:-count]:
        (folder / f"step-{number}.pth").unlink(missing_ok=True)


def random_state() -> dict[str, Any]:
    """The state of torch's generators, which dropout draws from."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo what has been drawn since `random_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
