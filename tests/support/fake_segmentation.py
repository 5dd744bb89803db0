"""A network and a labelled set that need no files, for the tests of prediction and evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from deeplab_fast import pictures

CLASSES = ("red", "green", "blue", "never")
SIZES = ((24, 32), (32, 24), (20, 20))


@dataclass(frozen=True)
class FakeSample:
    image: np.ndarray
    label: np.ndarray | None
    name: str


class Colours(nn.Module):
    """Scores by colour: classes 0, 1, 2 for much red, green, blue; class 3 never wins. Each score sees one cell only.

    It keeps the shapes that it was given in `seen`.
    """

    def __init__(self, stride: int = 4, sharpness: float = 0.02):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[[0, 1, 2], [2, 1, 0]] = sharpness  # the input is B, G, R
            self.conv.bias.copy_(torch.tensor([0, 0, 0, -20.0]))
        self.stride = stride
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        self.seen.append(tuple(x.shape))
        return nn.functional.avg_pool2d(self.conv(x), self.stride, ceil_mode=True)


class Forgetful(Colours):
    """Runs out of memory for more pixels in a batch than `most`."""

    def __init__(self, most: int, error: Exception | None = None, **options):
        super().__init__(**options)
        self.most, self.error = most, error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    def forward(self, x: Tensor) -> Tensor:
        scores = super().forward(x)
        if x.shape[0] * x.shape[2] * x.shape[3] > self.most:
            raise self.error
        return scores


def scene(size: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy photo (H, W, 3), uint8, of patches in three colours, and their classes (H, W), int64."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 3, (-(-size[0] // 8), -(-size[1] // 8)))
    label = np.kron(coarse, np.ones((8, 8), np.int64))[: size[0], : size[1]]
    image = np.clip(90 + 70 * np.eye(3)[label] + rng.normal(0, 60, (*size, 3)), 0, 255).astype(np.uint8)
    label = label.copy()
    label[rng.random(size) < 0.05] = 255
    return image, label


class FakeDataset:
    """Scenes of several sizes in turn; `broken` ones raise, `unlabelled` ones have no labels."""

    classes, num_classes, ignore_index = CLASSES, len(CLASSES), 255
    palette = pictures.voc_palette()

    def __init__(
        self,
        count: int = 7,
        broken: tuple[int, ...] = (),
        unlabelled: tuple[int, ...] = (),
        wrong: tuple[int, ...] = (),
    ):
        self.names = [f"picture{n}" for n in range(count)]
        self.broken, self.unlabelled, self.wrong = broken, unlabelled, wrong

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> FakeSample:
        if index in self.broken:
            raise FileNotFoundError(f"image not found: {self.names[index]}.jpg")
        image, label = scene(SIZES[index % len(SIZES)], index)
        if index in self.wrong:
            label[0, 0] = 77
        return FakeSample(image, None if index in self.unlabelled else label, self.names[index])
