"""Every instruction set that the core is compiled for makes the same lattice and gives the same labels."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from places import INSTRUCTION_SETS

from deeplab_fast.pydensecrf import _fallback

_densecrf = pytest.importorskip("deeplab_fast._densecrf", reason="the compiled dense CRF is not built here")

REPORT = """
import os, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from agreement import PRESETS, add_preset
from deeplab_fast import _densecrf
from deeplab_fast.pydensecrf import densecrf
from photos import photo, unary
if os.environ["DEEPLAB_FAST_ISA"] != _densecrf.isa():
    sys.exit(3)
result = {}
rng = np.random.default_rng(0)
image = photo("astronaut", 141, 203)
for dims in (1, 2, 3, 5, 6, 8):
    # Multiples of 1/8 make many exact ties, where a fused multiply-add or another rounding would show.
    ties = rng.integers(-200, 200, (dims, 5003)) / 8
    for kind, features in (("random", rng.normal(0, 9, (dims, 5003))), ("ties", ties)):
        lattice = _densecrf.Lattice(features.astype(np.float32))
        for part in ("keys", "vertices", "neighbours"):
            result[f"{kind} {dims} {part}"] = getattr(lattice, part)()
        result[f"{kind} {dims} features"] = features.astype(np.float32)
for preset in PRESETS:
    for labels in (2, 21):
        crf = densecrf.DenseCRF2D(203, 141, labels)
        crf.setUnaryEnergy(unary(image, labels))
        add_preset(crf, image, preset)
        result[f"beliefs {preset} {labels}"] = crf.inference(10)
np.savez(sys.argv[2], **result)
"""


def report(isa: str, folder) -> dict[str, np.ndarray]:
    import os

    from places import SUPPORT

    path = folder / f"{isa}.npz"
    run = subprocess.run(
        [sys.executable, "-c", REPORT, str(SUPPORT), str(path)],
        env={**os.environ, "DEEPLAB_FAST_ISA": isa}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    if run.returncode != 0 and (run.returncode == 3 or "DEEPLAB_FAST_ISA" in run.stderr):
        pytest.skip(f"this processor or build has no {isa}: {run.stderr.strip().splitlines()[-1:]}")
    assert run.returncode == 0, run.stderr
    with np.load(path) as file:
        return dict(file)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    return report("baseline", tmp_path_factory.mktemp("isa"))


@pytest.mark.parametrize("isa", INSTRUCTION_SETS[:-1])
def test_same_lattice_and_labels(isa, baseline, tmp_path):
    result = report(isa, tmp_path)
    for name, expected in baseline.items():
        if name.startswith("beliefs"):
            assert np.array_equal(result[name].argmax(axis=0), expected.argmax(axis=0)), name
            assert np.abs(result[name] - expected).max() <= 1e-3, name
        else:
            assert np.array_equal(result[name], expected), name


def test_the_numpy_core_has_the_same_lattice(baseline):
    """Vertex for vertex, though possibly in another order."""
    for name, features in baseline.items():
        if not name.endswith("features"):
            continue
        keys, vertices, neighbours = (baseline[name.replace("features", p)] for p in ("keys", "vertices", "neighbours"))
        reference = _fallback.Lattice(features)
        order, reference_order = np.lexsort(keys.T), np.lexsort(reference.keys().T)
        assert np.array_equal(keys[order], reference.keys()[reference_order]), name
        to_reference = np.empty(len(keys) + 1, np.int64)
        to_reference[order], to_reference[-1] = reference_order, -1
        assert np.array_equal(to_reference[vertices], reference.vertices()), name
        # The two directions along an axis may be swapped: they are only ever added.
        result = np.sort(to_reference[neighbours], axis=1)
        expected = np.sort(reference.neighbours()[..., to_reference[:-1]], axis=1)
        assert np.array_equal(result, expected), name
