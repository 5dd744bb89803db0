"""A worker process: reads images ahead, refines one at a time, and ends when its parent does. Does not import torch.

It is started as a program of its own, not forked: it shares no thread, lock or library's state with its parent, and
needs no guard in the parent's script. Three threads: one receives, one reads ahead, the main one computes.
"""

from __future__ import annotations

import queue
import signal
import threading
import warnings
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deeplab_fast.crf.dataset.pairs import Pair
    from deeplab_fast.crf.dataset.work import Loaded, Work

# What is sent to a worker, and what it sends.
WORK, GRANTED = "work", "granted"
READY, NEEDED, DONE = "ready", "needed", "done"


def main(descriptor: int) -> None:
    """Work for the process at the other end of a socket, until it closes it."""
    # The parent decides what signals to it, or to the group or job of both, mean.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(descriptor)
    try:
        work, most_kept = connection.recv()
    except (EOFError, OSError):  # the parent has ended meanwhile
        return
    _prepare(work, most_kept)
    worker = _Worker(connection, work)
    worker.send(READY)
    threading.Thread(target=worker.receive, daemon=True).start()
    threading.Thread(target=worker.read_ahead, daemon=True).start()
    worker.compute()


def _prepare(work: Work, most_kept: int) -> None:
    from deeplab_fast import pydensecrf
    from deeplab_fast.pydensecrf import _backend

    warnings.simplefilter("ignore")  # Pillow's, of odd but readable files; they would tear the parent's progress bar
    pydensecrf.set_num_threads(work.threads)
    core = _backend.core()
    if hasattr(core, "set_most_kept"):  # the stand-in without compiled code keeps nothing
        core.set_most_kept(most_kept)


class _Worker:
    def __init__(self, connection: Connection, work: Work):
        self.connection, self.work = connection, work
        self.incoming: queue.SimpleQueue[tuple[Pair, bool] | None] = queue.SimpleQueue()
        # None is the end; the parent sends no more than it wants to be read ahead.
        self.read: queue.SimpleQueue[tuple[str, Loaded | Exception, bool] | None] = queue.SimpleQueue()
        self.granted = threading.Semaphore(0)
        self.ended = False

    def receive(self) -> None:
        while True:
            try:
                kind, *content = self.connection.recv()
            except (EOFError, OSError):  # the parent has ended, or wants an end
                self.ended = True
                self.incoming.put(None)
                self.granted.release()
                return
            if kind == WORK:
                self.incoming.put((content[0], content[1]))
            else:
                self.granted.release()

    def read_ahead(self) -> None:
        from deeplab_fast.crf.dataset import work

        while (item := self.incoming.get()) is not None:
            pair, is_there = item
            try:
                self.read.put((pair.name, work.load(pair, self.work.how), is_there))
            except Exception as error:
                self.read.put((pair.name, error, is_there))
        self.read.put(None)

    def compute(self) -> None:
        from deeplab_fast.crf.dataset import work

        while not self.ended and (item := self.read.get()) is not None:
            name, loaded, is_there = item
            if isinstance(loaded, Exception):
                outcome = work.failure(name, loaded)
            else:
                self.send(NEEDED, name, loaded.bytes_needed(self.work.how))
                self.granted.acquire()
                if self.ended:
                    return
                try:
                    outcome = work.done(work.finish(loaded, self.work, is_there=is_there))
                except Exception as error:
                    outcome = work.failure(name, error)
            del item, loaded  # before the next one is waited for
            self.send(DONE, outcome)

    def send(self, *message: object) -> None:
        try:
            self.connection.send(message)
        except OSError:
            self.ended = True
