"""What a training writes down: a CSV file with a line a step that is logged; and any other logger that is told, too."""

from __future__ import annotations

import csv
import io
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from deeplab_fast.config import Config
from deeplab_fast.errors import ArgumentError, ArgumentTypeError
from deeplab_fast.files import atomic_write

LOG = "log.csv"
COLUMNS = ("step", "loss", "lr", "images_per_second", "seconds", "mean_iou", "pixel_accuracy")


@runtime_checkable
class Logger(Protocol):
    """What a training tells its numbers, in its first process; what a logger raises ends the training.

    After a resume it may be told a step again, that a killed run had come to.
    """

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """`values` by name: loss, lr, images_per_second and seconds; after an evaluation mean_iou, pixel_accuracy."""

    def close(self) -> None:
        """The training has ended, well or not."""


# Also a function of step and values; of wandb: lambda step, values: run.log(dict(values), step=step).
AnyLogger = Logger | Callable[[int, Mapping[str, float]], Any]


class _Function:
    """A function as a logger."""

    def __init__(self, function: Callable[[int, Mapping[str, float]], Any]):
        self.log = function

    def close(self) -> None:
        """Nothing is to be closed."""


class TensorBoard:
    """Events for TensorBoard, in a folder.

    Args:
        folder: of the events.
        step: that the training starts from; events of later steps are dropped.

    Raises:
        ImportError: without the package tensorboard.
    """

    def __init__(self, folder: Path, step: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "training.tensorboard: is true, which needs the package tensorboard (pip install tensorboard)"
            ) from error
        self._events = SummaryWriter(folder, purge_step=step + 1 if step else None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A scalar for each value."""
        for key, value in values.items():
            self._events.add_scalar(key, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._events.close()


def as_logger(given: Any, name: str = "loggers") -> Logger:
    """A logger, or a function of step and values, as a logger.

    Raises:
        TypeError: if it is neither; `name` is what the error calls it.
    """
    if isinstance(given, Logger):
        return given
    if not callable(given):
        raise ArgumentTypeError(name, type(given), "a Logger, with log and close, or a function of step and values")
    return _Function(given)


def every_logger(config: Config, step: int, given: Sequence[AnyLogger] = ()) -> list[Logger]:
    """Those given, that of `training.logger` and TensorBoard's, of a training that starts from `step`.

    Raises:
        ImportError: without tensorboard, if it is wanted.
        TypeError, ValueError: if one is no logger, or `training.logger` names none.
    """
    loggers = [as_logger(one) for one in given]
    if config.training.logger is not None:
        loggers.append(_made(config.training.logger, config))
    if config.training.tensorboard:
        loggers.append(TensorBoard(config.output / "tensorboard", step))
    return loggers


def _made(path: str, config: Config) -> Logger:
    """The logger that the function "module:name" makes for a configuration."""
    name = "training.logger"
    try:
        make = pkgutil.resolve_name(path)
    except (ImportError, AttributeError) as error:
        raise ArgumentError(name, path, f"a function in a module that can be imported ({error})") from error
    if not callable(make):
        raise ArgumentTypeError(name, type(make), "a function of the configuration")
    return as_logger(make(config), f"{name}: {path}")


class TrainingLog:
    """`log.csv` in a folder, and other loggers.

    Args:
        folder: of the training's output.
        step: that the training starts from; lines of later steps, which a killed run left, are dropped.
        evaluated: step of the last evaluation before it; lines of later evaluations are dropped. Default: `step`.
        others: to be told the same, and to be closed.

    Raises:
        ValueError: if there is a `log.csv` with other columns.
    """

    def __init__(self, folder: Path, step: int, evaluated: int | None = None, others: Sequence[Logger] = ()):
        self.others = list(others)
        self.path = folder / LOG
        rows = read_log(self.path) if step and self.path.exists() else []
        evaluated = step if evaluated is None else evaluated
        kept = [row for row in rows if int(row["step"]) <= (evaluated if row["mean_iou"] else step)]
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(kept)
        atomic_write(self.path, lambda file: file.write(text.getvalue().encode()))

    def write(self, step: int, **values: float) -> None:
        """Append a line; `values` are some of `COLUMNS`."""
        line = io.StringIO()
        csv.DictWriter(line, COLUMNS).writerow({"step": step, **{key: f"{value:.9g}" for key, value in values.items()}})
        try:
            with open(self.path, "a", newline="") as file:  # one write a line, so that none is torn
                file.write(line.getvalue())
        except OSError as error:  # a full disk, found at the file's end, does not say which file
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        for logger in self.others:
            logger.log(step, values)

    def close(self) -> None:
        """Close the other loggers."""
        for logger in self.others:
            logger.close()


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
