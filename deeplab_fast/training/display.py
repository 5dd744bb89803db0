"""The progress of a training: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deeplab_fast.config import Config

LINES = 50  # of a whole training, in a file


class Display:
    """Loss, learning rate, images a second and the time left, on stderr; nothing unless `shown`."""

    def __init__(self, config: Config, shown: bool):
        self.shown = shown
        self.console = Console(stderr=True)
        self._iterations = config.training.iterations
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (shown and self.console.is_terminal),
        )

    def __enter__(self) -> Display:
        if not self._progress.disable:
            self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if not self._progress.disable:  # it would print an empty line all the same, in older versions of rich
            self._progress.stop()

    def note(self, text: str) -> None:
        """A line above the bar."""
        if self.shown:
            self.console.print(text, highlight=False, soft_wrap=True)

    def start(self, step: int) -> None:
        """Show the bar, of a training that has done `step` steps."""
        self._task = self._progress.add_task("training", total=self._iterations, completed=step, values="")

    def advance(self, step: int, loss: float, lr: float, images_per_second: float, seconds_left: float) -> None:
        """`step` steps are done."""
        values = f"loss {loss:.4f}  lr {lr:.2e}  {images_per_second:.1f} images/s"
        self._progress.update(self._task, completed=step, values=values)
        if not self.console.is_terminal and step % max(1, self._iterations // LINES) == 0:
            left = timedelta(seconds=round(seconds_left))
            self.note(f"step {step} of {self._iterations}  {values}  {left} left")

    @contextlib.contextmanager
    def bar(self, text: str, total: int) -> Iterator[Callable[[int, int], None]]:
        """One more bar while something is done; gives what to call with the number done and that of all."""
        task = self._progress.add_task(text, total=total, values="")
        try:
            yield lambda done, total: self._progress.update(task, completed=done, total=total)
        finally:
            self._progress.remove_task(task)
