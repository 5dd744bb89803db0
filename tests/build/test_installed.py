"""What an installed package does on any machine, with torch or without, no compiler in reach (`make test-wheel`).

This file needs nothing but pytest and the package, so that it may be run from anywhere.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

import deeplab_fast
from deeplab_fast import _native
from deeplab_fast.pydensecrf import _fallback

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as tests/conftest.py does
_densecrf = pytest.importorskip("deeplab_fast._densecrf", reason="the compiled core is not built")
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")


def output_of(*command: str, folder: Path | None = None) -> str:
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 3, shape).astype(np.float32)


def test_what_is_imported_is_what_is_installed():
    assert _densecrf.build_info()["version"] == deeplab_fast.__version__
    distribution = metadata.distribution("deeplab-fast")
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    folder = Path(deeplab_fast.__file__).parent
    if folder.parent.name == "site-packages" and not origin.get("dir_info", {}).get("editable"):
        assert distribution.version == deeplab_fast.__version__
        assert folder.samefile(distribution.locate_file("deeplab_fast"))


# --- on numpy --------------------------------------------------------------------------------------------------------


def test_pydensecrf_needs_no_torch():
    code = "import sys, deeplab_fast.pydensecrf.densecrf, deeplab_fast._densecrf; print('torch' in sys.modules)"
    assert output_of("-c", code) == "False\n"


def refined(core: ModuleType) -> np.ndarray:
    height, width = 40, 50
    crf = core.DenseCRF(height * width, 3, width)
    crf.set_unary(random(3, height * width))
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    crf.add_gaussian(width, height, 3.0, 3.0, np.array(3, np.float32), 3)
    crf.add_bilateral(width, height, 20.0, 20.0, 13.0, 13.0, 13.0, image, np.array(5, np.float32), 3)
    return crf.inference(5)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_core_computes_as_numpy_does(threads: int):
    before = _densecrf.get_num_threads()
    _densecrf.set_num_threads(threads)
    try:
        np.testing.assert_allclose(refined(_densecrf), refined(_fallback), atol=1e-4)
    finally:
        _densecrf.set_num_threads(before)
        _densecrf.release_memory()


def test_errors_of_the_core_arrive_in_python():
    with pytest.raises(ValueError, match="epsilon: is 2"):
        _densecrf.DenseCRF(6, 2, 3).set_collapse(2.0)


def test_the_command_refines_a_picture(tmp_path: Path):
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "photo.png")
    np.save(tmp_path / "scores.npy", random(2, 6, 8))
    command = ("-m", "deeplab_fast", "crf", "photo.png", "scores.npy", "-o", "labels.png")
    output_of(*command, folder=tmp_path)
    assert Image.open(tmp_path / "labels.png").size == (8, 6)
    assert "deeplab-fast" in output_of("-m", "deeplab_fast", "doctor", folder=tmp_path)


# --- on torch --------------------------------------------------------------------------------------------------------


@needs_torch
def test_the_libraries_of_this_torch_load():
    import torch

    status = _native.status()
    assert status["cpu"] == "loaded"
    if _native.LIBRARIES["cuda"].exists():
        without_cuda = "built, not loaded: this torch is built without CUDA"
        assert status["cuda"] == ("loaded" if torch.version.cuda else without_cuda)
    deeplab_fast.upsample_argmax(torch.rand(1, 3, 4, 4), 8)
    assert torch.cuda.is_available() or not torch.cuda.is_initialized()


@needs_torch
@pytest.mark.parametrize("threads", [1, 2])
def test_ops_and_gradients_agree_with_the_reference(threads: int):
    import torch

    def op_and_reference(name: str, *inputs: torch.Tensor, **others: object) -> None:
        results = []
        for module, dtype in ((deeplab_fast, torch.float32), (deeplab_fast.reference, torch.float64)):
            converted = [value.to(dtype).requires_grad_() for value in inputs]
            result = getattr(module, name)(*converted, **others)
            results.append([result, *torch.autograd.grad(result.square().sum(), converted)])
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(ours.double(), expected, atol=1e-3, rtol=1e-3)

    generator = torch.Generator().manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        scores = torch.randn(1, 3, 20, 30, generator=generator)
        features = 3 * torch.randn(1, 2, 20, 30, generator=generator)
        op_and_reference("dense_crf", scores, features, compat=3.0, iterations=3)
        op_and_reference("permutohedral_filter", scores, features)
        op_and_reference("upsample_softmax", scores, size=(57, 63))
        maps, weight = torch.randn(1, 32, 40, 40, generator=generator), torch.randn(32, 32, 3, 3, generator=generator)
        op_and_reference("atrous_conv2d", maps, weight / 17, padding=6, dilation=6)
    finally:
        torch.set_num_threads(before)
        _native.release_memory()


@needs_torch
def test_errors_of_the_kernels_arrive_in_python():
    import torch

    deeplab_fast.upsample_argmax(torch.rand(1, 3, 4, 4), 8)
    with pytest.raises(ValueError, match=r"out: should be .N, H, W., int64"):
        torch.ops.deeplab_fast.upsample_argmax_into(torch.rand(1, 3, 4, 4), torch.zeros(1, 8, 8))
