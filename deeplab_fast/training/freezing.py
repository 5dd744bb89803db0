"""Stages of a network that are left as they are in training."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from deeplab_fast import models
from deeplab_fast.errors import ArgumentError, one_of

ENTRY = "training.frozen"  # what errors name


def trunk_stages(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The trunk's stages by name, in order: layer1 … layer5 of a ResNet, conv1 …, fc6, fc7 of VGG, down1 … of U-Net.

    A stage is the children whose names agree up to an underscore; what has no parameters, and the classifier, are none.
    """
    base = getattr(model, "base", model)
    classifier = {id(p) for module in models.classifier_modules(model) for p in module.parameters()}
    stages: dict[str, list[nn.Module]] = {}
    for name, child in base.named_children():
        parameters = list(child.parameters())
        if parameters and not all(id(p) in classifier for p in parameters):
            stages.setdefault(name.partition("_")[0], []).append(child)
    return stages


def freeze(model: nn.Module, frozen: int | Sequence[str]) -> None:
    """Freeze parts of a network, in place: no gradients, and batch norm stays in evaluation mode.

    Args:
        model: of `deeplab_fast.models`.
        frozen: how many of `trunk_stages`, from the first on; or names, of stages or of modules inside, such as
            "layer4.block1".

    Raises:
        ValueError: if there are not so many, or one is not there.
    """
    stages = trunk_stages(model)
    if isinstance(frozen, int):
        if frozen > len(stages):
            wanted = f"at most {len(stages)}, the number of stages: {', '.join(stages)}"
            raise ArgumentError(ENTRY, frozen, wanted)
        frozen = list(stages)[:frozen]
    for name in frozen:
        for module in stages.get(name) or [_module(model, name, stages)]:
            models.freeze_batch_norm(module).requires_grad_(False)


def _module(model: nn.Module, name: str, stages: dict[str, list[nn.Module]]) -> nn.Module:
    try:
        return getattr(model, "base", model).get_submodule(name)
    except AttributeError:
        raise ArgumentError(ENTRY, name, f"{one_of(list(stages))}, or the name of a module inside") from None
