"""The ops: functions that users call, over `torch.library` ops (see `deeplab_fast.ops.define`)."""

from deeplab_fast import _native
from deeplab_fast.ops.aspp_sum import aspp_sum
from deeplab_fast.ops.atrous_conv2d import atrous_conv2d
from deeplab_fast.ops.dense_crf import dense_crf
from deeplab_fast.ops.pairwise_energy import pairwise_energy
from deeplab_fast.ops.permutohedral_filter import KERNEL_DIMENSIONS, permutohedral_filter
from deeplab_fast.ops.upsample import upsample_argmax, upsample_softmax

__all__ = [
    "KERNEL_DIMENSIONS",
    "aspp_sum",
    "atrous_conv2d",
    "dense_crf",
    "pairwise_energy",
    "permutohedral_filter",
    "upsample_argmax",
    "upsample_softmax",
]

_native.load()
