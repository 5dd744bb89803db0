"""Fused ops in a model of your own: what `patch` finds, that nothing changes, and that training goes on.

python examples/patch_your_model.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deeplab_fast


class Branches(nn.Module):
    """The ASPP of DeepLab-v2, as people write it: parallel convolutions of several rates, summed."""

    def __init__(self, channels: int, classes: int, rates: tuple[int, ...] = (2, 4, 8, 12)):
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(channels, classes, 3, padding=r, dilation=r) for r in rates)

    def forward(self, x: Tensor) -> Tensor:
        return sum(branch(x) for branch in self.branches)


class Segmenter(nn.Module):
    """A stem, a dilated block with a residual, and the branches."""

    def __init__(self, classes: int):
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv, self.conv_bn = nn.Conv2d(32, 32, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(32)
        self.head = Branches(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_bn(self.stem(x)))
        x = F.relu(self.conv_bn(self.conv(x)) + x)
        return self.head(x)


def main() -> None:
    torch.manual_seed(0)
    model = Segmenter(classes=5).eval()
    image = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        before = model(image)

    print(deeplab_fast.patch(model))
    with torch.no_grad():
        print(f"largest difference: {(model(image) - before).abs().max():.1e}, of {before.abs().max():.2f}")

    model.train()  # the same parameters, so any optimizer goes on
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    truth = torch.randint(0, 5, (1, 33, 33))
    for step in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(image), truth)
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}")

    deeplab_fast.unpatch(model)  # for torch.jit.script, say
    deeplab_fast.accelerate(model)  # and for inference: patched, frozen, channels_last
    with torch.inference_mode():
        print(f"labels {tuple(model(image).argmax(dim=1).shape)}")


if __name__ == "__main__":
    main()
