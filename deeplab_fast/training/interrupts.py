"""Ctrl-C or SIGTERM in the middle of a step: the step is finished first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

Asked = Callable[[], "signal.Signals | None"]


class TrainingTerminated(SystemExit):
    """SIGTERM, obeyed when the work at hand was saved: the process exits with 143, as one that the signal ends."""

    def __init__(self, message: str):
        super().__init__(message)
        self.code: int = 128 + signal.SIGTERM


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Asked]:
    """Gives a function that returns the signal, SIGINT or SIGTERM, that came, or None; of both it is SIGTERM.

    Ctrl-C pressed again interrupts at once, as ever. Signals belong to the main thread: in another one, nothing is
    changed.
    """
    came: set[signal.Signals] = set()

    def note(number: int, _: object) -> None:
        if number == signal.SIGINT and number in came:
            raise KeyboardInterrupt
        came.add(signal.Signals(number))

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: max(came, default=None)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
