"""`torch.nn.Conv2d` with the fused op."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.common_types import _size_2_t as Pair

from deeplab_fast import ops
from deeplab_fast.errors import ArgumentError


class AtrousConv2d(nn.Conv2d):
    """`torch.nn.Conv2d` that computes with `deeplab_fast.atrous_conv2d`: same arguments, parameters and results.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, bias, device, dtype: as for `Conv2d`.
        groups: must be 1.
        padding_mode: must be "zeros".

    Raises:
        ValueError: for other groups and padding modes, and as `Conv2d` does.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros"] = "zeros",
        device: Any = None,
        dtype: Any = None,
    ):
        if groups != 1:
            raise ArgumentError("groups", groups, "1; for others take torch.nn.Conv2d")
        if padding_mode != "zeros":
            raise ArgumentError("padding_mode", padding_mode, "'zeros'; for others take torch.nn.Conv2d")
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) or (C, H, W), floating -> (N, K, H', W') or (K, H', W'), as `Conv2d`.

        Raises:
            TypeError, ValueError: as `deeplab_fast.atrous_conv2d` does.
        """
        one = isinstance(x, Tensor) and x.ndim == 3
        out = ops.atrous_conv2d(x[None] if one else x, self.weight, self.bias, self.stride, self.padding, self.dilation)
        return out[0] if one else out
