"""dense_crf: the whole call of pydensecrf's users, from photo and unary to beliefs; on a GPU the torch op."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

import deeplab_fast
from bench.case import Backend, Case, Target
from bench.cases.common import OURS, PYDENSECRF, different_labels, gpu_and_cpu, image_tensor, name_of
from deeplab_fast import pydensecrf
from deeplab_fast.crf import CRFParameters, parameters
from deeplab_fast.crf.features import bilateral_features, spatial_features
from tests.support.photos import photo, unary

THREADS = (1, 2)
PRESETS = {name: parameters(name) for name in ("deeplab", "irn", "psa", "afa")}  # the others lie between these
# name: (labels, labels that occur in the photo); the others have probability 1e-5 throughout, so one unary.
LABELS = {"2": (2, 2), "21": (21, 21), "91": (91, 91), "182 sparse": (182, 20), "182 dense": (182, 182)}
PHOTOS = {  # name: (photo, width, height)
    "500x375 coffee": ("coffee", 500, 375),
    "500x375 rocket": ("rocket", 500, 375),
    "2448x2048": ("astronaut", 2448, 2048),
    "4000x3000": ("astronaut", 4000, 3000),
}
PEER_ARRAYS = 7  # like the unary, in pydensecrf
MOST_OF_PEER = 16e9  # bytes of them: more need ten minutes a call and a machine with much memory
TINY = (40, 30)


def cases(target: Target) -> Iterator[Case]:
    yield from _gpu_cases(target) if target.gpu else _cpu_cases(target)


def _cpu_cases(target: Target) -> Iterator[Case]:
    for (size, (name, width, height)), (kind, (labels, present)), preset in itertools.product(
        PHOTOS.items(), LABELS.items(), PRESETS
    ):
        if width * height * labels * 4 * PEER_ARRAYS > MOST_OF_PEER:
            continue
        params = PRESETS[preset]
        backends = {"pydensecrf": Backend(functools.partial(_run_peer, params, labels), threads=1, needs=PYDENSECRF)}
        for threads in THREADS:
            backends[_ours(threads)] = Backend(functools.partial(_run_ours, params, labels, 0.0), threads=threads)
        if kind == "182 dense":
            backends[f"{_ours(THREADS[-1])}, collapse 1e-3"] = Backend(
                functools.partial(_run_ours, params, labels, 1e-3), threads=THREADS[-1]
            )
        width, height = target.pick((width, height), TINY)
        yield Case(
            op="dense_crf",
            size=f"{size}, {kind} labels, {preset}",
            inputs=functools.partial(_numpy_inputs, name, width, height, labels, present),
            backends=backends,
            error=functools.partial(_different_labels, labels),
            allowed=1e-4,
            stages=("build", "inference"),
            quick=size == "500x375 coffee"
            and (kind in ("2", "21") or (kind in ("91", "182 sparse") and preset == "irn")),
            # And some 150 bytes a pixel for pydensecrf's lattices.
            memory=width * height * (PEER_ARRAYS * 4 * labels + 150),
            sizes={
                "width": width,
                "height": height,
                "labels": labels,
                "present": present,
                "preset": preset,
                "iterations": params.iterations,
            },
        )


def _ours(threads: int) -> str:
    return f"{OURS}, {threads} thread{'s' if threads > 1 else ''}"


@functools.lru_cache(maxsize=1)  # the presets of one photo and label count follow one another
def _numpy_inputs(name: str, width: int, height: int, labels: int, present: int) -> tuple[np.ndarray, np.ndarray]:
    image = photo(name, height, width)
    return image.copy(), unary(image, labels, present)  # pydensecrf takes writeable images only


def _run_peer(params: CRFParameters, labels: int, inputs: tuple[np.ndarray, np.ndarray]) -> Iterator[str]:
    import pydensecrf.densecrf as dcrf

    return _run(dcrf.DenseCRF2D, params, labels, inputs)


def _run_ours(
    params: CRFParameters, labels: int, collapse: float, inputs: tuple[np.ndarray, np.ndarray]
) -> Iterator[str]:
    def make(*args: int) -> Any:
        crf = pydensecrf.densecrf.DenseCRF2D(*args)
        crf.setLabelCollapse(collapse)
        return crf

    return _run(make, params, labels, inputs)


def _run(
    make: Callable[..., Any], params: CRFParameters, labels: int, inputs: tuple[np.ndarray, np.ndarray]
) -> Iterator[str]:
    image, energy = inputs
    crf = make(image.shape[1], image.shape[0], labels)
    crf.addPairwiseGaussian(params.pos_xy_std, params.pos_w)
    crf.addPairwiseBilateral(params.bi_xy_std, params.bi_rgb_std, image, params.bi_w)
    yield "build"
    crf.setUnaryEnergy(energy)
    beliefs = crf.inference(params.iterations)
    yield "inference"
    return beliefs


def _different_labels(labels: int, result: Any, expected: Any) -> float:
    """Of beliefs (K, P), or tensors (N, K, H, W)."""
    chosen = []
    for beliefs in (result, expected):
        array = beliefs.float().cpu().numpy() if isinstance(beliefs, Tensor) else np.asarray(beliefs)[None]
        chosen.append(array.reshape(len(array), labels, -1).argmax(axis=1))
    return different_labels(*chosen)


# --- On a GPU ------------------------------------------------------------------------------------------------------

GPU_SIZES = (
    ("21", "deeplab", 1),
    ("21", "psa", 1),
    ("21", "irn", 1),
    ("21", "deeplab", 16),
    ("182 dense", "deeplab", 1),
)
GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _gpu_cases(target: Target) -> Iterator[Case]:
    for (kind, preset, batch), dtype in itertools.product(GPU_SIZES, GPU_DTYPES):
        labels, present = LABELS[kind]
        params = PRESETS[preset]
        width, height = target.pick((500, 375), TINY)
        exact = dtype == torch.float32
        backends = {}
        if batch == 1 and exact:
            run = functools.partial(_run_peer_whole, params, labels)
            backends["pydensecrf"] = Backend(run, takes="numpy", threads=1, needs=PYDENSECRF, once=True)
        backends |= gpu_and_cpu(_run_op, once=not exact, graph=True)
        batch_text = f", batch of {batch}" if batch > 1 else ""
        yield Case(
            op="dense_crf",
            size=f"500x375 coffee, {kind} labels, {preset}{batch_text}, {name_of(dtype)}",
            inputs=functools.partial(_gpu_inputs, target, params, (width, height), labels, present, batch, dtype),
            backends=backends,
            error=functools.partial(_different_labels, labels),
            allowed=1e-4 if exact else 1e-2,
            quick=True,
            sizes={
                "width": width,
                "height": height,
                "batch": batch,
                "labels": labels,
                "preset": preset,
                "iterations": params.iterations,
                "dtype": name_of(dtype),
            },
            device="cuda",
        )


def _gpu_inputs(
    target: Target,
    params: CRFParameters,
    size: tuple[int, int],
    labels: int,
    present: int,
    batch: int,
    dtype: torch.dtype,
) -> dict[str, Any]:
    pixels, energy = _numpy_inputs("coffee", *size, labels, present)
    image = image_tensor(pixels).expand(batch, -1, -1, -1)
    features = [
        spatial_features(image, params.pos_xy_std),
        bilateral_features(image, params.bi_xy_std, params.bi_rgb_std),
    ]
    # Rounded once, so that the CPU gets what the GPU gets.
    energies = torch.from_numpy(energy).view(1, labels, *image.shape[2:]).expand(batch, -1, -1, -1).to(dtype)
    weights = [float(params.pos_w), float(params.bi_w)]
    there = (energies.to(target.device), [f.to(target.device) for f in features], weights, params.iterations)
    return {
        "numpy": (pixels, energy),
        "cpu": (energies.float(), features, weights, params.iterations),
        "gpu": there,
    }


def _run_op(inputs: tuple) -> Tensor:
    return deeplab_fast.dense_crf(*inputs)


def _run_peer_whole(params: CRFParameters, labels: int, inputs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Without stages, which the torch op has none of."""
    steps = _run_peer(params, labels, inputs)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value
