"""In a CUDA build of torch, GPU or none: the CUDA library loads, its kernels are registered (make test-cuda-torch)."""

from __future__ import annotations

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from deeplab_fast import _native  # noqa: E402

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")

# torch's own kernels do it.
COMPOSED = {"pairwise_energy_backward"}


def has_kernel(op: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(op, key)


def test_the_library_loads():
    assert _native.status()["cuda"] == "loaded"


def test_every_op_has_a_cuda_kernel():
    assert _native.load()
    names = {name.split(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("deeplab_fast::")}
    # Internal ops that fill a tensor are the CPU's where their name says so, and so is packing.
    ops = {name for name in names if has_kernel(name, "CPU") and not name.endswith(("_cpu", "_pack"))}
    ops -= {f"deeplab_fast::{name}" for name in COMPOSED}
    assert len(ops) > 15
    assert [name for name in sorted(ops) if not has_kernel(name, "CUDA")] == []


def test_importing_initialises_no_cuda():
    script = (
        "import torch, deeplab_fast.nn, deeplab_fast.patching, deeplab_fast.ops.lattice;"
        "from deeplab_fast import ops, _native;"
        "assert _native.cuda_loaded(); ops.upsample_argmax(torch.rand(1, 3, 4, 4), 8);"
        "assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
