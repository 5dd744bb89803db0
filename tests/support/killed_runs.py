"""Runs of the command over a data set that are killed again and again, and what must be left of them."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
from data_sets import make_set, names, written

TIMEOUT = 120.0


def command(root: Path, out: str, *options: str) -> subprocess.Popen[str]:
    """The command over a set that `make_set` made, in a process of its own."""
    words = ["crf", str(root / "images"), str(root / "scores"), "-o", str(root / out), "--jobs", "2", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "deeplab_fast", *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        # A shell has what it starts in the background ignore Ctrl-C, and what that starts.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def finished(process: subprocess.Popen[str]) -> str:
    """What a command says until it ends, which it must do without an error."""
    text, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, text
    return text


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """A command's worker processes."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children()
    return []


def results(out: Path) -> dict[str, bytes]:
    """Files that have their names: neither what is half-written, which may vanish while it is read, nor failures."""
    paths = [path for path in sorted(out.rglob("*")) if not is_partial(path.name) and path.name != "failed.txt"]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths if path.is_file()}


def is_partial(name: str) -> bool:
    return name.endswith(".partial")


def killed_run(root: Path, expected: dict[str, bytes], rng: random.Random, how: signal.Signals | str) -> None:
    """Start the command, and kill it, or a worker, when a random number of further images is there."""
    out = root / "out"
    if len(results(out)) > 0.8 * len(expected):  # so that there is something to be killed at
        for name in rng.sample(sorted(results(out)), len(expected) // 2):
            (out / name).unlink()
    before = len(results(out))
    process = command(root, "out")
    try:
        # At least one image, so that kills get on.
        wanted = before + rng.randint(1, max(1, (len(expected) - before) // 8))
        while len(results(out)) < min(wanted, len(expected)) and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        if isinstance(how, signal.Signals):
            text = _killed(process, how)
        elif how == "everything":
            text = _killed(process, signal.SIGKILL, workers_too=True)
        else:
            for one in rng.sample(workers(process), min(1, len(workers(process)))):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            time.sleep(rng.uniform(0, 0.2))
            text = finished(process) if rng.random() < 0.3 else _killed(process, signal.SIGKILL)
        assert "Traceback" not in text, text
    finally:
        process.kill()
        process.wait()
    for name, content in results(out).items():
        assert content == expected[name], f"{name} is not whole"


def _killed(process: subprocess.Popen[str], number: signal.Signals, workers_too: bool = False) -> str:
    """What a command says until a signal has ended it, and its workers have ended, too."""
    process.send_signal(signal.SIGSTOP)  # so that no worker is started after these are counted
    children = workers(process)
    for one in children if workers_too else ():
        one.kill()
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    text, _ = process.communicate(timeout=TIMEOUT)
    # What a signal makes of it, or 0 if it was done before.
    codes = {signal.SIGKILL: -9, signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGINT: 1}
    assert process.returncode in (codes[number], 0), (number, process.returncode, text)
    # They end by themselves, after the image that they are at.
    _, alive = psutil.wait_procs(children, timeout=TIMEOUT)
    assert not alive
    return text


def check_killed_runs(root: Path, count: int, kills: int, seed: int, height: int = 96, width: int = 128) -> str:
    """Kill runs over a set of `count` images, go on, and compare with a run that was never interrupted.

    Raises:
        AssertionError: if a file is not whole, differs, or is missing.
    """
    make_set(root, count, height, width)
    finished(command(root, "whole"))
    expected = results(root / "whole")
    assert set(expected) == {"settings.json", *(f"{name}.png" for name in names(count))}
    rng = random.Random(seed)
    ways: list[signal.Signals | str] = [signal.SIGKILL, "worker", "everything", signal.SIGTERM, signal.SIGINT]
    for number in range(kills):
        killed_run(root, expected, rng, ways[number % len(ways)])
    left = sum(is_partial(name) for name in written(root / "out"))
    last = finished(command(root, "out"))
    assert results(root / "out") == expected
    assert not [name for name in written(root / "out") if is_partial(name) or name == "failed.txt"]
    there = next((line for line in last.splitlines() if "are there already" in line), "")
    return f"{count} images, {kills} kills: all equal; before the last run {left} half-written files; {there}"
