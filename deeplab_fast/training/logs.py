"""What a training writes down: a CSV file with a line a step that is logged, and tensorboard's events if wanted."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from deeplab_fast.files import atomic_write

LOG = "log.csv"
COLUMNS = ("step", "loss", "lr", "images_per_second", "seconds", "mean_iou", "pixel_accuracy")


class TrainingLog:
    """`log.csv` in a folder, and with `tensorboard` the folder `tensorboard`.

    Args:
        folder: of the training's output.
        step: that the training starts from; lines of later steps, which a killed run left, are dropped.
        evaluated: step of the last evaluation before it; lines of later evaluations are dropped. Default: `step`.
        tensorboard: whether to write events, too.

    Raises:
        ImportError: without tensorboard, if it is wanted.
        ValueError: if there is a `log.csv` with other columns.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool = False, evaluated: int | None = None):
        self.path = folder / LOG
        rows = read_log(self.path) if step and self.path.exists() else []
        evaluated = step if evaluated is None else evaluated
        kept = [row for row in rows if int(row["step"]) <= (evaluated if row["mean_iou"] else step)]
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(kept)
        atomic_write(self.path, lambda file: file.write(text.getvalue().encode()))
        self._events = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError(
                    "training.tensorboard: is true, which needs the package tensorboard (pip install tensorboard)"
                ) from error
            self._events = SummaryWriter(folder / "tensorboard", purge_step=step + 1 if step else None)

    def write(self, step: int, **values: float) -> None:
        """Append a line; `values` are some of `COLUMNS`."""
        line = io.StringIO()
        csv.DictWriter(line, COLUMNS).writerow({"step": step, **{key: f"{value:.9g}" for key, value in values.items()}})
        try:
            with open(self.path, "a", newline="") as file:  # one write a line, so that none is torn
                file.write(line.getvalue())
        except OSError as error:  # a full disk, found at the file's end, does not say which file
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        if self._events is not None:
            for key, value in values.items():
                self._events.add_scalar(key, value, step)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a `log.csv`; an entry that was not written is an empty text.

    A line that a full disk cut short is left out.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has other columns.
    """
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if None not in row.values()]
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ValueError(f"{path}: has columns {reader.fieldnames}, should have {', '.join(COLUMNS)}")
    return rows
