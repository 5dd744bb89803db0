"""Atrous spatial pyramid pooling as DeepLab-v2 has it: the sum of convolutions at several rates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from deeplab_fast._conv_arguments import pair
from deeplab_fast.errors import ArgumentError
from deeplab_fast.nn import fusing


class ASPP(nn.Module):
    """Scores of `num_classes` from features: 3×3 convolutions with bias at several rates, summed by one `aspp_sum`.

    Chen et al., "DeepLab", TPAMI 2018, figure 7. Children c0, c1, … are `torch.nn.Conv2d`, one a rate, so parameters
    have the names that they have in the PyTorch DeepLab-v2 in common use; weights start from N(0, 0.01), biases from 0.
    If a child gets a hook or weight norm, or is replaced by another module, the children are called and summed.

    Args:
        in_channels: of the features.
        num_classes: K.
        rates: the dilation of each branch, 1 or more.

    Raises:
        TypeError: if a number is none.
        ValueError: if there are no rates, or a number is less than 1.
    """

    def __init__(self, in_channels: int, num_classes: int, rates: Sequence[int] = (6, 12, 18, 24)):
        super().__init__()
        in_channels, _ = pair("in_channels", in_channels, least=1)
        num_classes, _ = pair("num_classes", num_classes, least=1)
        if not isinstance(rates, Sequence) or isinstance(rates, str) or len(rates) == 0:
            raise ArgumentError("rates", rates, "a sequence of integers, one a branch")
        self.rates = tuple(pair("rates", rate, least=1)[0] for rate in rates)
        for b, rate in enumerate(self.rates):
            conv = nn.Conv2d(in_channels, num_classes, 3, padding=rate, dilation=rate)
            nn.init.normal_(conv.weight, mean=0, std=0.01)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
            self.add_module(f"c{b}", conv)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W), floating -> (N, K, H, W), dtype of x; channels_last if x is.

        Raises:
            TypeError, ValueError: as `deeplab_fast.aspp_sum` does.
        """
        branches = [getattr(self, f"c{b}") for b in range(len(self.rates))]
        plain = all(fusing.is_plain(branch, fusing.CONVOLUTIONS) for branch in branches)
        if plain and all(fusing.is_branch(branch) for branch in branches) and not fusing.has_global_hooks():
            return fusing.sum_of_branches(x, branches)
        return reduce(torch.add, (branch(x) for branch in branches))
