"""The optimizer of a recipe: its parameter groups, and how the learning rate rises and falls."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from deeplab_fast import models
from deeplab_fast.config import TrainingConfig

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


def make_optimizer(model: nn.Module, recipe: TrainingConfig) -> torch.optim.Optimizer:
    """The optimizer of a recipe, for the parameters that are trained; see `parameter_groups`.

    Raises:
        ValueError: if nothing is to be trained.
    """
    groups = parameter_groups(model, recipe.lr, recipe.weight_decay, recipe.classifier_factor)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=recipe.betas)
    return torch.optim.SGD(groups, momentum=recipe.momentum)


def poly_factor(step: int, iterations: int, power: float = 0.9, every: int = 10) -> float:
    """Factor of the learning rate in step `step`, counted from 0: (1 - step / iterations)^power, changed `every` steps.

    Chen et al., TPAMI 2018, section 4.1 ("poly"). After the last step it is 0.
    """
    counted = step // every * every
    return max(1 - counted / iterations, 0.0) ** power


def warmup_factor(step: int, warmup: int, start: float = 0.01) -> float:
    """Factor of the learning rate in step `step`, counted from 0: rises evenly from `start`, is 1 from `warmup` on."""
    return 1.0 if step >= warmup else start + (1 - start) * step / warmup


def poly_scheduler(
    optimizer: torch.optim.Optimizer,
    iterations: int,
    power: float = 0.9,
    every: int = 10,
    warmup: int = 0,
    warmup_start: float = 0.01,
) -> torch.optim.lr_scheduler.LambdaLR:
    """A scheduler by `poly_factor` times `warmup_factor`; its `step()` is to follow the optimizer's."""

    def factor(step: int) -> float:
        return poly_factor(step, iterations, power, every) * warmup_factor(step, warmup, warmup_start)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def make_scheduler(optimizer: torch.optim.Optimizer, recipe: TrainingConfig) -> torch.optim.lr_scheduler.LambdaLR:
    """The `poly_scheduler` of a recipe."""
    return poly_scheduler(
        optimizer, recipe.iterations, recipe.power, recipe.lr_every, recipe.warmup, recipe.warmup_factor
    )


def clip_gradients(optimizer: torch.optim.Optimizer, norm: float) -> None:
    """Scale all gradients down together, in place, so that their norm is at most `norm`."""
    torch.nn.utils.clip_grad_norm_(_parameters(optimizer), norm)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return list(itertools.chain.from_iterable(group["params"] for group in optimizer.param_groups))


def gradients_are_finite(optimizer: torch.optim.Optimizer) -> bool:
    """Whether no gradient has a NaN or an infinity in it; waits for the device."""
    norms = [param.grad.norm() for param in _parameters(optimizer) if param.grad is not None]
    return not norms or bool(torch.isfinite(torch.stack(norms)).all())
