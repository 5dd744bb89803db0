"""The whole system: a training step and evaluating an image, ours, on the reference path and stock.

Stock is DeepLab-v2 as people write it (bench/stock_networks.py) with `torch.nn.functional` around it and pydensecrf
behind it. The reference path is our own system with every kernel switched off: what a machine without a compiler runs.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

import deeplab_fast
from bench.case import Backend, Case, Target
from bench.cases.common import LAST, OURS, PYDENSECRF, THREADS, different_labels, formatted, image_tensor, plain, seeded
from bench.stock_networks import calibrate, deeplabv2_resnet, shape_of_resnet
from deeplab_fast.crf import PRESETS
from deeplab_fast.models import DeepLabV2
from deeplab_fast.nn import MSC, DenseCRF
from tests.support.photos import photo

STOCK, REFERENCE = "stock", "deeplab_fast, reference path"
CLASSES, CROP, BATCH = 21, 321, 2
MEAN_BGR = torch.tensor([104.008, 116.669, 122.675])[:, None, None]
PRESET = "deeplab"


def cases(target: Target) -> Iterator[Case]:
    if target.gpu:
        return
    crop = target.pick(CROP, 65)
    yield _case(
        what="training step",
        size=f"{CROP}x{CROP}, batch {BATCH}, MSC",
        inputs=functools.partial(_training_inputs, target, crop),
        stock=_training_step,
        ours=_training_step,
        error=None,  # each step starts from the weights that the one before left
        sizes={"batch": BATCH, "height": crop, "width": crop},
    )
    height, width = target.pick((375, 500), (48, 64))
    for crf in (False, True):
        yield _case(
            what="evaluation",
            size=f"500x375, MSC, {'with CRF' if crf else 'without CRF'}",
            inputs=functools.partial(_image_inputs, target, height, width),
            stock=functools.partial(_evaluate_stock, crf),
            ours=functools.partial(_evaluate_ours, crf),
            error=different_labels,
            sizes={"batch": 1, "height": height, "width": width, "crf": PRESET if crf else None},
            needs=PYDENSECRF if crf else (),
        )


def _case(
    what: str,
    size: str,
    inputs: Callable[[], Any],
    stock: Callable,
    ours: Callable,
    error: Callable | None,
    sizes: dict[str, Any],
    needs: tuple[str, ...] = (),
) -> Case:
    return Case(
        op="system",
        size=f"{what}, deeplabv2_resnet101, {size}, {CLASSES} classes, float32",
        inputs=inputs,
        backends={
            STOCK: Backend(stock, takes=STOCK, threads=THREADS, needs=needs),
            REFERENCE: Backend(plain(ours), takes=REFERENCE, threads=THREADS),
            OURS: Backend(ours, takes=OURS, threads=THREADS),
        },
        error=error,
        allowed=0.01,  # random weights leave some pixels undecided
        sizes=sizes | {"classes": CLASSES, "dtype": "float32"},
    )


def _networks(target: Target, train: bool) -> dict[str, nn.Module]:
    """The same weights in all of them; batch norm frozen, as DeepLab trains."""
    seeded()
    shape, crop = shape_of_resnet(target), target.pick(CROP, 65)
    stock = deeplabv2_resnet(CLASSES, *shape)
    calibrate(stock, torch.randn(1, 3, crop, crop))
    ours = MSC(DeepLabV2(CLASSES, *shape))
    # The layers come in the same order.
    ours.load_state_dict(dict(zip(ours.state_dict(), stock.state_dict().values(), strict=True)))
    networks: dict[str, nn.Module] = {
        STOCK: formatted(MSC(stock), LAST),
        REFERENCE: formatted(ours, LAST),
        OURS: copy.deepcopy(ours),
    }
    for network in networks.values():
        network.train(train)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    return networks


# --- Training ------------------------------------------------------------------------------------------------------


class Training(NamedTuple):
    network: nn.Module
    optimizer: torch.optim.Optimizer
    images: Tensor
    labels: Tensor


def _training_inputs(target: Target, crop: int) -> dict[str, Training]:
    networks = _networks(target, train=True)
    images = 60 * torch.randn(BATCH, 3, crop, crop).contiguous(memory_format=LAST)
    labels = torch.randint(0, CLASSES, (BATCH, crop, crop))
    inputs = {}
    for which, network in networks.items():
        learning = [p for p in network.parameters() if p.requires_grad]
        inputs[which] = Training(network, torch.optim.SGD(learning, lr=1e-9, momentum=0.9), images, labels)
    return inputs


def _training_step(inputs: Training) -> Tensor:
    inputs.optimizer.zero_grad()
    loss = torch.zeros(())
    for logits in inputs.network(inputs.images):
        resized = interpolate(inputs.labels[:, None].float(), logits.shape[2:])[:, 0].long()
        loss = loss + cross_entropy(logits, resized)
    loss.backward()
    inputs.optimizer.step()
    return loss.detach()


# --- Evaluation ----------------------------------------------------------------------------------------------------


class Evaluation(NamedTuple):
    network: nn.Module
    image: np.ndarray  # (H, W, 3), uint8
    x: Tensor  # (1, 3, H, W): BGR, less the mean


def _image_inputs(target: Target, height: int, width: int) -> dict[str, Evaluation]:
    image = photo("coffee", height, width)
    x = image_tensor(image[..., ::-1]).float() - MEAN_BGR
    networks = _networks(target, train=False)
    return {which: Evaluation(net, image, x.contiguous(memory_format=LAST)) for which, net in networks.items()}


@torch.inference_mode()
def _evaluate_stock(crf: bool, inputs: Evaluation) -> np.ndarray:
    logits = inputs.network(inputs.x)
    logits = interpolate(logits, inputs.image.shape[:2], mode="bilinear", align_corners=False)
    if crf:
        return _pydensecrf(inputs.image, torch.softmax(logits, dim=1)[0].numpy())
    return logits.argmax(dim=1)[0].numpy()


@torch.inference_mode()
def _evaluate_ours(crf: bool, inputs: Evaluation) -> np.ndarray:
    size = inputs.image.shape[:2]
    logits = inputs.network(inputs.x)
    if not crf:
        return deeplab_fast.upsample_argmax(logits, size)[0].numpy()
    prob = deeplab_fast.upsample_softmax(logits, size)
    return DenseCRF.preset(PRESET)(image_tensor(inputs.image), prob).argmax(dim=1)[0].numpy()


def _pydensecrf(image: np.ndarray, prob: np.ndarray) -> np.ndarray:
    import pydensecrf.densecrf as dcrf
    from pydensecrf.utils import unary_from_softmax

    params = PRESETS[PRESET]
    crf = dcrf.DenseCRF2D(image.shape[1], image.shape[0], len(prob))
    crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(prob)))
    crf.addPairwiseGaussian(sxy=params.pos_xy_std, compat=params.pos_w)
    crf.addPairwiseBilateral(sxy=params.bi_xy_std, srgb=params.bi_rgb_std, rgbim=image.copy(), compat=params.bi_w)
    return np.array(crf.inference(params.iterations)).argmax(axis=0).reshape(image.shape[:2])
