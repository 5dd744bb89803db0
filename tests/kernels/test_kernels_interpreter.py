"""Runs kernels_interpreted.py: the Triton kernels in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")


FOLDER = Path(__file__).parent
INTERPRETED = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "kernels_interpreted.py", "-k")
COMMANDS = {
    "aspp_sum": (*INTERPRETED, "aspp_sum and not gradients"),
    "aspp_sum_gradients": (*INTERPRETED, "aspp_sum and gradients"),
    "atrous_conv2d": (*INTERPRETED, "not aspp_sum"),
}


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[subprocess.Popen, Path]]]:
    """All at once, since each keeps one processor busy; with the file that has what it says.

    In processes of their own: Triton reads TRITON_INTERPRET once, when a kernel is defined.
    """
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    folder = tmp_path_factory.mktemp("interpreted")
    started: dict[str, tuple[subprocess.Popen, Path]] = {}
    try:
        for name, command in COMMANDS.items():
            with open(folder / name, "w") as said:
                process = subprocess.Popen(
                    [sys.executable, *command], cwd=FOLDER, env=environment, stdout=said, stderr=subprocess.STDOUT
                )
            started[name] = process, folder / name
        yield started
    finally:
        for process, _ in started.values():
            process.kill()
            process.wait()


@pytest.mark.parametrize("name", COMMANDS)
def test_kernels_in_the_interpreter(name: str, processes: dict[str, tuple[subprocess.Popen, Path]]):
    process, said = processes[name]
    assert process.wait() == 0, said.read_text()[-20000:]
