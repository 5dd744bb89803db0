"""The cases of the whole system: a training step and evaluating an image, ours, on the reference path and stock.

Stock is DeepLab-v2 as people write it (bench/networks.py) with `torch.nn.functional` around it and pydensecrf behind
it. The reference path is our own system with every kernel switched off: what a machine without a compiler runs.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

import deeplab_fast
from deeplab_fast.nn import MSC, DenseCRF
from deeplab_fast.ops import define
from tests.photos import photo

from .cases import Case
from .convolution_cases import LAST, THREADS, _calibrate
from .networks import deeplabv2_resnet101

STOCK, REFERENCE, OURS = "stock", "deeplab_fast, reference path", "deeplab_fast"
CLASSES, CROP, BATCH = 21, 321, 2
MEAN_BGR = torch.tensor([104.008, 116.669, 122.675])[:, None, None]


def system_cases() -> Iterator[Case]:
    yield _case("training step", f"{CROP}x{CROP}, batch {BATCH}, MSC", _training_inputs, _training_step, agree=None)
    for crf in (False, True):
        size = f"500x375, MSC, {'with CRF' if crf else 'without CRF'}"
        yield _case("evaluation", size, _image_inputs, functools.partial(_evaluate, crf), agree=_same_labels)


def _case(what: str, size: str, inputs: Callable, run: Callable, agree: Callable | None) -> Case:
    return Case(
        op="system",
        size=f"{what}, deeplabv2_resnet101, {size}, {CLASSES} classes, float32",
        inputs=inputs,
        backends={which: functools.partial(run, which) for which in (STOCK, REFERENCE, OURS)},
        peer=STOCK,
        agree=agree,
        imports=("torch", "pydensecrf.densecrf", "deeplab_fast.models", "bench.system_cases"),
        details={"threads": THREADS, "classes": CLASSES, "dtype": "float32"},
    )


@contextlib.contextmanager
def _kernels(which: str) -> Iterator[None]:
    """The reference path is chosen where tests choose it."""
    wanted = define.kernels_wanted
    define.kernels_wanted = lambda: which != REFERENCE
    try:
        yield
    finally:
        define.kernels_wanted = wanted


def _networks(train: bool) -> dict[str, nn.Module]:
    """The same weights in all of them; batch norm frozen, as DeepLab trains."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    stock = deeplabv2_resnet101(CLASSES)
    _calibrate(stock, torch.randn(1, 3, CROP, CROP))
    ours = deeplab_fast.models.deeplabv2_resnet101(CLASSES)
    # The layers come in the same order.
    state = dict(zip(ours.state_dict(), stock.state_dict().values(), strict=True))
    ours.load_state_dict(state)
    networks = {
        STOCK: MSC(stock).to(memory_format=LAST),
        REFERENCE: ours.to(memory_format=LAST),
        OURS: copy.deepcopy(ours),
    }
    for network in networks.values():
        network.train(train)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    return networks


# --- Training ------------------------------------------------------------------------------------------------------


def _training_inputs() -> dict[str, Any]:
    networks = _networks(train=True)
    images = 60 * torch.randn(BATCH, 3, CROP, CROP).contiguous(memory_format=LAST)
    labels = torch.randint(0, CLASSES, (BATCH, CROP, CROP))
    optimizers = {
        which: torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1e-9, momentum=0.9)
        for which, network in networks.items()
    }
    return {"networks": networks, "optimizers": optimizers, "images": images, "labels": labels}


def _training_step(which: str, inputs: dict[str, Any]) -> Tensor:
    optimizer, labels = inputs["optimizers"][which], inputs["labels"]
    with _kernels(which):
        optimizer.zero_grad()
        loss = torch.zeros(())
        for logits in inputs["networks"][which](inputs["images"]):
            resized = interpolate(labels[:, None].float(), logits.shape[2:])[:, 0].long()
            loss = loss + cross_entropy(logits, resized)
        loss.backward()
        optimizer.step()
    return loss.detach()


# --- Evaluation ----------------------------------------------------------------------------------------------------


def _image_inputs() -> dict[str, Any]:
    image = photo("coffee", 375, 500)
    bgr = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1).float() - MEAN_BGR
    return {"networks": _networks(train=False), "image": image, "x": bgr[None].contiguous(memory_format=LAST)}


@torch.inference_mode()
def _evaluate(crf: bool, which: str, inputs: dict[str, Any]) -> np.ndarray:
    image, size = inputs["image"], inputs["image"].shape[:2]
    with _kernels(which):
        logits = inputs["networks"][which](inputs["x"])
        if which == STOCK:
            logits = interpolate(logits, size, mode="bilinear", align_corners=False)
            if not crf:
                return logits.argmax(dim=1)[0].numpy()
            return _pydensecrf(image, torch.softmax(logits, dim=1)[0].numpy())
        if not crf:
            return deeplab_fast.upsample_argmax(logits, size)[0].numpy()
        prob = deeplab_fast.upsample_softmax(logits, size)
        Q = DenseCRF.preset("deeplab")(torch.from_numpy(image.copy()).permute(2, 0, 1)[None], prob)
        return Q.argmax(dim=1)[0].numpy()


def _pydensecrf(image: np.ndarray, prob: np.ndarray) -> np.ndarray:
    import pydensecrf.densecrf as dcrf
    from pydensecrf.utils import unary_from_softmax

    crf = dcrf.DenseCRF2D(image.shape[1], image.shape[0], len(prob))
    crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(prob)))
    crf.addPairwiseGaussian(sxy=1, compat=3)
    crf.addPairwiseBilateral(sxy=67, srgb=3, rgbim=image.copy(), compat=4)
    return np.array(crf.inference(10)).argmax(axis=0).reshape(image.shape[:2])


def _same_labels(result: np.ndarray, expected: np.ndarray) -> bool:
    """Random weights leave some pixels undecided; this is to be sure that work was done."""
    return float(np.mean(result == expected)) >= 0.99
