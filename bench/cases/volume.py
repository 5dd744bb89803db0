"""volume: a scanner's volume with voxel spacing, several modalities; pydensecrf through its generic interface."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np

from bench.case import Backend, Case, Target
from bench.cases.common import OURS, PYDENSECRF, different_labels
from deeplab_fast import crf
from tests.support.volumes import SPACING, generic_interface, volume

LABELS = 2
SIZE = (100, 150, 120)  # slices, rows, columns; slices are three times as far apart
MODALITIES = (1, 2, 4)
THREADS = (1, 2)
PARAMS = crf.CRFParameters(pos_w=3, pos_xy_std=3, bi_w=5, bi_xy_std=20)  # millimetres, say

Inputs = tuple[np.ndarray, tuple[float, ...], np.ndarray]


def cases(target: Target) -> Iterator[Case]:
    if target.gpu:
        return
    size = target.pick(SIZE, (4, 6, 5))
    for modalities in MODALITIES:
        backends = {"pydensecrf": Backend(_run_peer, threads=1, needs=PYDENSECRF)}
        for threads in THREADS:
            name = f"{OURS}, {threads} thread{'s' if threads > 1 else ''}"
            backends[name] = Backend(_run_ours, threads=threads)
        yield Case(
            op="volume",
            size=f"120x150x100, spacing 1x1x3, modalities: {modalities}, {LABELS} labels",
            inputs=functools.partial(volume, size, modalities, LABELS),
            backends=backends,
            error=_different_labels,
            allowed=1e-4,
            memory=math.prod(size) * (7 * 4 * LABELS + 30 * (modalities + 4) + 100),
            sizes={
                "depth": size[0],
                "height": size[1],
                "width": size[2],
                "modalities": modalities,
                "labels": LABELS,
                "iterations": PARAMS.iterations,
            },
        )


def _run_peer(inputs: Inputs) -> np.ndarray:
    import pydensecrf.densecrf as dcrf
    from pydensecrf import utils

    image, deviations, prob = inputs
    return generic_interface(dcrf, utils, image, prob, crf.parameters(PARAMS, bi_rgb_std=deviations), SPACING)


def _run_ours(inputs: Inputs) -> np.ndarray:
    image, deviations, prob = inputs
    return crf.refine(image, prob, crf.parameters(PARAMS, bi_rgb_std=deviations), spacing=SPACING)


def _different_labels(result: np.ndarray, expected: np.ndarray) -> float:
    """Of beliefs (K, P) and (K, D, H, W)."""
    return different_labels(*(beliefs.reshape(LABELS, -1).argmax(axis=0) for beliefs in (result, expected)))
