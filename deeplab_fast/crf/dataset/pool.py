"""The worker processes of a run: started, given work and memory, replaced when they die, and stopped."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait

from deeplab_fast.crf.dataset import worker
from deeplab_fast.crf.dataset.pairs import Pair
from deeplab_fast.crf.dataset.work import Outcome, Work

AHEAD = 1  # images that a worker reads while it computes another
TRIES = 2  # of an image whose worker died
GRACE = 10.0  # seconds that workers have, when the run is stopped, for the images that they are at
MOST_FAILED_STARTS = 3

Task = tuple[Pair, bool]  # an image, and whether its results are there


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    ready: bool = False
    tasks: list[Task] = field(default_factory=list)  # that it has; the first is the one it is at
    alone: bool = False  # whether it gets no second one until its only one is done
    asked: int | None = None  # bytes that it wants for the first
    granted: int = 0


class Pool:
    """Worker processes that share a list of images. To be closed.

    Args:
        work: to be done with each image.
        jobs: how many processes.
        memory: bytes that all together may take for images; one image that needs more is refined while no other is.
        most_kept: bytes that each may keep between images.
    """

    def __init__(self, work: Work, jobs: int, memory: float, most_kept: int):
        self.work, self.jobs, self.memory, self.most_kept = work, jobs, memory, most_kept
        self._workers: list[_Worker] = []
        self._failed_starts = 0

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """The outcome of each image, as they are done.

        Raises:
            RuntimeError: if no worker can be started.
        """
        waiting, suspects = deque(tasks), deque[Task]()
        deaths: Counter[str] = Counter()
        while True:
            self._give(waiting, suspects)
            if not any(one.tasks for one in self._workers) and not waiting and not suspects:
                return
            ready = wait([one.connection for one in self._workers])
            for one in [one for one in self._workers if one.connection in ready]:
                try:
                    kind, *content = one.connection.recv()
                except (EOFError, OSError, pickle.UnpicklingError):
                    yield from self._buried(one, suspects, deaths)
                    continue
                if kind == worker.READY:
                    one.ready, self._failed_starts = True, 0
                elif kind == worker.NEEDED:
                    # What killed a worker may have been a lack of memory: such an image gets all of it.
                    one.asked = int(max(content[1], self.memory)) if one.alone else content[1]
                else:
                    one.tasks.pop(0)
                    one.asked, one.granted = None, 0
                    yield content[0]
            self._grant()

    # --- work and memory -----------------------------------------------------------------------------------------

    def _give(self, waiting: deque[Task], suspects: deque[Task]) -> None:
        """Start the workers that are missing, and give each as much as it shall have."""
        busy = sum(bool(one.tasks) for one in self._workers)
        while len(self._workers) < min(self.jobs, busy + len(waiting) + len(suspects)):
            self._workers.append(self._started())
        for one in self._workers:
            if not one.ready:
                continue
            if not one.tasks:
                # An image at which a worker died is tried again without a second one, so that it is clear whose
                # fault it is.
                one.alone = bool(suspects)
                if suspects:
                    self._send(one, suspects.popleft())
                elif waiting:
                    self._send(one, waiting.popleft())
        # Read ahead only when every worker has something to do.
        for one in self._workers:
            while one.ready and one.tasks and not one.alone and len(one.tasks) <= AHEAD and waiting:
                self._send(one, waiting.popleft())

    def _send(self, one: _Worker, task: Task) -> None:
        one.tasks.append(task)
        with contextlib.suppress(OSError):  # it has died: receiving from it tells
            one.connection.send((worker.WORK, *task))

    def _grant(self) -> None:
        """Let workers begin that wait for memory; the one that needs most of it first, or it might wait for ever."""
        asking = sorted((one for one in self._workers if one.asked is not None), key=lambda one: -(one.asked or 0))
        for one in asking:
            used = sum(other.granted for other in self._workers)
            assert one.asked is not None
            if used and used + one.asked > self.memory:
                return
            one.granted, one.asked = max(one.asked, 1), None
            with contextlib.suppress(OSError):
                one.connection.send((worker.GRANTED,))

    # --- life and death ------------------------------------------------------------------------------------------

    def _started(self) -> _Worker:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            # With this process's path, so that it is the same package; without its working directory on the path.
            code = (
                f"import sys; sys.path[:] = {sys.path!r}; from {worker.__name__} import main; main({theirs.fileno()})"
            )
            environment = os.environ | {"OMP_NUM_THREADS": str(self.work.threads)}
            process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,  # a Ctrl-C in the terminal is for this process
            )
            connection = Connection(ours.detach())
        with contextlib.suppress(OSError):
            connection.send((self.work, self.most_kept))
        return _Worker(process, connection)

    def _buried(self, one: _Worker, suspects: deque[Task], deaths: Counter[str]) -> Iterator[Outcome]:
        """Take leave of a worker that died; outcomes of images that it died at for the last time."""
        self._workers.remove(one)
        one.connection.close()
        code = one.process.wait()
        if not one.ready:
            self._failed_starts += 1
            if self._failed_starts >= MOST_FAILED_STARTS:
                raise RuntimeError(f"worker processes cannot be started: {_ending(code)}")
        if one.tasks:
            deaths[one.tasks[0][0].name] += 1  # what was read ahead may be to blame as well: it is tried alone, too
        for task in one.tasks:
            if deaths[task[0].name] < TRIES:
                suspects.append(task)
            else:
                yield Outcome(task[0].name, error=f"its worker process ended {TRIES} times: {_ending(code)}")

    def close(self, grace: float = 0.0) -> None:
        """Stop all workers, after at most `grace` seconds for the images that they are at."""
        try:
            for one in self._workers:
                one.connection.close()
            deadline = time.monotonic() + grace
            for one in self._workers:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    one.process.wait(max(0.0, deadline - time.monotonic()))
        finally:  # also after a second Ctrl-C
            for one in self._workers:
                one.process.kill()
            for one in self._workers:
                one.process.wait()
            self._workers.clear()


def _ending(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code).name
        return f"{name}, as of a system that is out of memory" if name == "SIGKILL" else name
    return f"signal {-code}"
