"""The benchmark cases, as data: for each op and size, the backends to compare and the input they share.

A new op adds a function that yields its cases, and a line in `all_cases`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.photos import photo, unary


@dataclass(frozen=True, eq=False)
class Case:
    """One op at one size.

    inputs() makes what all backends get. A backend is a function of it that returns the result; it may be a
    generator instead, which yields a stage's name when that stage is done and returns the result: then the
    stages are reported, too. agree(result, expected) says whether a result is as good as the peer's, which comes
    first in `backends`.
    """

    op: str
    size: str
    inputs: Callable[[], Any]
    backends: Mapping[str, Callable[[Any], Any]]
    peer: str | None = None
    stages: tuple[str, ...] = ()
    agree: Callable[[Any, Any], bool] | None = None
    quick: bool = False  # part of the short selection
    memory: float = 0  # bytes that the most demanding backend takes, roughly; left out where there is less
    imports: tuple[str, ...] = ()  # modules that the backends import, no part of their memory
    details: Mapping[str, Any] = field(default_factory=dict)  # goes into the JSON file

    @property
    def name(self) -> str:
        return f"{self.op}: {self.size}"


def all_cases() -> Iterator[Case]:
    # These need torch, which the dense CRF does not.
    from .convolution_cases import convolution_cases
    from .crf_gradient_cases import crf_gradient_cases
    from .system_cases import system_cases

    yield from dense_crf_cases()
    yield from crf_gradient_cases()
    yield from convolution_cases()
    yield from system_cases()


# --- dense_crf: the whole call of pydensecrf's users, from photo and unary to beliefs

ITERATIONS = 10
THREADS = (1, 2)
# (std xy, std rgb, weight) of the bilateral kernel, (std, weight) of the spatial one
PRESETS = {
    "deeplab": ((67, 3, 4), (1, 3)),
    "irn": ((50, 5, 10), (3, 3)),
    "psa": ((80, 13, 10), (3, 3)),
    "afa": ((64, 5, 4), (3, 3)),
}
# name: (labels, labels that occur in the photo); the others have probability 1e-5 throughout, so one unary.
LABELS = {"2": (2, 2), "21": (21, 21), "91": (91, 91), "182 sparse": (182, 20), "182 dense": (182, 182)}
PHOTOS = {  # name: (photo, width, height)
    "500x375 coffee": ("coffee", 500, 375),
    "500x375 rocket": ("rocket", 500, 375),
    "2448x2048": ("astronaut", 2448, 2048),
}


def dense_crf_cases() -> Iterator[Case]:
    for (size, (name, width, height)), (kind, (labels, present)), preset in itertools.product(
        PHOTOS.items(), LABELS.items(), PRESETS
    ):
        large = width > 1000
        if large and labels > 91:
            continue  # pydensecrf would need some 30 GB and ten minutes a call
        backends = {"pydensecrf": functools.partial(_run_peer, preset, labels)}
        for threads in THREADS:
            backends[_ours(threads)] = functools.partial(_run_ours, preset, labels, threads, 0.0)
        if kind == "182 dense":
            backends[f"{_ours(THREADS[-1])}, collapse 1e-3"] = functools.partial(
                _run_ours, preset, labels, THREADS[-1], 1e-3
            )
        yield Case(
            op="dense_crf",
            size=f"{size}, {kind} labels, {preset}",
            inputs=functools.partial(_dense_crf_inputs, name, width, height, labels, present),
            backends=backends,
            peer="pydensecrf",
            stages=("build", "inference"),
            agree=_same_labelling,
            quick=size == "500x375 coffee"
            and (kind in ("2", "21") or (kind in ("91", "182 sparse") and preset == "irn")),
            # pydensecrf holds seven arrays like the unary, and some 150 bytes a pixel for the lattices.
            memory=width * height * (7 * 4 * labels + 150),
            imports=("pydensecrf.densecrf", "deeplab_fast.pydensecrf"),
            details={
                "width": width,
                "height": height,
                "labels": labels,
                "present": present,
                "preset": preset,
            },
        )


def _ours(threads: int) -> str:
    return f"deeplab_fast, {threads} thread{'s' if threads > 1 else ''}"


@functools.lru_cache(maxsize=1)  # the presets of one photo and label count follow one another
def _dense_crf_inputs(name: str, width: int, height: int, labels: int, present: int) -> tuple[np.ndarray, np.ndarray]:
    image = photo(name, height, width)
    return image.copy(), unary(image, labels, present)  # pydensecrf takes writeable images only


def _run_peer(preset: str, labels: int, inputs: tuple[np.ndarray, np.ndarray]) -> Iterator[str]:
    import pydensecrf.densecrf as dcrf

    return _run(dcrf.DenseCRF2D, preset, labels, inputs)


def _run_ours(
    preset: str, labels: int, threads: int, collapse: float, inputs: tuple[np.ndarray, np.ndarray]
) -> Iterator[str]:
    import deeplab_fast.pydensecrf as package

    package.set_num_threads(threads)

    def make(*args: int):
        crf = package.densecrf.DenseCRF2D(*args)
        crf.setLabelCollapse(collapse)
        return crf

    return _run(make, preset, labels, inputs)


def _run(make: Callable[..., Any], preset: str, labels: int, inputs: tuple[np.ndarray, np.ndarray]) -> Iterator[str]:
    image, energy = inputs
    (bi_xy, bi_rgb, bi_weight), (xy, weight) = PRESETS[preset]
    crf = make(image.shape[1], image.shape[0], labels)
    crf.addPairwiseGaussian(xy, weight)
    crf.addPairwiseBilateral(bi_xy, bi_rgb, image, bi_weight)
    yield "build"
    crf.setUnaryEnergy(energy)
    beliefs = crf.inference(ITERATIONS)
    yield "inference"
    return beliefs


def _same_labelling(result: Any, expected: Any) -> bool:
    """The same label on 99.99 % of the pixels. The tests are stricter; this is to be sure that work was done."""
    return np.mean(np.argmax(result, axis=0) == np.argmax(expected, axis=0)) >= 0.9999
