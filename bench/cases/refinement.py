"""refinement: what people take instead of a dense CRF, on the demo's annotated photos: time, and mean IoU.

Rough scores as of a network, at an eighth of the size, blurred and moved (demo/annotate.py), are to be brought back to
the outlines they were made of. These are drawn by hand with few corners, right to some five pixels: so far from them
nothing is counted, and the scores are moved further than the demo's, some fifteen pixels. Numbers of each method are
those of its paper or its library, the dense CRF's the demo's; none was searched for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.ImageFilter import MaxFilter, MinFilter

from bench.bilateral_solver import solve
from bench.case import Backend, Case, Target
from bench.cases.common import OURS, PYDENSECRF
from bench.conv_crf import conv_crf
from deeplab_fast import crf
from demo import annotate

PHOTOS = ("astronaut", "camera", "coffee")  # whose annotations say what every pixel is
MOVED, BLUR = 3, 2.0  # times as far as the demo's; deviation in pixels of the scores
RIM = 5  # pixels around an outline that are not counted
THREADS = (1, 2)
OPENCV, SKIMAGE = ("cv2.ximgproc",), ("skimage.segmentation",)

Inputs = tuple[np.ndarray, np.ndarray, crf.CRFParameters]  # uint8 (H, W, 3), float32 (K, H, W), the demo's parameters


def cases(target: Target) -> Iterator[Case]:
    if target.gpu:
        return
    backends = {
        "pydensecrf": Backend(_pydensecrf, threads=1, needs=PYDENSECRF),
        **{f"{OURS}, {n} thread{'s' if n > 1 else ''}": Backend(_ours, threads=n) for n in THREADS},
        "ConvCRF 11x11, plain PyTorch": Backend(_conv_crf, threads=THREADS[-1]),
        "guided filter, OpenCV": Backend(_each_class(_guided_filter), needs=OPENCV),
        "fast bilateral solver, scipy": Backend(_bilateral_solver, needs=("scipy.sparse",)),
        "random walker, scikit-image": Backend(_random_walker, needs=SKIMAGE, once=True),
        "upsampling only": Backend(lambda inputs: inputs[1]),
    }
    for name in PHOTOS:
        yield Case(
            op="refinement",
            size=f"{name}, rough scores to outlines",
            inputs=functools.partial(_inputs, name, target.tiny),
            backends=backends,
            error=None,  # they are to differ
            quality=functools.partial(_mean_iou, name, target.tiny),
            sizes={"photo": name},
        )


@functools.cache
def _annotation(name: str) -> annotate.Annotation:
    photo = annotate.load(annotate.FOLDER / f"{name}.json")
    right, down = photo.shift
    return replace(photo, shift=(MOVED * right, MOVED * down), blur=BLUR)


def _cut(tiny: bool) -> tuple[slice, slice]:
    """Rows and columns: all, or a piece that has several classes."""
    return (slice(180, 220), slice(190, 240)) if tiny else (slice(None), slice(None))


@functools.lru_cache(maxsize=1)
def _inputs(name: str, tiny: bool) -> Inputs:
    photo = _annotation(name)
    cut = _cut(tiny)
    return photo.image[cut].copy(), np.ascontiguousarray(photo.probabilities()[(slice(None), *cut)]), photo.params


def _mean_iou(name: str, tiny: bool, result: np.ndarray) -> float:
    """Over the classes that there are, 0..1; without the pixels near an outline."""
    drawn = _annotation(name).labels
    picture = Image.fromarray(drawn.astype(np.uint8))
    highest, lowest = (np.asarray(picture.filter(kind(2 * RIM + 1))) for kind in (MaxFilter, MinFilter))
    counted = (highest == lowest)[_cut(tiny)]
    truth, found = drawn[_cut(tiny)][counted], result.argmax(axis=0)[counted]
    both = [((truth == k) & (found == k)).sum() / ((truth == k) | (found == k)).sum() for k in np.unique(truth)]
    return float(np.mean(both))


def _pydensecrf(inputs: Inputs) -> np.ndarray:
    import pydensecrf.densecrf as dcrf
    from pydensecrf import utils

    image, prob, params = inputs
    model = dcrf.DenseCRF2D(image.shape[1], image.shape[0], len(prob))
    model.setUnaryEnergy(utils.unary_from_softmax(prob))
    model.addPairwiseGaussian(params.pos_xy_std, params.pos_w)
    model.addPairwiseBilateral(params.bi_xy_std, params.bi_rgb_std, image, params.bi_w)
    return np.array(model.inference(params.iterations)).reshape(prob.shape)


def _ours(inputs: Inputs) -> np.ndarray:
    image, prob, params = inputs
    return crf.refine(image, prob, params)


@torch.inference_mode()
def _conv_crf(inputs: Inputs) -> np.ndarray:
    image, prob, params = inputs
    numbers = {name: getattr(params, name) for name in ("pos_w", "pos_xy_std", "bi_w", "bi_xy_std", "bi_rgb_std")}
    pixels = torch.from_numpy(image).permute(2, 0, 1).float()
    return conv_crf(pixels, torch.from_numpy(prob), radius=5, iterations=params.iterations, **numbers).numpy()


def _each_class(method: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[Inputs], np.ndarray]:
    """A filter of one map (H, W) at a time, guided by the photo."""
    return lambda inputs: np.stack([method(inputs[0], one) for one in inputs[1]])


def _guided_filter(image: np.ndarray, prob: np.ndarray) -> np.ndarray:
    """He, Sun and Tang, "Guided Image Filtering" (2010), with the radius and the epsilon of their matting."""
    from cv2 import ximgproc

    return ximgproc.guidedFilter(guide=image, src=prob, radius=20, eps=1e-4 * 255**2)


def _bilateral_solver(inputs: Inputs) -> np.ndarray:
    """With OpenCV's default numbers; surer where the score is."""
    image, prob, _ = inputs
    return solve(image, prob, np.abs(2 * prob - 1))


def _random_walker(inputs: Inputs) -> np.ndarray:
    """Grady, "Random Walks for Image Segmentation" (2006), from the pixels whose score is sure."""
    from skimage.segmentation import random_walker

    image, prob, _ = inputs
    best = prob.argmax(axis=0)
    # Classes count from 1, 0 is to be decided. Each class has seeds: its surest tenth, no pixel under a half.
    seeds = np.zeros(best.shape, np.int32)
    for k in range(len(prob)):
        mine = prob[k][best == k]
        if len(mine):
            seeds[(best == k) & (prob[k] >= max(0.5, min(0.85, float(np.quantile(mine, 0.9)))))] = k + 1
    present = np.unique(seeds[seeds > 0])
    if len(present) < 2:
        return prob
    dense = np.searchsorted(present, seeds) + 1
    found: Any = random_walker(
        image, np.where(seeds > 0, dense, 0), mode="cg_j", channel_axis=-1, return_full_prob=True
    )
    result = np.zeros_like(prob)
    result[present - 1] = found
    return result
