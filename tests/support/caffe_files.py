"""Layers of made-up .caffemodel files, and how the published ResNet-101 names them."""

from __future__ import annotations

import numpy as np

# Blocks of layer2 … layer5, as the published ResNet-101 names them.
BLOCKS = (
    ("2a", "2b", "2c"),
    ("3a", *(f"3b{n}" for n in range(1, 4))),
    ("4a", *(f"4b{n}" for n in range(1, 23))),
    ("5a", "5b", "5c"),
)
OURS = {"branch1": "shortcut", "branch2a": "reduce", "branch2b": "conv3x3", "branch2c": "increase"}


def units() -> list[tuple[str, str]]:
    """(suffix of the Caffe names, our name) of every convolution with batch norm, by the rule of the publication."""
    pairs = [("_conv1", "layer1.conv1")]
    for layer, blocks in enumerate(BLOCKS, start=2):
        for b, block in enumerate(blocks, start=1):
            branches = ["branch1"] * (b == 1) + ["branch2a", "branch2b", "branch2c"]
            pairs += [(f"{block}_{branch}", f"layer{layer}.block{b}.{OURS[branch]}") for branch in branches]
    return pairs


def add_blob(layer, array: np.ndarray, legacy: bool = False) -> None:
    blob = layer.blobs.add()
    blob.data.extend(array.ravel().tolist())
    if legacy:
        shape = (1,) * (4 - array.ndim) + array.shape
        blob.num, blob.channels, blob.height, blob.width = shape
    else:
        blob.shape.dim.extend(array.shape)


def add(net, name: str, kind: str, *blobs: np.ndarray) -> None:
    layer = net.layer.add(name=name, type=kind)
    for blob in blobs:
        add_blob(layer, np.asarray(blob, np.float32))
