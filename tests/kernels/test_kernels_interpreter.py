"""Runs kernels_interpreted.py: the Triton kernels in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")


ROOT = Path(__file__).parents[2]


def run(*command: str, folder: Path) -> None:
    """In a process of its own: Triton reads TRITON_INTERPRET once, when a kernel is defined."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-20000:]


def test_kernels_in_the_interpreter():
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", "kernels_interpreted.py", folder=ROOT / "tests" / "kernels")
