"""`models.load_weights`: published layouts and spellings, what is left and why, errors that change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conv_samples import centred
from small_weights import assert_same, small, written
from torch import Tensor, nn

from deeplab_fast import models
from deeplab_fast.models import imagenet


def torchvision_vgg16() -> dict[str, Tensor]:
    """Names and shapes of torchvision's VGG-16, written out by its rule; weights are one number, expanded."""
    state, index, before = {}, 0, 3
    for number, channels in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(number):
            state[f"features.{index}.weight"] = torch.zeros(1).expand(channels, before, 3, 3)
            state[f"features.{index}.bias"] = torch.zeros(channels)
            index, before = index + 2, channels
        index += 1
    for name, (outputs, inputs) in {"0": (4096, 25088), "3": (4096, 4096), "6": (1000, 4096)}.items():
        state[f"classifier.{name}.weight"] = torch.zeros(1).expand(outputs, inputs)
        state[f"classifier.{name}.bias"] = torch.zeros(outputs)
    return state


def torchvision_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our trunk under the names of torchvision's ResNet, written out by its rule."""
    parts = {"reduce": ("conv1", "bn1"), "conv3x3": ("conv2", "bn2"), "increase": ("conv3", "bn3")}
    parts["shortcut"] = ("downsample.0", "downsample.1")
    renamed = {}
    for key, tensor in state.items():
        first, *rest = key.split(".")
        if first == "layer1":
            renamed[".".join(["conv1" if rest[1] == "conv" else "bn1", *rest[2:]])] = tensor
        elif first.startswith("layer"):
            block, part, kind, parameter = rest
            name = parts[part][0 if kind == "conv" else 1]
            renamed[f"layer{int(first[5:]) - 1}.{int(block[5:]) - 1}.{name}.{parameter}"] = tensor
    return renamed | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


# --- Spellings and wrappers ----------------------------------------------------------------------------------------


def spelt(state: dict[str, Tensor], how: str) -> object:
    """A state_dict of ours, with `base.`, as others write it."""
    if how in ("state_dict", "model"):
        return {"epoch": 3, how: state}
    if how == "both":
        return {"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}
    if how == "compiled":
        return {f"module._orig_mod.{key}": tensor for key, tensor in state.items()}
    if how == "old":
        old = {key.replace("base.", "scale.", 1): tensor for key, tensor in state.items()}
        return {key.replace("aspp.c", "aspp.stages.c"): tensor for key, tensor in old.items()}
    if how == "without base":
        return {key.removeprefix("base."): tensor for key, tensor in state.items()}
    if how == "without counters":
        return {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    return state


@pytest.mark.parametrize("msc", [True, False])
@pytest.mark.parametrize(
    "how", ["plain", "state_dict", "model", "both", "compiled", "old", "without base", "without counters"]
)
def test_takes(how: str, msc: bool, tmp_path: Path):
    source = small(seed=1)
    content = spelt(source.state_dict(), how)
    model = small(seed=2, msc=msc)
    report = models.load_weights(model, written(tmp_path, content))
    assert_same(model if msc else nn.ModuleDict({"base": model}), source.state_dict())
    inner = content.get("state_dict", content.get("model", content))
    assert report.loaded == len(inner)
    assert report.ignored == []
    assert report.notes == (["`scale.` read as `base.`", "`aspp.stages.c` read as `aspp.c`"] if how == "old" else [])


def test_takes_files_of_the_old_format(tmp_path: Path):
    source, model = small(seed=1), small(seed=2)
    torch.save(source.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    models.load_weights(model, tmp_path / "old.pth")
    assert_same(model, source.state_dict())


def test_takes_into_parallel_models(tmp_path: Path):
    source, model = small(seed=1), small(seed=2)
    models.load_weights(nn.DataParallel(model), written(tmp_path, source.state_dict()))
    assert_same(model, source.state_dict())


def test_takes_16_bits(tmp_path: Path):
    half = {key: t.half() if t.is_floating_point() else t for key, t in small(seed=1).state_dict().items()}
    model = small(seed=2)
    models.load_weights(model, written(tmp_path, half))
    assert model.base.aspp.c0.weight.dtype == torch.float32
    assert torch.equal(model.base.aspp.c0.weight, half["base.aspp.c0.weight"].float())


def test_takes_safetensors(tmp_path: Path):
    library = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    source, model = small(seed=1), small(seed=2)
    library.save_file(source.state_dict(), tmp_path / "weights.safetensors")
    models.load_weights(model, tmp_path / "weights.safetensors")
    assert_same(model, source.state_dict())


def test_keeps_batch_norm_frozen(tmp_path: Path):
    model = small(frozen_batch_norm=True)
    models.load_weights(model, written(tmp_path, small(seed=1).state_dict()))
    assert not model.train().base.layer1.conv1.bn.training
    assert not model.base.layer1.conv1.bn.weight.requires_grad


# --- The classifier ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_aspp", [True, False])
def test_a_fresh_classifier(with_aspp: bool, tmp_path: Path):
    """Weights of other classes; and those of COCO, that have no ASPP, no `base.`, and a classifier of images."""
    source = small(91, seed=1).state_dict()
    if not with_aspp:
        source = {key.removeprefix("base."): tensor for key, tensor in source.items() if "aspp" not in key}
        source |= {"fc.weight": torch.zeros(91, 512), "fc.bias": torch.zeros(91)}
    model = small(seed=2)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    path = written(tmp_path, source)
    shapes = r"misshapen|base\.aspp\.c0\.weight is \(91, 512, 3, 3\), should be \(3, 512, 3, 3\), .* and 4 more"
    missing = r"missing base\.aspp\.c0\.weight, .* and 4 more"
    with pytest.raises(ValueError, match=rf"{shapes if with_aspp else missing}; pass classifier='fresh'"):
        models.load_weights(model, path)
    assert_same(model, before)
    report = models.load_weights(model, path, classifier="fresh")
    trunk = [key for key in before if "aspp" not in key]
    assert report.loaded == len(trunk)
    if with_aspp:
        assert report.ignored == [key for key in before if "aspp" in key]
        reason = "base.aspp.c0.weight is (91, 512, 3, 3) in the file, (3, 512, 3, 3) in the model"
        assert report.notes == [f"base.aspp left as it was: {reason}"]
    else:
        assert report.ignored == ["base.fc.weight", "base.fc.bias"]
        assert report.notes == [
            "`fc.*`, a classifier of 91 classes that the model does not have, ignored",
            "base.aspp left as it was: the file has nothing for it",
        ]
    state = model.state_dict()
    for key in before:
        prefix = "" if with_aspp else "base."
        assert torch.equal(state[key], before[key] if "aspp" in key else source[key.removeprefix(prefix)]), key


def test_a_fresh_classifier_is_taken_where_it_fits(tmp_path: Path):
    source, model = small(seed=1), small(seed=2)
    report = models.load_weights(model, written(tmp_path, source.state_dict()), classifier="fresh")
    assert_same(model, source.state_dict())
    assert report.notes == []


def test_a_fresh_classifier_excuses_nothing_else(tmp_path: Path):
    source = small(seed=1).state_dict()
    del source["base.layer2.block1.reduce.conv.weight"]
    with pytest.raises(ValueError, match=r"model: missing base\.layer2\.block1\.reduce\.conv\.weight$"):
        models.load_weights(small(), written(tmp_path, source), classifier="fresh")


def test_from_one_fcn_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """FCN-16s starts from FCN-32s; the new score layer is left, and the upsampling of another stride is ignored."""
    monkeypatch.setattr("deeplab_fast.models.vgg.VGG16", ((2, 2), (2, 2), (3, 2), (3, 512), (3, 512)))
    with torch.device("meta"):
        source, model = models.fcn32s_vgg16(2).state_dict(), models.fcn16s_vgg16(2)
    source = {key: torch.zeros(1).expand(tensor.shape) for key, tensor in source.items()}
    monkeypatch.setattr(model, "load_state_dict", lambda state: None)
    monkeypatch.setattr("deeplab_fast.models.weights.read_state", lambda path: source)
    report = models.load_weights(model, tmp_path / "fcn32s.pth", classifier="fresh")
    assert report.ignored == ["upscore.weight"]
    assert report.notes == [
        "upscore2 left as it was: the file has nothing for it",
        "score_pool4 left as it was: the file has nothing for it",
        "upscore16 left as it was: the file has nothing for it",
        "upscore.weight ignored: the model has no such upsampling",
    ]


# --- ImageNet ------------------------------------------------------------------------------------------------------


def test_images_of_torchvision_and_ours_give_one_result():
    """The same picture, normalised RGB and BGR minus the mean, through a convolution and the converted one."""
    weight = centred(1, 4, 3, 5, 5).double()
    picture = (centred(2, 1, 3, 20, 20).double() + 1) * 127.5  # RGB
    published = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (104.008, 116.669, 122.675)
    mean, std, bgr = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in published)
    ours = picture.flip(1) - bgr
    converted, shift = imagenet.for_bgr(weight)
    expected = nn.functional.conv2d((picture / 255 - mean) / std, weight)
    torch.testing.assert_close(nn.functional.conv2d(ours, converted, shift), expected)


@pytest.mark.parametrize("pixels", ["rgb", "bgr"])
def test_torchvision_resnet(pixels: str, tmp_path: Path):
    source = small(seed=1, msc=False, stride_in_3x3=True).state_dict()
    path = written(tmp_path, torchvision_names(source))
    model = small(seed=2, stride_in_3x3=True)
    aspp = model.base.aspp.c1.weight.clone()
    with pytest.raises(ValueError, match=r"missing base\.aspp\.c0\.weight, .*; pass classifier='fresh'"):
        models.load_weights(model, path, pixels=pixels)
    report = models.load_weights(model, path, classifier="fresh", pixels=pixels)
    assert sorted(report.ignored) == ["fc.bias", "fc.weight"]
    assert report.notes[0] == "names of torchvision's ResNet converted"
    assert ("first convolution converted" in report.notes[1]) == (pixels == "rgb")
    assert torch.equal(model.base.aspp.c1.weight, aspp)
    if pixels == "rgb":
        weight, shift = imagenet.for_bgr(source["layer1.conv1.conv.weight"])
        mean = source["layer1.conv1.bn.running_mean"] - shift
        source |= {"layer1.conv1.conv.weight": weight, "layer1.conv1.bn.running_mean": mean}
    for key, tensor in model.base.state_dict().items():
        assert "aspp" in key or torch.equal(tensor, source[key]), key


def test_torchvision_resnet_strides_elsewhere(tmp_path: Path):
    path = written(tmp_path, torchvision_names(small(seed=1, msc=False).state_dict()))
    model = small(seed=2)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"strides in its 3x3 .* make it with stride_in_3x3=True, or .*accept_stride"):
        models.load_weights(model, path, classifier="fresh")
    assert_same(model, before)
    report = models.load_weights(model, path, classifier="fresh", accept_stride=True)
    assert report.loaded == len(before) - 8


def test_torchvision_resnet101_has_every_name():
    with torch.device("meta"):
        ours = models.deeplabv2_resnet101(21, msc=False, stride_in_3x3=True).state_dict()
    renamed, ignored = imagenet.from_resnet(torchvision_names(ours), convert_pixels=False)
    assert {key: tensor.shape for key, tensor in renamed.items()} == {
        key: tensor.shape for key, tensor in ours.items() if not key.startswith("aspp")
    }
    assert ignored == ["fc.weight", "fc.bias"]
    assert "layer3.22.bn2.running_var" in torchvision_names(ours)


def test_torchvision_vgg_into_fcn():
    state = torchvision_vgg16()
    renamed, ignored = imagenet.from_vgg(state, convert_pixels=False)
    with torch.device("meta"):
        ours = models.fcn32s_vgg16(21).state_dict()
    shapes = {key: tensor.shape for key, tensor in ours.items() if "score" not in key}
    assert {key: tensor.shape for key, tensor in renamed.items()} == shapes
    assert ignored == ["classifier.6.weight", "classifier.6.bias"]
    rows = torch.arange(2 * 98.0).reshape(2, 98)  # outputs 2 of 2 maps of 7×7, flattened as torchvision flattens them
    weight = imagenet.from_vgg({"classifier.0.weight": rows}, convert_pixels=False).state["fc6.weight"]
    assert torch.equal(weight, rows.reshape(2, 2, 7, 7))


@pytest.mark.parametrize("name", ["deeplabv1_vgg16", "deeplabv2_vgg16"])
def test_torchvision_vgg_into_deeplab(name: str, tmp_path: Path):
    """fc6 and fc7 are of other shapes, and stay; the first convolution is converted with its bias."""
    state = torchvision_vgg16()
    first = centred(1, 64, 3, 3, 3)
    state |= {"features.0.weight": first, "features.0.bias": centred(2, 64), "features.28.bias": centred(3, 512)}
    del state["classifier.6.weight"], state["classifier.6.bias"]
    state = {key: tensor.clone() if tensor.numel() < 1e6 else tensor for key, tensor in state.items()}
    model = models.create(name, 3, msc=True)
    names = [child for child, _ in model.base.named_children() if child.startswith(("fc6", "fc7"))]
    before = {child: getattr(model.base, child).weight.clone() for child in names}
    report = models.load_weights(model, written(tmp_path, state), classifier="fresh")
    assert report.loaded == 26
    assert sorted(report.ignored) == [f"base.fc{n}.{one}" for n in (6, 7) for one in ("bias", "weight")]
    assert [note.split(" left")[0] for note in report.notes[2:]][: len(names)] == [f"base.{child}" for child in names]
    assert all(torch.equal(getattr(model.base, child).weight, before[child]) for child in names)
    weight, shift = imagenet.for_bgr(first)
    assert torch.equal(model.base.conv1_1.weight, weight)
    assert torch.equal(model.base.conv1_1.bias, centred(2, 64) + shift)
    assert torch.equal(model.base.conv5_3.bias, centred(3, 512))


def test_vgg_with_batch_norm_is_refused(tmp_path: Path):
    state = {f"features.{i}.weight": torch.zeros(1) for i in (0, 1, 3, 28)}
    with pytest.raises(ValueError, match=r"weights .*: has features\.1\.weight, should be of VGG-16 without batch"):
        models.load_weights(small(), written(tmp_path, state))


# --- Errors --------------------------------------------------------------------------------------------------------


def test_errors_name_the_keys_and_change_nothing(tmp_path: Path):
    model = small()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    other = small(seed=1).state_dict()
    other["base.layer1.conv1.conv.weight"] = torch.zeros(16, 3, 5, 5)
    other["base.layer1.conv1.bn.weight"] = torch.zeros(16, dtype=torch.int64)
    other["base.extra"] = torch.zeros(1)
    for key in [key for key in other if key.startswith("base.layer5") and not key.endswith("tracked")]:
        del other[key]
    with pytest.raises(ValueError, match="do not fit the model") as error:
        models.load_weights(model, written(tmp_path, other))
    text = str(error.value)
    assert "base.layer1.conv1.conv.weight is (16, 3, 5, 5), should be (16, 3, 7, 7)" in text
    assert "base.layer1.conv1.bn.weight is torch.int64 (16,), should be torch.float32 (16,)" in text
    assert "missing base.layer5.block1.reduce.conv.weight, " in text
    assert "and 16 more" in text
    assert "unexpected base.extra" in text
    assert "fresh" not in text
    assert_same(model, before)


def test_wrong_arguments(tmp_path: Path):
    with pytest.raises(TypeError, match=r"model: is a dict, should be a torch\.nn\.Module"):
        models.load_weights({}, tmp_path / "none.pth")
    with pytest.raises(ValueError, match="classifier: is 'new', should be 'strict' or 'fresh'"):
        models.load_weights(small(), tmp_path / "none.pth", classifier="new")
    with pytest.raises(ValueError, match="pixels: is 'BGR', should be 'rgb' or 'bgr'"):
        models.load_weights(small(), tmp_path / "none.pth", pixels="BGR")


def test_a_name_in_two_spellings(tmp_path: Path):
    state = small(seed=1).state_dict()
    state["base.aspp.stages.c0.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"has two keys that are read as 'aspp\.c0\.weight'"):
        models.load_weights(small(), written(tmp_path, state))
