"""Tests that need compiled libraries. Those are optional: a machine may have no compiler, or no nvcc."""

from __future__ import annotations

from pathlib import Path

import pytest

from deeplab_fast import _native


def require_kernels() -> None:
    """Skip a test, or a file of them, without the CPU kernels: the reference computes then, which others check."""
    if not _native.load():
        pytest.skip("the compiled library is not there", allow_module_level=True)


def require_built(library: Path) -> None:
    """Skip a test that looks into a library's file where that was not built."""
    if not library.exists():
        pytest.skip(f"{library.name} is not built")
