"""Published Caffe weights: reading .caffemodel files, and their layers under the names of our models.

Needs protobuf. The descriptors of the few messages that hold weights are made here; fields that are not in them
(how layers are connected, how they train) are skipped in reading.
"""

from __future__ import annotations

import functools
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

_PACKAGE = "deeplab_fast.caffe"
# name, number, type, then "repeated" or "packed", or nothing: from Caffe's caffe.proto.
_MESSAGES: dict[str, tuple[tuple[str, ...], ...]] = {
    "BlobShape": (("dim", "1", "int64", "packed"),),
    "BlobProto": (
        ("num", "1", "int32"),
        ("channels", "2", "int32"),
        ("height", "3", "int32"),
        ("width", "4", "int32"),
        ("data", "5", "float", "packed"),
        ("shape", "7", "BlobShape"),
        ("double_data", "8", "double", "packed"),
    ),
    "LayerParameter": (("name", "1", "string"), ("type", "2", "string"), ("blobs", "7", "BlobProto", "repeated")),
    # Of files from before 2014; `type` is an enumeration, which is written as an int32 is.
    "V1LayerParameter": (("name", "4", "string"), ("type", "5", "int32"), ("blobs", "6", "BlobProto", "repeated")),
    "NetParameter": (
        ("name", "1", "string"),
        ("layers", "2", "V1LayerParameter", "repeated"),
        ("layer", "100", "LayerParameter", "repeated"),
    ),
}
# V1's numbers of the layers that have weights.
_V1_TYPES = {4: "Convolution", 14: "InnerProduct", 39: "Deconvolution"}

_BRANCHES = {"1": "shortcut", "2a": "reduce", "2b": "conv3x3", "2c": "increase"}
_RESIDUAL = re.compile(r"(res|bn|scale)([2-5])(?:([a-z])|b(\d+))_branch(1|2a|2b|2c)")
_ASPP = re.compile(r"fc1_\w+_c(\d+)")
_VGG = re.compile(r"conv[1-5]_[1-3]|fc[67](_\d)?|(score|upscore)\w*")
_VGG_SCORES = re.compile(r"fc8(?:_\w*?[a-z]\w*?)?(_\d)?", re.IGNORECASE)
# Branches of the other scales, which share their weights with the first, have these in their names.
_COPIES = ("res05", "res075")


class Layer(NamedTuple):
    """A layer of a .caffemodel file.

    Attributes:
        name: as in the file.
        type: Caffe's, "Convolution" for example.
        blobs: its weights, float32, in the shapes of the file; weight first, then bias.
    """

    name: str
    type: str
    blobs: list[NDArray[np.float32]]


@functools.cache
def messages() -> dict[str, Any]:
    """The protobuf classes of `NetParameter` and what it holds, by name.

    Raises:
        ModuleNotFoundError: without protobuf.
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ModuleNotFoundError:
        raise ModuleNotFoundError("to read .caffemodel files, install protobuf: pip install protobuf") from None
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="deeplab_fast/caffe.proto", package=_PACKAGE, syntax="proto2")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind, *how in fields:
            field = message.field.add(name=field_name, number=int(number))
            field.label = kinds.LABEL_REPEATED if how else kinds.LABEL_OPTIONAL
            if kind in _MESSAGES:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                field.type = getattr(kinds, f"TYPE_{kind.upper()}")
            if "packed" in how:
                field.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES
    }


def read_caffemodel(path: str | os.PathLike[str]) -> list[Layer]:
    """The layers of a .caffemodel file, in its order; those without weights have no blobs.

    Raises:
        FileNotFoundError: if there is no such file.
        ModuleNotFoundError: without protobuf.
        ValueError: if it is no such file, or is cut short.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"weights not found: {path}")
    if path.is_dir():
        raise ValueError(f"weights {path}: is a folder, should be a file")
    net = messages()["NetParameter"]()
    from google.protobuf.message import DecodeError

    try:
        net.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError(f"weights {path}: is no .caffemodel file, or is cut short: {error}") from error
    layers = [Layer(one.name, one.type, [_array(blob, path, one.name) for blob in one.blobs]) for one in net.layer]
    layers += [
        Layer(one.name, _V1_TYPES.get(one.type, f"V1 {one.type}"), [_array(blob, path, one.name) for blob in one.blobs])
        for one in net.layers
    ]
    if not any(layer.blobs for layer in layers):
        raise ValueError(f"weights {path}: has no layers with weights, should be a .caffemodel file")
    return layers


def _array(blob: Any, path: Path, name: str) -> NDArray[np.float32]:
    data = blob.data if len(blob.data) else blob.double_data
    array = np.fromiter(data, np.float32, count=len(data))
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else (blob.num, blob.channels, blob.height, blob.width)
    if math.prod(shape) != len(array):
        raise ValueError(f"weights {path}: a blob of {name} has {len(array)} numbers, should have {shape}")
    return array.reshape(shape)


def convert(path: str | os.PathLike[str], msc: bool = True) -> dict[str, torch.Tensor]:
    """Weights of a .caffemodel file as a state_dict of ours: DeepLab-v2 on ResNet-101, or DeepLab or FCN on VGG-16.

    Of ResNet-101 the convolutions, batch norms (mean and variance over the third blob, scale and shift from the Scale
    layer) and, where the file has it, the ASPP. Of VGG-16 conv1_1 to the scores. Copies of layers for other scales, and
    layers that our models do not have, are left out. Shapes are not checked: `load_weights` does.

    Args:
        path: of the file.
        msc: whether keys start with `base.`, as those of models in `deeplab_fast.nn.MSC`.

    Raises:
        FileNotFoundError: if there is no such file.
        ModuleNotFoundError: without protobuf.
        ValueError: if it is no .caffemodel file, or of another network, or layers are missing.
    """
    layers = {}
    for layer in read_caffemodel(path):
        if layer.blobs and not any(mark in layer.name for mark in _COPIES):
            layers[layer.name] = layer
    try:
        if any(_RESIDUAL.fullmatch(name) for name in layers):
            state = _resnet101(layers)
        elif "conv1_1" in layers:
            state = _vgg16(layers)
        else:
            some = ", ".join(list(layers)[:4])
            raise ValueError(f"has layers {some}, …; should be ResNet-101 (res2a_branch1, …) or VGG-16 (conv1_1, …)")
    except ValueError as error:
        raise ValueError(f"weights {path}: {error}") from error
    import torch

    prefix = "base." if msc else ""
    tensors = {f"{prefix}{key}": torch.from_numpy(np.ascontiguousarray(array)) for key, array in state.items()}
    for key in [key for key in tensors if key.endswith(".running_var")]:
        tensors[key.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    return tensors


def _unit(name: str) -> tuple[str, str] | None:
    """res, bn or scale, and the name of our unit of convolution and batch norm, of a layer of ResNet-101."""
    if name in ("conv1", "bn_conv1", "scale_conv1"):
        return {"conv1": "res", "bn_conv1": "bn", "scale_conv1": "scale"}[name], "layer1.conv1"
    match = _RESIDUAL.fullmatch(name)
    if match is None:
        return None
    kind, layer, letter, number, branch = match.groups()
    block = ord(letter) - ord("a") + 1 if letter else int(number) + 1  # res4a, res4b1, res4b2 …; res5a, res5b …
    return kind, f"layer{layer}.block{block}.{_BRANCHES[branch]}"


def _resnet101(layers: dict[str, Layer]) -> dict[str, NDArray[np.float32]]:
    state: dict[str, NDArray[np.float32]] = {}
    for name, layer in layers.items():
        unit, branch = _unit(name), _ASPP.fullmatch(name)
        if branch is not None:
            _need(layer, 2)
            state[f"aspp.c{branch[1]}.weight"] = layer.blobs[0]
            state[f"aspp.c{branch[1]}.bias"] = layer.blobs[1].ravel()
        elif unit is None:
            continue
        elif unit[0] == "res":
            _need(layer, 1)
            state[f"{unit[1]}.conv.weight"] = layer.blobs[0]
        elif unit[0] == "bn":
            _need(layer, 3)
            mean, variance, factor = (blob.ravel() for blob in layer.blobs[:3])
            # Caffe keeps sums, and how much they weigh; of no weight, they are 0.
            scale = np.float32(0 if factor[0] == 0 else 1 / factor[0])
            state[f"{unit[1]}.bn.running_mean"] = mean * scale
            state[f"{unit[1]}.bn.running_var"] = variance * scale
        else:
            _need(layer, 2)
            state[f"{unit[1]}.bn.weight"] = layer.blobs[0].ravel()
            state[f"{unit[1]}.bn.bias"] = layer.blobs[1].ravel()
    expected = _resnet101_keys()
    missing = [key for key in expected if key not in state]
    other = [key for key in state if key not in expected and not key.startswith("aspp.")]
    for what, keys in (("lacks layers for", missing), ("has layers for", other)):
        if keys:
            more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
            raise ValueError(f"{what} {', '.join(keys[:4])}{more}, should be ResNet-101")
    return state


def _need(layer: Layer, count: int) -> None:
    if len(layer.blobs) < count:
        raise ValueError(f"layer {layer.name} has {len(layer.blobs)} blobs, should have {count}")


@functools.cache
def _resnet101_keys() -> tuple[str, ...]:
    """Of our DeepLab-v2, without ASPP and counters."""
    import torch

    from deeplab_fast.models.deeplab import deeplabv2_resnet101

    with torch.device("meta"):
        keys = deeplabv2_resnet101(1, msc=False).state_dict()
    return tuple(key for key in keys if not key.startswith("aspp.") and not key.endswith("num_batches_tracked"))


def _vgg16(layers: dict[str, Layer]) -> dict[str, NDArray[np.float32]]:
    state: dict[str, NDArray[np.float32]] = {}
    for name, layer in layers.items():
        scores = _VGG_SCORES.fullmatch(name)
        ours = f"fc8{scores[1] or ''}" if scores is not None else name
        if scores is None and not _VGG.fullmatch(name):
            continue
        weight = layer.blobs[0]
        if layer.type == "InnerProduct":  # as a convolution: fc6 sees pool5 of 7x7
            outputs, inputs = len(layer.blobs[1].ravel()), weight.size // len(layer.blobs[1].ravel())
            size = 7 if name == "fc6" else 1
            weight = weight.reshape(outputs, inputs // size**2, size, size)
        state[f"{ours}.weight"] = weight
        if len(layer.blobs) > 1:
            state[f"{ours}.bias"] = layer.blobs[1].ravel()
    return state
