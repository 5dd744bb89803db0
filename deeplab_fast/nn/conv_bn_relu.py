"""Convolution, batch norm and ReLU in one op."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.common_types import _size_2_t as Pair

from deeplab_fast.nn import fusing


class ConvBnReLU(nn.Module):
    """Convolution without bias, batch norm and, unless `relu=False`, ReLU: one op wherever the batch norm is frozen.

    DeepLab trains with the statistics of batch norm frozen (`bn.eval()`). Batch norm is then a scale and a bias for
    each channel, and goes with residual and ReLU into the convolution: in training too, with gradients to its weight
    and bias. While it is live (`bn.training`), the children are called one after the other, and statistics move.

    Children: conv, bn. Chen et al., "DeepLab", TPAMI 2018; He et al., "Deep residual learning", 2016, figure 5.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation: as for `torch.nn.Conv2d`.
        relu: whether negative results become 0.
        eps, momentum: as for `torch.nn.BatchNorm2d`.

    Raises:
        ValueError: as `torch.nn.Conv2d` does.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        relu: bool = True,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=eps, momentum=momentum)
        self.relu = relu

    def extra_repr(self) -> str:
        return f"relu={self.relu}"

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """relu(bn(conv(x)) + residual).

        Args:
            x: (N, C, H, W), floating.
            residual: (N, K, H', W'), added before the ReLU; none if None.

        Returns:
            (N, K, H', W'), dtype of x; channels_last if x is.

        Raises:
            TypeError, ValueError: as `deeplab_fast.atrous_conv2d` does.
        """
        if self._is_fusable():
            return fusing.conv_bn_relu(x, self.conv, self.bn, residual, self.relu)
        out = self.bn(self.conv(x))
        out = out if residual is None else out + residual
        return out.relu() if self.relu else out

    def _is_fusable(self) -> bool:
        """False, too, after a child got a hook or weight norm, or was replaced by another kind of module."""
        return (
            fusing.is_plain(self.conv, fusing.CONVOLUTIONS)
            and fusing.is_plain(self.bn, fusing.BATCH_NORMS)
            and fusing.is_frozen(self.bn)
            and fusing.fits_op(self.conv)
            and not fusing.has_global_hooks()
        )
