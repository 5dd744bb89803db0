"""Modules of DeepLab: fused convolutions, the ASPP, several scales, and the dense CRF behind a segmentation network."""

from deeplab_fast.nn.aspp import ASPP
from deeplab_fast.nn.conv_bn_relu import ConvBnReLU
from deeplab_fast.nn.convolution import AtrousConv2d
from deeplab_fast.nn.crf import DenseCRF
from deeplab_fast.nn.crf_loss import DenseCRFLoss
from deeplab_fast.nn.msc import MSC

__all__ = ["ASPP", "MSC", "AtrousConv2d", "ConvBnReLU", "DenseCRF", "DenseCRFLoss"]
