"""What the commands share: how failures, remarks and progress are shown. Nothing here imports torch."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from deeplab_fast.errors import ArgumentError, ArgumentTypeError
from deeplab_fast.files import DestinationError

if TYPE_CHECKING:
    import torch

    from deeplab_fast.config import Config
    from deeplab_fast.config.weights import Weights

# Packages of the extra `train`, by the modules that are imported from them.
TRAIN_PACKAGES = {
    "torch": "torch",
    "pydantic": "pydantic",
    "yaml": "pyyaml",
    "matplotlib": "matplotlib",
    "scipy": "scipy",
    "google": "protobuf",
    "google.protobuf": "protobuf",
}

LINE_SECONDS = 10.0  # between lines that tell of progress


class WrongUse(Exception):
    """Options that make no sense, alone or together: exit code 2."""


class WrongOption(ArgumentError, WrongUse):
    """An option that has a value which it does not take; `name` is the option's, with its dashes."""


@contextlib.contextmanager
def option_errors(*options: str, **others: str) -> Iterator[None]:
    """Turn an error about an argument, raised inside, into one about the option that stands for it.

    Args:
        options: such as "--pos-w", which stands for the argument `pos_w`; an error about another argument stays.
        others: options that stand for arguments of other names.
    """
    meant = {option.lstrip("-").replace("-", "_"): option for option in options} | others
    try:
        yield
    except (ArgumentError, ArgumentTypeError) as error:
        if error.name not in meant:
            raise
        option = meant[error.name]
        raise WrongOption(option, error.value, error.wanted, what=error.what, where=error.where) from error


class Terminated(BaseException):
    """SIGTERM was received."""


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """SIGTERM, which ends a process at once, raises Terminated, so that what is half-written is taken away.

    Signals belong to the main thread: in another one, nothing is changed. A worker process that is forked inside ends
    at once, as ever.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def terminate(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() != process:
            os.kill(os.getpid(), signal.SIGTERM)
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def reported(command: str, debug: bool) -> Iterator[None]:
    """Turn every failure into one line on stderr and an exit code; with ``debug`` show the traceback, too."""
    try:
        with sigterm_raises():
            yield
    except (typer.Exit, typer.Abort):
        raise
    except Terminated:
        typer.echo(f"deeplab-fast {command}: terminated", err=True)
        raise typer.Exit(128 + signal.SIGTERM) from None
    except (WrongUse, DestinationError) as error:
        typer.echo(f"deeplab-fast {command}: wrong use: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt as error:
        typer.echo(f"deeplab-fast {command}: interrupted {error}".rstrip(), err=True)
        raise typer.Exit(1) from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        message = _message(error)
        known = isinstance(error, (ValueError, TypeError, OSError, MemoryError, ImportError, FloatingPointError))
        hint = "" if known or debug else f" ({type(error).__name__}; --debug shows where)"
        typer.echo(f"deeplab-fast {command}: error: {message}{hint}", err=True)
        raise typer.Exit(1) from None


def _message(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return f"not enough memory: {text}" if text else "not enough memory"
    if isinstance(error, ImportError):
        for module, package in TRAIN_PACKAGES.items():
            # A module that torch itself lacks has another name; our own errors have none, and name the package.
            if error.name == module or f"pip install {package}" in text:
                return f'{package} is needed here and is not installed: pip install "deeplab-fast[train]"'
    return text or type(error).__name__


def configuration(path: Path, overrides: Sequence[str] | None) -> Config:
    """The configuration with what `--set` replaces in it; see `deeplab_fast.config.read_config`."""
    from deeplab_fast.config import read_config

    with option_errors(overrides="--set"):
        return read_config(path, overrides or ())


def chosen_device(option: str | None, entry: str) -> torch.device:
    """The device that `--device` names, or else the configuration."""
    from deeplab_fast.config.device import device_of

    if option is None:
        return device_of(entry)
    with option_errors("--device"):
        return device_of(option)


@contextlib.contextmanager
def weights_advice(**advice: str) -> Iterator[None]:
    """Where weights do not fit, say what this command has for it; see `deeplab_fast.models.WeightsError`."""
    from deeplab_fast.models import WeightsError

    try:
        yield
    except WeightsError as error:
        raise error.advising({"key": "say which with --key", **advice}) from error


def network_of(weights: Path, config: Config | None, key: str | None) -> Weights:
    """The network of a file of weights, which has to fit the configuration; remarks on it are shown."""
    from deeplab_fast.config.weights import read_weights

    other = "--config should be that of their training; to train them for another, set its model.weights"
    with weights_advice(classifier=other, accept_stride=other):
        loaded = read_weights(weights, config, key=key)
    for text in loaded.notes if is_first_process() else ():
        note(text)
    return loaded


def is_first_process() -> bool:
    """Whether this is the first of the processes that torchrun started, or the only one: the one that reports."""
    return int(os.environ.get("RANK", 0)) == 0


def note(text: str) -> None:
    """A remark beside the result, on stderr."""
    typer.echo(f"note: {text}", err=True)


@contextlib.contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Show warnings raised inside as notes, without file names and source lines."""
    with warnings.catch_warnings():
        # Of what is deprecated in packages' calls of each other, whoever types commands need not know.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.showwarning = lambda message, *_args, **_kwargs: note(str(message))
        yield


@contextlib.contextmanager
def spinner(text: str) -> Iterator[None]:
    """A spinner on stderr while something runs, where stderr is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    # Elsewhere it prints an empty line, in older versions of rich.
    with console.status(text) if console.is_terminal else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def progress_bar(text: str, unit: str = "") -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, where stderr is a terminal; gives what to call with the number done and the number of all.

    With a unit, such as "images", it shows how many of them are done a second, and where stderr is no terminal prints
    a line now and then instead. Of the processes that torchrun started, the first shows it.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns: list[ProgressColumn] = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    console = Console(stderr=True)
    # Elsewhere a bar that is disabled still prints an empty line, in older versions of rich.
    if not console.is_terminal or (not unit and not is_first_process()):
        yield _lines(text, unit) if unit else lambda done, total: None
        return
    if unit:
        columns.insert(3, TextColumn("{task.fields[rate]}"))
    start = time.monotonic()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(text, total=None, rate="")

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, rate=_rate(done, start, unit))

        yield show


def _rate(done: int, start: float, unit: str) -> str:
    return f"{done / max(time.monotonic() - start, 1e-9):.1f} {unit}/s"


def _lines(text: str, unit: str) -> Callable[[int, int], None]:
    """What prints a line, at most every LINE_SECONDS and in the end."""
    start = last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done == 0 or (now - last < LINE_SECONDS and done < total):
            return
        last = now
        minutes, seconds = divmod(round((total - done) * (now - start) / done), 60)
        left = f", {minutes}:{seconds:02} left" if done < total else ""
        typer.echo(f"{text}: {done} of {total}, {_rate(done, start, unit)}{left}", err=True)

    return show
