"""Published weights into our models: other spellings, wrappers and layouts; all or nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deeplab_fast.models import caffe, imagenet
from deeplab_fast.models.layers import BilinearUpsampling

_WRAPPERS = ("state_dict", "model")  # keys of checkpoints that hold the weights beside other things
_PARALLEL = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before names
_MSC = "base."
_COUNTER = ".num_batches_tracked"  # absent from older files, and used by no model


@dataclass(frozen=True)
class WeightsReport:
    """What `load_weights` did.

    Attributes:
        loaded: how many tensors came from the file.
        ignored: the file's keys that were not used.
        notes: what was converted, ignored or left as it was, a sentence each.
    """

    loaded: int
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def classifier_modules(model: nn.Module) -> list[nn.Module]:
    """The layers of `model` that give scores, which are trained anew for other classes, at higher learning rates.

    Args:
        model: of this package; it may be in `deeplab_fast.nn.MSC`, DistributedDataParallel or torch.compile.

    Raises:
        TypeError: if it has no method `classifier_modules`.
    """
    inner = model
    while isinstance(inner, nn.Module) and not hasattr(inner, "classifier_modules"):
        children = [getattr(inner, name, None) for name in ("base", "module", "_orig_mod")]
        inner = next((child for child in children if isinstance(child, nn.Module)), None)
    if not isinstance(inner, nn.Module):
        raise TypeError(
            f"model: is a {type(model).__name__}, should be of deeplab_fast.models, or have a method classifier_modules"
        )
    return inner.classifier_modules()


def load_weights(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    classifier: Literal["strict", "fresh"] = "strict",
    accept_stride: bool = False,
    pixels: Literal["rgb", "bgr"] = "rgb",
) -> WeightsReport:
    """Load a file of weights into `model`: all that it needs, or an error and an untouched model.

    Takes our own files, the published ones of DeepLab-v2 in PyTorch in their spellings (with or without `base.`,
    `scale.` for it, `aspp.stages.c0`), checkpoints that hold a "state_dict" or "model", names that start with
    `module.`, ImageNet weights of torchvision (ResNet-101, VGG-16), and Caffe's (.caffemodel).

    Args:
        model: of this package; it may be in DistributedDataParallel or torch.compile.
        path: a .pth or .pt file (read with `weights_only=True`, so that no code in it is run), .safetensors or
            .caffemodel.
        classifier: "strict" wants the classifier (ASPP, fc8, score layers) from the file. "fresh" leaves layers of it
            that the file does not have, or has for another number of classes, as they are, with a note.
        accept_stride: take torchvision's ResNet weights although the model strides in its 1×1 convolutions.
        pixels: what the ImageNet weights in torchvision's layout were trained on: "rgb", scaled to mean 0 and
            standard deviation 1, as torchvision's own were; then the first convolution is converted to BGR in 0..255
            minus the mean. Or "bgr", as those that came from Caffe; then it is not.

    Raises:
        FileNotFoundError: if there is no such file.
        ModuleNotFoundError: if the library to read it with is missing.
        TypeError: if `model` is no module.
        ValueError: if it cannot be read, holds no weights, or they do not fit: the error names the keys.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: is a {type(model).__name__}, should be a torch.nn.Module")
    for name, value, wanted in (("classifier", classifier, ("strict", "fresh")), ("pixels", pixels, ("rgb", "bgr"))):
        if value not in wanted:
            raise ValueError(f"{name}: is {value!r}, should be {wanted[0]!r} or {wanted[1]!r}")
    model = _unwrapped(model)
    taken = _Taken(Path(path), read_state(path))
    taken.respell()
    kind = imagenet.layout(taken.state)
    if kind is not None:
        _from_imagenet(taken, model, kind, accept_stride, pixels == "rgb")
    own = model.state_dict()
    taken.fit_base(own)
    taken.drop_extras(own)
    if kind == "vgg":
        _leave_fully_connected(taken, own)
    classifiers = _classifier_names(model)
    if classifier == "fresh":
        _leave_classifiers(taken, own, classifiers)
    _check(taken, own, classifiers)
    model.load_state_dict({**own, **taken.state})
    return WeightsReport(len(taken.state), taken.ignored, taken.notes)


# ---------------------------------------------------------------------------------------------------- reading


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a file of weights, by name, on the CPU; out of its wrapper, else as they are.

    Raises:
        FileNotFoundError: if there is no such file.
        ModuleNotFoundError: if the library to read it with is missing.
        ValueError: if it cannot be read, or holds no weights.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"weights not found: {path}")
    if path.is_dir():
        raise ValueError(f"weights must be a file, {path} is a folder")
    if path.suffix == ".caffemodel":
        return caffe.convert(path, msc=False)
    state = _unpacked(path, (_read_safetensors if path.suffix == ".safetensors" else _read_torch))
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f"weights {path}: holds a {type(state).__name__}, should hold tensors by name")
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"weights {path}: {key!r} is a {type(value).__name__}, should be a tensor")
    return dict(state)


def _unpacked(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except (ModuleNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:  # unpickling raises UnpicklingError, RuntimeError, EOFError and more
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"weights {path}: cannot be read as tensors: {reason or type(error).__name__}") from error


def _read_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"to read {path}, install safetensors: pip install safetensors") from None
    return load_file(path, device="cpu")


# ---------------------------------------------------------------------------------------------------- names


@dataclass
class _Taken:
    """What is left of a file on its way into a model."""

    path: Path
    state: dict[str, Tensor]
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # modules of the model that stay as they are

    def respell(self) -> None:
        """Names of parallel wrappers and older spellings."""
        for prefix in _PARALLEL:
            if all(key.startswith(prefix) for key in self.state):
                self.rename(lambda key, prefix=prefix: key.removeprefix(prefix))
        if any(key.startswith("scale.") for key in self.state):
            self.rename(lambda key: _MSC + key.removeprefix("scale.") if key.startswith("scale.") else key)
            self.notes.append("`scale.` read as `base.`")
        if any("aspp.stages.c" in key for key in self.state):
            self.rename(lambda key: key.replace("aspp.stages.c", "aspp.c"))
            self.notes.append("`aspp.stages.c` read as `aspp.c`")

    def fit_base(self, own: Iterable[str]) -> None:
        """`base.` before names, or not, as in the model."""
        if all(key.startswith(_MSC) for key in own):
            if not any(key.startswith(_MSC) for key in self.state):
                self.rename(lambda key: _MSC + key)
        elif all(key.startswith(_MSC) for key in self.state):
            self.rename(lambda key: key.removeprefix(_MSC))

    def drop_extras(self, own: Mapping[str, Tensor]) -> None:
        """A classifier of images, and counters of batch norm."""
        others = [key for key in self.state if key not in own]
        self.drop(key for key in others if key.endswith(_COUNTER))
        images = [key for key in others if key.removeprefix(_MSC) in ("fc.weight", "fc.bias")]
        if images:
            classes = len(self.state[images[0]])
            self.notes.append(f"`fc.*`, a classifier of {classes} classes that the model does not have, ignored")
        self.drop(images)

    def rename(self, to: Callable[[str], str]) -> None:
        renamed: dict[str, Tensor] = {}
        for key, tensor in self.state.items():
            if to(key) in renamed:
                raise ValueError(f"weights {self.path}: has two keys that are read as {to(key)!r}")
            renamed[to(key)] = tensor
        self.state = renamed

    def drop(self, keys: Iterable[str]) -> None:
        for key in list(keys):
            del self.state[key]
            self.ignored.append(key)

    def fit_or_leave(self, name: str, own: Mapping[str, Tensor]) -> None:
        """Take what the file has for the model's module `name` where all of it fits, else nothing of it."""
        wanted = {key: tuple(own[key].shape) for key in _within(name, own)}
        found = {key: tuple(self.state[key].shape) for key in _within(name, self.state)}
        if wanted == found:
            return
        reason = "the file has nothing for it"
        if found:
            key = next(key for key in {**found, **wanted} if wanted.get(key) != found.get(key))
            reason = f"{key} is {found.get(key, 'missing')} in the file, {wanted.get(key, 'missing')} in the model"
        self.drop(found)
        self.left.append(name)
        self.notes.append(f"{name} left as it was: {reason}")


def _within(name: str, keys: Iterable[str]) -> list[str]:
    return [key for key in keys if key.startswith(f"{name}.")]


def _from_imagenet(taken: _Taken, model: nn.Module, kind: str, accept_stride: bool, convert_pixels: bool) -> None:
    """Rename torchvision's ImageNet weights."""
    if kind == "resnet":
        strides = {getattr(module, "stride_in_3x3", True) for module in model.modules()}
        if False in strides and not accept_stride:
            raise ValueError(
                f"weights {taken.path}: are torchvision's, of a ResNet that strides in its 3x3 convolutions; the model "
                "strides in the 1x1: make it with stride_in_3x3=True, or load with accept_stride=True"
            )
    convert = imagenet.from_resnet if kind == "resnet" else imagenet.from_vgg
    try:
        taken.state, ignored = convert(taken.state, convert_pixels)
    except ValueError as error:
        raise ValueError(f"weights {taken.path}: {error}") from error
    taken.ignored += ignored
    taken.notes.append(f"names of torchvision's {'ResNet' if kind == 'resnet' else 'VGG-16'} converted")
    if convert_pixels:
        taken.notes.append("first convolution converted from normalised RGB to BGR in 0..255 minus the mean")


# ---------------------------------------------------------------------------------------------------- fitting


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model in DistributedDataParallel and torch.compile."""
    for name in ("_orig_mod", "module"):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module):
            return _unwrapped(inner)
    return model


def _classifier_names(model: nn.Module) -> list[str]:
    """Names of the modules whose parameters depend on the number of classes."""
    try:
        anew = {id(module) for module in classifier_modules(model)}
    except TypeError:  # another's model, of which all is wanted
        anew = set()
    return [
        name for name, module in model.named_modules() if id(module) in anew or isinstance(module, BilinearUpsampling)
    ]


def _leave_fully_connected(taken: _Taken, own: Mapping[str, Tensor]) -> None:
    """fc6 and fc7 of ImageNet fit FCN; DeepLab's are narrower, in branches, and stay as they are."""
    modules = {key.rpartition(".")[0]: None for key in own}
    for name in modules:
        if name.removeprefix(_MSC).startswith(("fc6", "fc7")):
            taken.fit_or_leave(name, own)
    taken.drop([key for key in taken.state if key not in own and key.removeprefix(_MSC).startswith(("fc6.", "fc7."))])


def _leave_classifiers(taken: _Taken, own: Mapping[str, Tensor], classifiers: Sequence[str]) -> None:
    for name in classifiers:
        taken.fit_or_leave(name, own)
    # An FCN of another stride ends in another upsampling, which is made from the number of classes alone.
    others = [key for key in taken.state if key not in own and key.removeprefix(_MSC).startswith("upscore")]
    if others:
        taken.drop(others)
        taken.notes.append(f"{', '.join(others)} ignored: the model has no such upsampling")


def _check(taken: _Taken, own: Mapping[str, Tensor], classifiers: Sequence[str]) -> None:
    """Raise ValueError if the file does not have exactly what the model has, but for modules that are left."""
    left = {key for name in taken.left for key in _within(name, own)}
    missing = [key for key in own if key not in taken.state and key not in left and not key.endswith(_COUNTER)]
    unexpected = [key for key in taken.state if key not in own]
    misfits = {
        key: f"{key} is {_described(tensor, own[key])}, should be {_described(own[key], tensor)}"
        for key, tensor in taken.state.items()
        if key in own and _described(tensor, own[key]) != _described(own[key], tensor)
    }
    if not (missing or unexpected or misfits):
        return
    parts = [f"{what} {_few(keys)}" for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
    parts = [_few(list(misfits.values())), *parts] if misfits else parts
    of_classifiers = {key for name in classifiers for key in _within(name, own)}
    if not unexpected and of_classifiers.issuperset([*missing, *misfits]):
        parts.append("pass classifier='fresh' to leave these layers as they are")
    raise ValueError(f"weights {taken.path}: do not fit the model: {'; '.join(parts)}")


def _described(tensor: Tensor, other: Tensor) -> str:
    """Shape, and the dtype if the other's is of another kind."""
    shape = str(tuple(tensor.shape))
    return shape if tensor.is_floating_point() == other.is_floating_point() else f"{tensor.dtype} {shape}"


def _few(items: Sequence[str], shown: int = 4) -> str:
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more
