"""The CRF as a layer that learns (CRF as RNN): kernel weights and which labels attract or repel each other.

    python examples/crf_as_rnn.py

The scores are rough, as of a network at an eighth of the size; in a training of your own they are the network's, and
its parameters join the optimizer. Ten seconds on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deeplab_fast import data, nn
from deeplab_fast.evaluation import ConfusionMatrix

STRIDE = 8


def tensors(samples: data.SegmentationDataset) -> tuple[Tensor, Tensor]:
    """All images, (N, 3, H, W) in 0..255, and labels, (N, H, W), 255 along outlines."""
    images = np.stack([sample.image for sample in samples]).transpose(0, 3, 1, 2)
    return torch.from_numpy(images), torch.from_numpy(np.stack([sample.label for sample in samples]))


def rough(labels: Tensor, classes: int) -> Tensor:
    """Probabilities (N, K, H, W) that are right but for outlines and noise."""
    one_hot = F.one_hot(labels.where(labels != 255, 0), classes).permute(0, 3, 1, 2).float()
    small = F.avg_pool2d(one_hot, STRIDE)
    logits = 3 * small + torch.randn(small.shape, generator=torch.Generator().manual_seed(0))
    return F.interpolate(logits, labels.shape[1:], mode="bilinear").softmax(dim=1)


def mean_iou(labels: Tensor, Q: Tensor) -> str:
    matrix = ConfusionMatrix(Q.shape[1])
    matrix.update(labels, Q.argmax(dim=1))
    return f"mean IoU {100 * matrix.scores().mean_iou:.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        root = data.write_shapes(Path(folder) / "shapes", train=24, val=12, size=(96, 72))
        training, unseen = data.Shapes(root, "train"), data.Shapes(root, "val")
        images, labels = tensors(training)
        other_images, other_labels = tensors(unseen)
    classes = training.num_classes
    prob, other_prob = rough(labels, classes), rough(other_labels, classes)

    layer = nn.DenseCRF(5, bi_xy_std=20, bi_rgb_std=13, learnable=True, num_classes=classes)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    with torch.no_grad():
        print(f"scores: {mean_iou(other_labels, other_prob)}; layer as it starts: "
              f"{mean_iou(other_labels, layer(other_images, other_prob))}")  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for step in range(options.steps):
        batch = torch.randint(0, len(images), (4,), generator=generator)
        Q = layer(images[batch], prob[batch])
        loss = F.nll_loss(Q.clamp_min(1e-5).log(), labels[batch], ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 9:
            print(f"step {step + 1}: loss {loss.item():.3f}")
    with torch.no_grad():
        print(f"learned: {mean_iou(other_labels, layer(other_images, other_prob))}")
    print(f"compatibility, negative where labels attract:\n{layer.compatibility.detach().numpy().round(2)}")


if __name__ == "__main__":
    main()
