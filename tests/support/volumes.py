"""A made-up volume, as of a scanner: a bright body with an organ in it, several modalities, rough scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from deeplab_fast.crf import CRFParameters

SPACING = (3.0, 1.0, 1.0)  # of slices, rows and columns: slices lie three times as far apart


def volume(size: tuple[int, int, int] = (12, 15, 10), modalities: int = 2, labels: int = 3, seed: int = 0) -> tuple:
    """Modalities (C, D, H, W) float32 in units of their own, their deviations, and probabilities (K, D, H, W)."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, length) for length in size), indexing="ij")
    truth = (z**2 + y**2 + x**2 < 0.8).astype(int)
    truth[(z - 0.2) ** 2 + (y + 0.1) ** 2 + (x - 0.1) ** 2 < 0.2] = labels - 1
    brightness = rng.uniform(0, 100, (modalities, labels))
    units = 10.0 ** np.arange(modalities)
    image = brightness[:, truth] + rng.normal(0, 8, (modalities, *size))
    logits = 1.5 * (truth == np.arange(labels)[:, None, None, None]) + rng.normal(0, 1, (labels, *size))
    prob = np.exp(logits) / np.exp(logits).sum(axis=0)
    scaled = image * units[:, None, None, None]
    return scaled.astype(np.float32), tuple(20 * units), prob.astype(np.float32)


def generic_interface(
    dcrf: Any, utils: Any, image: np.ndarray, prob: np.ndarray, params: CRFParameters, spacing: tuple[float, ...]
) -> np.ndarray:
    """What users of pydensecrf write for a volume: Q (K, P) by its modules or by ours."""
    classes, *grid = prob.shape
    crf = dcrf.DenseCRF(int(np.prod(grid)), classes)
    crf.setUnaryEnergy(utils.unary_from_softmax(prob))
    sdims = [params.pos_xy_std / one for one in spacing]
    crf.addPairwiseEnergy(utils.create_pairwise_gaussian(sdims, grid), compat=params.pos_w)
    schan = params.bi_rgb_std if isinstance(params.bi_rgb_std, tuple) else [params.bi_rgb_std] * len(image)
    sdims = [params.bi_xy_std / one for one in spacing]
    crf.addPairwiseEnergy(utils.create_pairwise_bilateral(sdims, schan, image, chdim=0), compat=params.bi_w)
    return np.array(crf.inference(params.iterations))
