"""The progress of a training on a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deeplab_fast.config import Config


class Display:
    """A bar with loss, learning rate, images a second and the time left, on stderr; nothing unless `shown`."""

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
            disable=not shown,
        )

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        """A line above the bar."""
        if self.shown:
            self._progress.console.print(text, highlight=False)

    def start(self, step: int) -> None:
        """Show the bar, of a training that has done `step` steps."""
        self._task = self._progress.add_task("training", total=self._iterations, completed=step, values="")

    def advance(self, loss: float, lr: float, images_per_second: float) -> None:
        """One step more."""
        values = f"loss {loss:.4f}  lr {lr:.2e}  {images_per_second:.1f} images/s"
        self._progress.update(self._task, advance=1, values=values)

    @contextlib.contextmanager
    def evaluation(self, images: int) -> Iterator[Callable[[int, int], None]]:
        """A second bar while images are evaluated; gives what to call with the images done and all images."""
        task = self._progress.add_task("evaluation", total=images, values="")
        try:
            yield lambda done, total: self._progress.update(task, completed=done, total=total)
        finally:
            self._progress.remove_task(task)
