"""The optimizer of DeepLab-v2's recipe: its parameter groups, and how the learning rate falls."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from deeplab_fast import models

GROUPS = ("trunk weights", "trunk biases", "batch norm", "classifier weights", "classifier biases")


def _factors(classifier_factor: float) -> dict[str, tuple[float, float]]:
    """Of each group, the factor of the learning rate, and of the weight decay.

    Chen et al., TPAMI 2018, section 4, and its Caffe prototxt: weights that start anew learn 10 times as fast as
    pretrained ones, and biases twice as fast as their weights, without decay.
    """
    factors = ((1.0, 1.0), (2.0, 0.0), (1.0, 0.0), (classifier_factor, 1.0), (2 * classifier_factor, 0.0))
    return dict(zip(GROUPS, factors, strict=True))


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, classifier_factor: float = 10
) -> list[dict[str, Any]]:
    """The parameters that are trained, each in one of `GROUPS`, as groups for a torch optimizer.

    A ResNet whose batch norm is frozen has three: trunk weights, classifier weights (10 times the rate) and classifier
    biases (20 times, no decay).

    Args:
        model: of `deeplab_fast.models`.
        lr: learning rate of the trunk's weights.
        weight_decay: of weights.
        classifier_factor: how much faster the classifier's weights learn; 1 where everything starts anew.

    Returns:
        Groups with params, lr, weight_decay and name; those without a parameter are left out.

    Raises:
        ValueError: if nothing is to be trained.
    """
    members: dict[str, list[nn.Parameter]] = {name: [] for name in GROUPS}
    classifier = {id(p) for module in models.classifier_modules(model) for p in module.parameters()}
    norms = {id(p) for module in model.modules() if isinstance(module, _BatchNorm) for p in module.parameters()}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kind = "biases" if name.endswith("bias") else "weights"
        if id(parameter) in norms:
            members["batch norm"].append(parameter)
        else:
            members[f"{'classifier' if id(parameter) in classifier else 'trunk'} {kind}"].append(parameter)
    factors = _factors(classifier_factor)
    groups = [
        {"params": params, "lr": lr * factors[name][0], "weight_decay": weight_decay * factors[name][1], "name": name}
        for name, params in members.items()
        if params
    ]
    if not groups:
        raise ValueError("model: has no parameter that requires a gradient, should have one")
    return groups


def poly_factor(step: int, iterations: int, power: float = 0.9, every: int = 10) -> float:
    """Factor of the learning rate in step `step`, counted from 0: (1 - step / iterations)^power, changed `every` steps.

    Chen et al., TPAMI 2018, section 4.1 ("poly"). After the last step it is 0.
    """
    counted = step // every * every
    return max(1 - counted / iterations, 0.0) ** power


def poly_scheduler(
    optimizer: torch.optim.Optimizer, iterations: int, power: float = 0.9, every: int = 10
) -> torch.optim.lr_scheduler.LambdaLR:
    """A scheduler by `poly_factor`; call its `step()` after each of the optimizer's."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: poly_factor(step, iterations, power, every))


def gradients_are_finite(optimizer: torch.optim.Optimizer) -> bool:
    """Whether no gradient has a NaN or an infinity in it; waits for the device."""
    params = itertools.chain.from_iterable(group["params"] for group in optimizer.param_groups)
    norms = [param.grad.norm() for param in params if param.grad is not None]
    return not norms or bool(torch.isfinite(torch.stack(norms)).all())
