"""Weakly supervised training with the dense-CRF loss: one click for each class in a picture, instead of labels.

    python examples/weak_supervision.py

A small network learns made-up pictures, once from the clicks alone and once with the loss; true labels of other
pictures say how well. Ten seconds on two cores.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplab_fast.evaluation import ConfusionMatrix
from deeplab_fast.nn import DenseCRFLoss

CLASSES, UNKNOWN = 3, 255


def network() -> nn.Sequential:
    """Scores (N, K, H, W) of images (N, 3, H, W) in -1..1."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels, dilation in ((3, 1), (24, 2), (24, 4), (24, 8)):
        layers += [nn.Conv2d(channels, 24, 3, padding=dilation, dilation=dilation), nn.BatchNorm2d(24), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(24, CLASSES, 1))


def spots(count: int, seed: int, size: int = 64) -> tuple[Tensor, Tensor]:
    """Made-up pictures (N, 3, H, W) in 0..255, and labels (N, H, W): lighter (1) and darker spots (2) on any colour."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((size, size))
    images = np.empty((count, size, size, 3))
    labels = np.zeros((count, size, size), np.int64)
    for image, label in zip(images, labels, strict=True):
        image[:] = colour = rng.uniform(80, 175, 3)
        for k, sign in ((1, 1), (2, -1)):
            (row, column), radius, stretch = rng.uniform(12, size - 12, 2), rng.uniform(7, 13), rng.uniform(0.6, 1.6)
            inside = ((rows - row) * stretch) ** 2 + ((columns - column) / stretch) ** 2 < radius**2
            image[inside], label[inside] = colour + sign * rng.uniform(30, 70), k
        image += rng.normal(0, 12, image.shape) + rng.normal(0, 10, (size // 8, size // 8, 3)).repeat(8, 0).repeat(8, 1)
    return torch.from_numpy(images.clip(0, 255).round().transpose(0, 3, 1, 2)).float(), torch.from_numpy(labels)


def click(labels: Tensor) -> Tensor:
    """One pixel of each class in each picture; all else is UNKNOWN."""
    generator = torch.Generator().manual_seed(0)
    clicks = torch.full_like(labels, UNKNOWN)
    for label, clicked in zip(labels, clicks, strict=True):
        for k in range(CLASSES):
            where = (label == k).nonzero()
            row, column = where[torch.randint(0, len(where), (1,), generator=generator)[0]] if len(where) else (0, 0)
            clicked[row, column] = label[row, column]
    return clicks


def train(images: Tensor, clicks: Tensor, steps: int, regularisation: nn.Module | None) -> nn.Sequential:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(0, len(images), (4,), generator=generator)
        scores = model(images[batch] / 127.5 - 1)
        loss = F.cross_entropy(scores, clicks[batch], ignore_index=UNKNOWN)
        if regularisation is not None:
            everywhere = torch.ones_like(clicks[batch], dtype=torch.float32)  # 0 where pictures are padded, say
            loss = loss + regularisation(images[batch], scores.softmax(dim=1), everywhere)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()

    images, labels = spots(16, seed=0)
    unseen, truth = spots(30, seed=1)
    # normalized: whatever the size of the pictures; without it the weight is about 1e-9, as in the papers.
    loss = DenseCRFLoss(weight=1.0, sigma_rgb=15, sigma_xy=15, scale_factor=1, normalized=True)
    for name, regularisation in (("clicks alone", None), ("clicks and the dense-CRF loss", loss)):
        model = train(images, click(labels), options.steps, regularisation)
        matrix = ConfusionMatrix(CLASSES)
        with torch.inference_mode():
            matrix.update(truth, model(unseen / 127.5 - 1).argmax(dim=1))
        print(f"{name}: mean IoU {100 * matrix.scores().mean_iou:.1f} %")


if __name__ == "__main__":
    main()
