"""In a CUDA build of torch, GPU or none: the CUDA library loads, its kernels are registered (make test-cuda-torch)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

import deeplab_fast  # noqa: E402
from deeplab_fast import _native, nn  # noqa: E402

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")

# Put together from ops that have kernels for CUDA.
COMPOSED = {"pairwise_energy", "pairwise_energy_backward"}


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


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, device="cuda")


CALLS: dict[str, tuple[Callable, tuple[int, ...]]] = {
    "aspp_sum": (
        lambda: deeplab_fast.aspp_sum(rand(2, 8, 9, 9), [rand(4, 8, 3, 3)] * 2, rand(4), (1, 2)),
        (2, 4, 9, 9),
    ),
    "atrous_conv2d": (
        lambda: deeplab_fast.atrous_conv2d(rand(2, 8, 9, 9), rand(4, 8, 3, 3), rand(4), scale=rand(4), relu=True),
        (2, 4, 7, 7),
    ),
    "permutohedral_filter": (
        lambda: deeplab_fast.permutohedral_filter(rand(2, 4, 9, 9), rand(2, 3, 9, 9)),
        (2, 4, 9, 9),
    ),
    "Lattice": (lambda: deeplab_fast.Lattice(rand(2, 3, 9, 9)).filter(rand(2, 4, 9, 9)), (2, 4, 9, 9)),
    "dense_crf": (lambda: deeplab_fast.dense_crf(rand(2, 4, 9, 9), rand(2, 5, 9, 9), rand(4), 2), (2, 4, 9, 9)),
    "upsample_argmax": (lambda: deeplab_fast.upsample_argmax(rand(2, 4, 9, 9), 20), (2, 20, 20)),
    "upsample_softmax": (lambda: deeplab_fast.upsample_softmax(rand(2, 4, 9, 9), 20), (2, 4, 20, 20)),
    "nn.ASPP": (lambda: nn.ASPP(8, 4)(rand(2, 8, 9, 9)), (2, 4, 9, 9)),
    "nn.ConvBnReLU": (lambda: nn.ConvBnReLU(8, 4, 3).eval()(rand(2, 8, 9, 9)), (2, 4, 7, 7)),
    "nn.DenseCRF": (lambda: nn.DenseCRF(iterations=2)(rand(2, 3, 9, 9), rand(2, 4, 9, 9)), (2, 4, 9, 9)),
    "nn.DenseCRFLoss": (
        lambda: nn.DenseCRFLoss(1e-9, 15, 100, 0.5)(rand(2, 3, 9, 9), rand(2, 4, 9, 9), rand(2, 9, 9)),
        (),
    ),
    "deeplabv2_small": (
        lambda: deeplab_fast.models.deeplabv2_small(4).eval()(rand(2, 3, 65, 65)),
        (2, 4, 9, 9),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_fake_cuda_tensors_go_through(name: str, monkeypatch: pytest.MonkeyPatch):
    """Shape, dtype and device as `torch.compile` and exporters see them."""
    call, shape = CALLS[name]
    # Asks the driver; modules look at values except while a CUDA graph is captured, and fake tensors have none.
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        out = call()
    assert tuple(out.shape) == shape
    assert out.device.type == "cuda"
    assert out.dtype == (torch.int64 if name == "upsample_argmax" else torch.float32)
