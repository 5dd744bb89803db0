"""Published weights into our models: other spellings, wrappers and layouts; all or nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from deeplab_fast.errors import ArgumentError, ArgumentTypeError
from deeplab_fast.models import caffe, imagenet, weight_files
from deeplab_fast.models.layers import BilinearUpsampling
from deeplab_fast.models.weight_names import COUNTER, MSC, WeightsError, find_prefix, plain, under


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
    inner: nn.Module | None = model
    while isinstance(inner, nn.Module):
        if (method := getattr(inner, "classifier_modules", None)) is not None:
            return method()
        children = [getattr(inner, name, None) for name in ("base", "module", "_orig_mod")]
        inner = next((child for child in children if isinstance(child, nn.Module)), None)
    raise ArgumentTypeError("model", type(model), "of deeplab_fast.models, or have a method classifier_modules")


def load_weights(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    classifier: Literal["strict", "fresh"] = "strict",
    accept_stride: bool = False,
    pixels: Literal["rgb", "bgr"] = "rgb",
    key: str | None = None,
) -> WeightsReport:
    """Load a file of weights into `model`: all that it needs, or an error and an untouched model.

    Takes our own files, the published ones of DeepLab-v2 in PyTorch in their spellings (with or without `base.`,
    `scale.` for it, `aspp.stages.c0`), ImageNet weights of torchvision (ResNet-101, VGG-16), and Caffe's (.caffemodel).
    The weights may lie anywhere among other things, in dictionaries of any names ("state_dict", "net", …), with any
    prefix to their names (`module.`, `student.`, …), or in a pickled module: they are where the names and shapes are
    the model's. What lies beside them is ignored.

    Args:
        model: of this package; it may be in DistributedDataParallel or torch.compile.
        path: a file of `torch.save` (read with `weights_only=True`, so that no code in it is run), of safetensors, or
            .caffemodel.
        classifier: "strict" wants the classifier (ASPP, fc8, score layers) from the file. "fresh" leaves layers of it
            that the file does not have, or has for another number of classes, as they are, with a note.
        accept_stride: take torchvision's ResNet weights although the model strides in its 1×1 convolutions.
        pixels: what the ImageNet weights in torchvision's layout were trained on: "rgb", scaled to mean 0 and
            standard deviation 1, as torchvision's own were; then the first convolution is converted to BGR in 0..255
            minus the mean. Or "bgr", as those that came from Caffe; then it is not.
        key: which weights to take, where a file holds several for the model, as of student and teacher, or a running
            mean beside them: a name that comes before theirs, or several joined by dots, for example "ema" or
            "state_dict.student". Without one, several that fit equally well are an error, unless they are equal.

    Raises:
        FileNotFoundError: if there is no such file.
        ModuleNotFoundError: if the library to read it with is missing.
        TypeError: if `model` is no module.
        ValueError: if it cannot be read, holds no weights, or several, or they do not fit, or are not finite: the error
            names the keys.
    """
    _check_arguments(model, classifier, pixels)
    model = _unwrapped(model)
    own = model.state_dict()
    taken = _Taken(Path(path), read_state(path))
    taken.rename(plain)
    prefix, taken.notes = find_prefix(taken.path, taken.state, own, key)
    taken.enter(prefix)
    kind = imagenet.layout(taken.state)
    if kind is not None:
        _from_imagenet(taken, model, kind, accept_stride, pixels == "rgb")
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


def _check_arguments(model: nn.Module, classifier: str, pixels: str) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError("model", type(model), "a torch.nn.Module")
    for name, value, wanted in (("classifier", classifier, ("strict", "fresh")), ("pixels", pixels, ("rgb", "bgr"))):
        if value not in wanted:
            raise ArgumentError(name, value, f"{wanted[0]!r} or {wanted[1]!r}")


# ---------------------------------------------------------------------------------------------------- reading


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU, by name; names of nested dictionaries are joined by dots.

    Raises:
        FileNotFoundError: if there is no such file.
        ModuleNotFoundError: if the library to read it with is missing.
        ValueError: if it cannot be read, or holds no tensors by name.
    """
    path = Path(path)
    if path.suffix == ".caffemodel":
        weight_files.check_kind(path)
        return caffe.convert(path, msc=False)
    content = weight_files.read(path)
    state: dict[str, Tensor] = {}
    try:
        for name, tensor in weight_files.tensors_in(content):
            if state.setdefault(name, tensor) is not tensor:
                raise ValueError(f"weights {path}: has two tensors of the name {name!r}")
    except RecursionError:
        raise ValueError(f"weights {path}: holds itself, should hold tensors by name") from None
    state.pop("", None)
    if not state:
        what = ", ".join(map(repr, content)) if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise ValueError(f"weights {path}: holds {what or 'nothing'}, should hold tensors by name")
    return state


# ---------------------------------------------------------------------------------------------------- names


@dataclass
class _Taken:
    """What is left of a file on its way into a model."""

    path: Path
    state: dict[str, Tensor]
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # modules of the model that stay as they are

    def enter(self, prefix: str) -> None:
        """Keep what has the prefix, without it, in today's spelling."""
        self.ignored += [key for key in self.state if not key.startswith(prefix)]
        self.state = under(self.state, prefix)
        if f".{prefix}".endswith(".scale."):
            self.notes.append("`scale.` read as `base.`")
        if any("aspp.stages.c" in key for key in self.state):
            self.rename(lambda key: key.replace("aspp.stages.c", "aspp.c"))
            self.notes.append("`aspp.stages.c` read as `aspp.c`")
        for key in [key for key in self.state if key.endswith(COUNTER)]:
            counter = self.state[key]  # in another dtype, if the state was converted as a whole
            if counter.numel() == 1 and counter.isfinite():
                self.state[key] = counter.reshape(()).long()
            else:
                self.drop([key])

    def fit_base(self, own: Iterable[str]) -> None:
        """`base.` before names, as in the model."""
        if all(key.startswith(MSC) for key in own):
            self.rename(lambda key: MSC + key)

    def drop_extras(self, own: Mapping[str, Tensor]) -> None:
        """A classifier of images, and counters of batch norm."""
        others = [key for key in self.state if key not in own]
        self.drop(key for key in others if key.endswith(COUNTER))
        images = [key for key in others if key.removeprefix(MSC) in ("fc.weight", "fc.bias")]
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
            raise WeightsError(
                f"weights {taken.path}: are torchvision's, of a ResNet that strides in its 3x3 convolutions, the model "
                "strides in the 1x1",
                "accept_stride",
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
        if name.removeprefix(MSC).startswith(("fc6", "fc7")):
            taken.fit_or_leave(name, own)
    taken.drop([key for key in taken.state if key not in own and key.removeprefix(MSC).startswith(("fc6.", "fc7."))])


def _leave_classifiers(taken: _Taken, own: Mapping[str, Tensor], classifiers: Sequence[str]) -> None:
    for name in classifiers:
        taken.fit_or_leave(name, own)
    # An FCN of another stride ends in another upsampling, which is made from the number of classes alone.
    others = [key for key in taken.state if key not in own and key.removeprefix(MSC).startswith("upscore")]
    if others:
        taken.drop(others)
        taken.notes.append(f"{', '.join(others)} ignored: the model has no such upsampling")


def _check(taken: _Taken, own: Mapping[str, Tensor], classifiers: Sequence[str]) -> None:
    """Raise ValueError if the file does not have exactly what the model has, but for modules that are left; or NaN."""
    left = {key for name in taken.left for key in _within(name, own)}
    missing = [key for key in own if key not in taken.state and key not in left and not key.endswith(COUNTER)]
    unexpected = [key for key in taken.state if key not in own]
    misfits = {
        key: f"{key} is {_described(tensor, own[key])}, should be {_described(own[key], tensor)}"
        for key, tensor in taken.state.items()
        if key in own and _described(tensor, own[key]) != _described(own[key], tensor)
    }
    if not (missing or unexpected or misfits):
        # As the model will have them: a large number in float64 can be Inf in float32.
        weight_files.check_finite(taken.path, ((key, t.to(own[key].dtype)) for key, t in taken.state.items()))
        return
    parts = [f"{what} {_few(keys)}" for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
    parts = [_few(list(misfits.values())), *parts] if misfits else parts
    of_classifiers = {key for name in classifiers for key in _within(name, own)}
    fresh_would_do = not unexpected and of_classifiers.issuperset([*missing, *misfits])
    raise WeightsError(
        f"weights {taken.path}: do not fit the model: {'; '.join(parts)}", "classifier" if fresh_would_do else None
    )


def _described(tensor: Tensor, other: Tensor) -> str:
    """Shape, and the dtype or layout if the other's is of another kind."""
    shape = str(tuple(tensor.shape))
    if tensor.layout != other.layout:
        return f"{tensor.layout} {shape}"
    return shape if tensor.is_floating_point() == other.is_floating_point() else f"{tensor.dtype} {shape}"


def _few(items: Sequence[str], shown: int = 4) -> str:
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more
