"""Where torch is there and the compiled kernels are not: the same answers, one warning, and the reason in words."""

from __future__ import annotations

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from compiled import require_kernels  # noqa: E402
from torch import nn  # noqa: E402

import deeplab_fast  # noqa: E402
from deeplab_fast import _native  # noqa: E402
from deeplab_fast.ops import packing  # noqa: E402

NOT_BUILT = "deeplab_fast's CPU kernels are not used, plain PyTorch is, much slower: not built, as no torch was seen"

# What each op gives without kernels, with its warnings; in a process of its own: a library once loaded stays.
SCRIPT = """
import sys, warnings
from pathlib import Path
import deeplab_fast
from deeplab_fast import _native
_native.LIBRARIES = {kind: Path("/nowhere") / path.name for kind, path in _native.LIBRARIES.items()}
from torch import rand
import deeplab_fast.ops as ops
calls = {
    "aspp_sum": lambda: ops.aspp_sum(rand(1, 8, 9, 9), [rand(4, 8, 3, 3)], None, (2,)),
    "atrous_conv2d": lambda: ops.atrous_conv2d(rand(1, 32, 40, 40), rand(16, 32, 3, 3), padding=2, dilation=2),
    "permutohedral_filter": lambda: ops.permutohedral_filter(rand(1, 2, 50), rand(1, 3, 50)),
    "dense_crf": lambda: ops.dense_crf(rand(1, 2, 50), rand(1, 3, 50), 3.0, 2),
    "dense_crf with a gradient": lambda: ops.dense_crf(rand(1, 2, 50).requires_grad_(), rand(1, 3, 50), 3.0, 2),
    "pairwise_energy": lambda: ops.pairwise_energy(rand(1, 2, 9, 9), rand(1, 3, 9, 9)),
    "upsample_argmax": lambda: ops.upsample_argmax(rand(1, 2, 9, 9), 20),
    "upsample_softmax": lambda: ops.upsample_softmax(rand(1, 2, 9, 9), 20),
}
for name, call in calls.items():
    _native.warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
        call()
    texts = [str(one.message) for one in caught if issubclass(one.category, RuntimeWarning)]
    print(name, "|", "; ".join(texts))
"""


def test_every_op_warns_once():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split(" | ") for line in done.stdout.splitlines()]
    assert len(lines) == 8
    for name, text in lines:
        assert text.startswith(NOT_BUILT), name
        assert text.count(NOT_BUILT) == 1, name
        assert "pip install --no-build-isolation" in text, name


@pytest.fixture
def without_kernels(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing built, and nothing warned of yet."""
    places = {kind: tmp_path / path.name for kind, path in _native.LIBRARIES.items()}
    monkeypatch.setattr(_native, "LIBRARIES", places)
    monkeypatch.setattr(_native, "libraries", _native.libraries.__wrapped__)
    monkeypatch.setattr(_native, "warn_once", _native.warn_once.__wrapped__)
    monkeypatch.setattr(packing, "_kept", {})


def network() -> nn.Module:
    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())).eval()


def test_patch_says_why_it_is_slow(without_kernels: None):
    with pytest.warns(RuntimeWarning, match=NOT_BUILT):
        report = deeplab_fast.patch(network())
    assert len(report.replaced) == 1, str(report)
    assert report.left_alone == []
    assert str(report).startswith(NOT_BUILT)
    assert "--no-build-isolation" in report.remark


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_accelerate_works_and_says_why_it_is_slow(without_kernels: None, dtype: torch.dtype | None):
    model, x = network(), torch.rand(2, 3, 8, 8)
    expected = model(x)
    with pytest.warns(RuntimeWarning, match=NOT_BUILT):
        deeplab_fast.accelerate(model, dtype)
    with torch.inference_mode():
        result = model(x)
    assert torch.allclose(result, expected, atol=2e-2)
    assert model.deeplab_fast_report.remark.startswith(NOT_BUILT)


def test_with_kernels_there_is_nothing_to_say(recwarn: pytest.WarningsRecorder):
    require_kernels()
    report = deeplab_fast.patch(network())
    assert report.remark == ""
    assert str(report).startswith("Replaced (1)")
    assert [one for one in recwarn if issubclass(one.category, RuntimeWarning)] == []
