"""`models.caffe`: reading .caffemodel files, and converting the published networks."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("google.protobuf", reason="protobuf is not installed")

from caffe_files import add, add_blob, units

from deeplab_fast import models
from deeplab_fast.models import caffe


def resnet101(suffix: str = "", shift: float = 0):
    """A net of one-number blobs that are all different: the u-th unit's start at 10 u."""
    net = caffe.messages()["NetParameter"](name="deeplab")
    for u, (caffe_name, _) in enumerate(units(), start=1):
        first = 10 * u + shift
        add(net, ("conv1" if u == 1 else f"res{caffe_name}") + suffix, "Convolution", np.full((1, 1, 1, 1), first))
        add(net, f"bn{caffe_name}{suffix}", "BatchNorm", [4 * (first + 1)], [4 * (first + 2)], [4])
        add(net, f"scale{caffe_name}{suffix}", "Scale", [first + 3], [first + 4])
        add(net, f"relu{caffe_name}{suffix}", "ReLU")
    for b in range(4):
        add(net, f"fc1_voc12_c{b}{suffix}", "Convolution", np.full((1, 1, 1, 1), 5000 + b + shift), [6000 + b + shift])
    return net


def written(folder: Path, net) -> Path:
    path = folder / "net.caffemodel"
    path.write_bytes(net.SerializeToString())
    return path


# --- Reading -------------------------------------------------------------------------------------------------------


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field of the wire format."""
    key = number << 3 | 2
    assert len(content) < 128
    return (bytes([key]) if key < 128 else bytes([key & 127 | 128, key >> 7])) + bytes([len(content)]) + content


def test_reads_bytes_written_by_hand(tmp_path: Path):
    """Field numbers and types are Caffe's: the file is put together without our descriptors."""
    floats = struct.pack("<6f", 1, 2, 3, 4, 5, -0.5)
    blob = field(7, field(1, bytes([2, 3]))) + field(5, floats) + field(6, floats)  # 6 is diff, which we skip
    unpacked = b"".join(bytes([5 << 3 | 5]) + struct.pack("<f", value) for value in (7, 8))
    bias = unpacked + bytes([1 << 3, 1, 2 << 3, 1, 3 << 3, 1, 4 << 3, 2])  # num, channels, height, width
    layer = field(1, b"fc") + field(2, b"InnerProduct") + field(3, b"below") + field(7, blob) + field(7, bias)
    old = field(4, b"conv") + bytes([5 << 3, 4]) + field(6, blob)
    (tmp_path / "net.caffemodel").write_bytes(field(1, b"net") + field(100, layer) + field(2, old))
    first, second = caffe.read_caffemodel(tmp_path / "net.caffemodel")
    assert (first.name, first.type, second.name, second.type) == ("fc", "InnerProduct", "conv", "Convolution")
    weight = np.array([[1, 2, 3], [4, 5, -0.5]], np.float32)
    for array, expected in zip([*first.blobs, *second.blobs], [weight, [[[[7, 8]]]], weight], strict=True):
        np.testing.assert_array_equal(array, expected, strict=isinstance(expected, np.ndarray))
        assert array.dtype == np.float32


def test_reads_legacy_shapes_doubles_and_layers_without_weights(tmp_path: Path):
    net = caffe.messages()["NetParameter"]()
    net.layers.add(name="relu", type=18)
    layer = net.layers.add(name="conv", type=4)
    weight = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
    add_blob(layer, weight, legacy=True)
    add_blob(layer, np.arange(2.0), legacy=True)
    blob = layer.blobs.add()
    blob.double_data.extend([0.5, 0.25])
    blob.shape.dim.append(2)
    relu, conv = caffe.read_caffemodel(written(tmp_path, net))
    assert relu == caffe.Layer("relu", "V1 18", [])
    np.testing.assert_array_equal(conv.blobs[0], weight, strict=True)
    assert conv.blobs[1].shape == (1, 1, 1, 2)
    np.testing.assert_array_equal(conv.blobs[2], np.array([0.5, 0.25], np.float32), strict=True)


def test_unreadable_files(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"weights not found: .*none\.caffemodel"):
        caffe.read_caffemodel(tmp_path / "none.caffemodel")
    with pytest.raises(ValueError, match=r"weights .*: is a folder, should be a file"):
        caffe.read_caffemodel(tmp_path)
    whole = resnet101().SerializeToString()
    for content, message in (
        (whole[:-3], "is no .caffemodel file, or is cut short"),
        (b"", "has no layers with weights"),
        (b"text, which is no protobuf message", "weights .*net"),
    ):
        (tmp_path / "net.caffemodel").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            caffe.read_caffemodel(tmp_path / "net.caffemodel")
    net = caffe.messages()["NetParameter"]()
    add(net, "conv1", "Convolution", [1, 2, 3])
    net.layer[0].blobs[0].shape.dim[0] = 4
    with pytest.raises(ValueError, match=r"a blob of conv1 has 3 numbers, should have \(4,\)"):
        caffe.read_caffemodel(written(tmp_path, net))


# --- ResNet-101 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("msc", [True, False])
def test_converts_resnet101(msc: bool, tmp_path: Path):
    net = resnet101()
    for suffix in ("_res075", "_res05"):
        net.MergeFrom(resnet101(suffix, shift=0.5))
    add(net, "res05_upsample", "Deconvolution", np.ones((1, 1, 2, 2)))
    add(net, "fc1_coco", "Convolution", np.ones((1, 1, 1, 1)), [1])
    state = caffe.convert(written(tmp_path, net), msc=msc)
    with torch.device("meta"):
        expected = models.deeplabv2_resnet101(1, msc=msc).state_dict()
    assert set(state) == set(expected)
    assert all(state[key].dtype == expected[key].dtype for key in expected)
    prefix = "base." if msc else ""
    for u, (_, name) in enumerate(units(), start=1):
        keys = ("conv.weight", "bn.running_mean", "bn.running_var", "bn.weight", "bn.bias")
        values = [state[f"{prefix}{name}.{key}"].item() for key in keys]
        assert values == [10 * u, 10 * u + 1, 10 * u + 2, 10 * u + 3, 10 * u + 4], name
    for b in range(4):
        assert state[f"{prefix}aspp.c{b}.weight"].item() == 5000 + b
        assert state[f"{prefix}aspp.c{b}.bias"].shape == (1,)
        assert state[f"{prefix}aspp.c{b}.bias"].item() == 6000 + b


def test_statistics_of_no_weight_are_zero(tmp_path: Path):
    net = resnet101()
    bn = next(layer for layer in net.layer if layer.name == "bn_conv1")
    bn.blobs[2].data[0] = 0
    state = caffe.convert(written(tmp_path, net))
    assert state["base.layer1.conv1.bn.running_mean"].item() == 0


def test_other_networks_are_refused(tmp_path: Path):
    net = resnet101()
    del net.layer[4:8]  # the first shortcut
    with pytest.raises(ValueError, match=r"lacks layers for layer2\.block1\.shortcut\.conv\.weight, .* and 1 more"):
        caffe.convert(written(tmp_path, net))
    net = resnet101()
    add(net, "res4b23_branch2a", "Convolution", np.ones((1, 1, 1, 1)))
    with pytest.raises(ValueError, match=r"has layers for layer4\.block24\.reduce\.conv\.weight, should be ResNet-101"):
        caffe.convert(written(tmp_path, net))
    net = resnet101()
    del net.layer[1].blobs[2]
    with pytest.raises(ValueError, match="layer bn_conv1 has 2 blobs, should have 3"):
        caffe.convert(written(tmp_path, net))
    net = caffe.messages()["NetParameter"]()
    add(net, "ip1", "InnerProduct", np.ones((1, 1)))
    with pytest.raises(ValueError, match=r"has layers ip1, …; should be ResNet-101 .* or VGG-16"):
        caffe.convert(written(tmp_path, net))


# --- VGG-16 --------------------------------------------------------------------------------------------------------


def vgg16(tails: dict[str, tuple[int, ...]], legacy: bool = False):
    """VGG-16 of one-number blobs, and layers `tails` behind it, of these weight shapes."""
    net = caffe.messages()["NetParameter"]()
    names = [f"conv{i}_{j}" for i, count in enumerate((2, 2, 3, 3, 3), start=1) for j in range(1, count + 1)]
    shapes = dict.fromkeys(names, (1, 1, 1, 1)) | tails
    for number, (name, shape) in enumerate(shapes.items()):
        dense = len(shape) == 2
        layer = net.layers.add(name=name, type=14 if dense else 4) if legacy else net.layer.add(name=name)
        if not legacy:
            layer.type = "InnerProduct" if dense else "Convolution"
        add_blob(layer, number + np.arange(np.prod(shape), dtype=np.float32).reshape(shape), legacy)
        add_blob(layer, np.full(shape[0], number, np.float32), legacy)
    return net


@pytest.mark.parametrize("legacy", [False, True])
def test_converts_large_fov(legacy: bool, tmp_path: Path):
    tails = {"fc6": (2, 1, 3, 3), "fc7": (2, 2, 1, 1), "fc8_voc12": (1, 2, 1, 1)}
    state = caffe.convert(written(tmp_path, vgg16(tails, legacy)), msc=False)
    with torch.device("meta"):
        assert set(state) == set(models.deeplabv1_vgg16(1).state_dict())
    assert torch.equal(state["fc6.weight"], 13 + torch.arange(18.0).reshape(2, 1, 3, 3))
    assert torch.equal(state["fc8.bias"], torch.tensor([15.0]))
    assert state["conv2_1.weight"].item() == 2


def test_converts_aspp_of_vgg(tmp_path: Path):
    tails = {}
    for b in range(1, 5):
        tails |= {f"fc6_{b}": (1, 1, 3, 3), f"fc7_{b}": (1, 1, 1, 1), f"fc8_voc12_{b}": (1, 1, 1, 1)}
    state = caffe.convert(written(tmp_path, vgg16(tails)))
    with torch.device("meta"):
        assert set(state) == set(models.deeplabv2_vgg16(1, msc=True).state_dict())
    assert state["base.fc8_3.bias"].item() == 13 + 3 * 2 + 2


def test_converts_dense_layers_of_imagenet(tmp_path: Path):
    state = caffe.convert(written(tmp_path, vgg16({"fc6": (3, 98), "fc7": (3, 3), "fc8": (5, 3)}, legacy=True)))
    assert state["base.fc6.weight"].shape == (3, 2, 7, 7)
    assert state["base.fc6.weight"][1, 1, 0, 2] == 13 + 98 + 49 + 2
    assert state["base.fc7.weight"].shape == (3, 3, 1, 1)


def test_load_weights_takes_caffemodels(tmp_path: Path):
    """Through the same checks of names and shapes as other files."""
    path = written(tmp_path, resnet101())
    with torch.device("meta"):
        model = models.deeplabv2_resnet101(1)
    with pytest.raises(ValueError, match=r"conv1\.conv\.weight is \(1, 1, 1, 1\), should be \(64, 3, 7, 7\)"):
        models.load_weights(model, path)
