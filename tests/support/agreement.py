"""What "the same answer as pydensecrf" means, and models to compare it on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pydensecrf.densecrf as peer

import deeplab_fast.pydensecrf.densecrf as ours

NORMALIZATIONS = tuple(ours.NormalizationType)


class Preset(NamedTuple):
    """Parameters of the two kernels in published use."""

    bi_xy_std: float
    bi_rgb_std: float
    bi_w: float
    pos_xy_std: float
    pos_w: float


PRESETS = {
    "deeplab": Preset(67, 3, 4, 1, 3),
    "irn": Preset(50, 5, 10, 3, 3),
    "psa": Preset(80, 13, 10, 3, 3),
    "afa": Preset(64, 5, 4, 3, 3),
}
# Here pydensecrf's own order of summation shows: its float32 error is that large.
WORST = {"deeplab": 5e-3}


def assert_agree(result: np.ndarray, expected: np.ndarray, worst: float = 1e-3, mean: float = 1e-6) -> None:
    """Beliefs (labels, points) agree: largest and mean difference, and the labelling but for near ties."""
    result, expected = np.asarray(result), np.asarray(expected)
    assert result.shape == expected.shape
    assert result.dtype == np.float32
    difference = np.abs(result - expected)
    assert difference.max() <= worst, f"max|dQ| {difference.max():.1e}"
    assert difference.mean(dtype=np.float64) <= mean, f"mean|dQ| {difference.mean(dtype=np.float64):.1e}"
    if len(expected) == 1:
        return
    second, first = np.partition(expected, -2, axis=0)[-2:]
    margin = first - second
    changed = result.argmax(axis=0) != expected.argmax(axis=0)
    assert not np.any(changed & (margin >= 1e-3)), "another label where it was clear"
    # Labels whose energies are equal tie exactly, and their order is chance.
    assert np.mean(changed & (margin > 1e-6)) <= 1e-4, "too many other labels"


def compare(build, nvar: tuple[int, ...], labels: int, iterations: int = 10, **limits: float) -> None:
    """`build(crf, module)` sets up each side: DenseCRF for nvar = (points,), DenseCRF2D for (w, h)."""
    beliefs = []
    for module in (ours, peer):
        crf = (module.DenseCRF2D if len(nvar) == 2 else module.DenseCRF)(*nvar, labels)
        build(crf, module)
        beliefs.append(np.array(crf.inference(iterations)))
    assert_agree(*beliefs, **limits)


def add_preset(crf, image: np.ndarray, name: str, **options) -> None:
    preset = PRESETS[name]
    crf.addPairwiseGaussian(preset.pos_xy_std, preset.pos_w, **options)
    # pydensecrf takes writeable images only.
    crf.addPairwiseBilateral(preset.bi_xy_std, preset.bi_rgb_std, image.copy(), preset.bi_w, **options)


def peer_filter(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """pydensecrf's plain filter of values (C, N) in [0, 1], never handed out, from one step of inference.

    Without normalisation and unary, and with a compat of -s for each channel and 0 for an additional label,
    one step gives Q = softmax(s·F), so log(Q_c / Q_last) = s·F_c. With s·F up to 40, float32 keeps F to about
    1e-7 of its largest value, and to about 1e-6 of all values above a tenth of it.
    """
    channels, points = values.shape

    def step(scale: float) -> np.ndarray:
        crf = peer.DenseCRF(points, channels + 1)
        compat = np.full(channels + 1, -scale, np.float32)
        compat[-1] = 0
        crf.addPairwiseEnergy(features, compat, normalization=peer.NO_NORMALIZATION)
        q, *scratch = crf.startInference()
        np.asarray(q)[:-1] = values
        crf.stepInference(q, *scratch)
        q = np.asarray(q).astype(np.float64)
        return (np.log(q[:-1]) - np.log(q[-1])) / float(np.float32(scale))

    largest = ours.core().Lattice(features).filter(values).max()  # only sets the scale
    return step(40 / largest)
