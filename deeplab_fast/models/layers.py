"""What the models have in common: a convolution with ReLU, initialisation, frozen batch norm, checks."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deeplab_fast import ops
from deeplab_fast.errors import ArgumentError, ArgumentTypeError
from deeplab_fast.nn import AtrousConv2d


class ConvReLU(AtrousConv2d):
    """relu(conv(x)), with bias, in one op; parameters as those of `torch.nn.Conv2d`."""

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W), floating -> (N, K, H', W').

        Raises:
            TypeError, ValueError: as `deeplab_fast.atrous_conv2d` does.
        """
        return ops.atrous_conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, relu=True)


class BilinearUpsampling(nn.ConvTranspose2d):
    """A transposed convolution that starts as bilinear upsampling by `factor`, each class on its own.

    Long et al., "Fully convolutional networks for semantic segmentation", CVPR 2015, section 3.3. An input of n pixels
    gives factor · (n + 1): the kernel is 2 · factor wide, and nothing is cut off. Factors are even.

    Args:
        channels: in and out.
        factor: of the upsampling, and the stride.
        learned: whether the kernel is trained; the paper fixes the last one of a network.
    """

    def __init__(self, channels: int, factor: int, learned: bool):
        super().__init__(channels, channels, 2 * factor, stride=factor, bias=False)
        # The kernel's taps lie half a pixel off its middle.
        distance = (torch.arange(2 * factor, device=self.weight.device) - factor + 0.5).abs() / factor
        kernel = (1 - distance)[:, None] * (1 - distance)
        with torch.no_grad():
            self.weight.copy_(torch.eye(channels, device=self.weight.device)[:, :, None, None] * kernel)
        self.weight.requires_grad_(learned)


def conv_relu(in_channels: int, out_channels: int, kernel_size: int, padding: int = 0, rate: int = 1) -> ConvReLU:
    """A `ConvReLU`, initialised as `he_initialise` does."""
    conv = ConvReLU(in_channels, out_channels, kernel_size, padding=padding, dilation=rate)
    he_initialise([conv])
    return conv


def he_initialise(modules: Iterable[nn.Module]) -> None:
    """Weights of convolutions from N(0, 2 / inputs), biases 0: He et al., "Delving deep into rectifiers", 2015.

    It keeps the size of activations through any number of layers of convolution and ReLU.
    """
    for module in modules:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def classifier(in_channels: int, num_classes: int, std: float = 0.01) -> AtrousConv2d:
    """The last 1×1 convolution, to scores; weights from N(0, std), bias 0, as in the published DeepLab prototxts."""
    conv = AtrousConv2d(in_channels, num_classes, 1)
    nn.init.normal_(conv.weight, mean=0, std=std)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def freeze_batch_norm(model: nn.Module) -> nn.Module:
    """Freeze every batch norm in `model`, in place: it stays in evaluation mode, whatever `model.train()` says.

    DeepLab trains so: its batches are too small for statistics. Running statistics no longer move, and weight and bias
    get no gradient (`requires_grad` is False), so that no optimizer changes them. Copies and pickles stay frozen;
    batch norms that are added or replaced later are not.

    Returns:
        model.

    Raises:
        TypeError: if `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError("model", type(model), "a torch.nn.Module")
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
            module.requires_grad_(False)
            # On the instance: a subclass of BatchNorm2d would no longer be fused with its convolution.
            module.train = functools.partial(_stay_in_evaluation, module)  # type: ignore[method-assign,assignment]
    return model


def _stay_in_evaluation(module: nn.Module, mode: bool = True) -> nn.Module:
    """Stands in for `train` of a frozen batch norm."""
    return module


def check_count(name: str, value: int) -> int:
    """`value`, if it is a whole number of at least 1; else TypeError or ValueError."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ArgumentTypeError(name, value, "a whole number") from None
    if isinstance(value, bool):
        raise ArgumentTypeError(name, value, "a whole number")
    if number < 1:
        raise ArgumentError(name, number, "at least 1")
    return number


def check_images(x: Tensor, channels: int = 3) -> None:
    """Raise TypeError or ValueError if x is not floating, (N, channels, H, W)."""
    if not isinstance(x, Tensor):
        raise ArgumentTypeError("x", type(x), "a floating tensor")
    if not x.is_floating_point():
        raise ArgumentTypeError("x", x.dtype, "floating", what="dtype")
    if x.ndim != 4 or x.shape[1] != channels or 0 in x.shape[2:]:
        raise ArgumentError("x", tuple(x.shape), f"(N, {channels}, H, W), H and W at least 1", what="shape")
