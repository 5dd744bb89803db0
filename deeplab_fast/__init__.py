"""Fast kernels for DeepLab-v2: dense CRF, atrous convolution, ASPP.

Importing this package imports neither torch nor the compiled code; each name below does that when first used, so
``deeplab_fast.pydensecrf`` starts fast and works without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deeplab_fast import _lazy

__version__ = "0.2.0"

# name -> module that has it
_LAZY = {
    "aspp_sum": "ops",
    "atrous_conv2d": "ops",
    "permutohedral_filter": "ops",
    "dense_crf": "ops",
    "upsample_argmax": "ops",
    "upsample_softmax": "ops",
    "Lattice": "ops.lattice",
    "accelerate": "patching",
    "patch": "patching",
    "unpatch": "patching",
}
_MODULES = (
    *("compat", "config", "crf", "data", "evaluation", "models", "nn", "ops", "patching", "pictures"),
    *("pydensecrf", "reference", "training"),
)

__all__ = ["__version__", *_LAZY, *_MODULES]


if TYPE_CHECKING:  # `X as X` marks what is exported
    from deeplab_fast import compat as compat
    from deeplab_fast import config as config
    from deeplab_fast import crf as crf
    from deeplab_fast import data as data
    from deeplab_fast import evaluation as evaluation
    from deeplab_fast import models as models
    from deeplab_fast import nn as nn
    from deeplab_fast import ops as ops
    from deeplab_fast import patching as patching
    from deeplab_fast import pictures as pictures
    from deeplab_fast import pydensecrf as pydensecrf
    from deeplab_fast import reference as reference
    from deeplab_fast import training as training
    from deeplab_fast.ops.aspp_sum import aspp_sum as aspp_sum
    from deeplab_fast.ops.atrous_conv2d import atrous_conv2d as atrous_conv2d
    from deeplab_fast.ops.dense_crf import dense_crf as dense_crf
    from deeplab_fast.ops.lattice import Lattice as Lattice
    from deeplab_fast.ops.permutohedral_filter import permutohedral_filter as permutohedral_filter
    from deeplab_fast.ops.upsample import upsample_argmax as upsample_argmax
    from deeplab_fast.ops.upsample import upsample_softmax as upsample_softmax
    from deeplab_fast.patching import accelerate as accelerate
    from deeplab_fast.patching import patch as patch
    from deeplab_fast.patching import unpatch as unpatch
else:
    __getattr__, __dir__ = _lazy.attributes(__name__, _LAZY, _MODULES)
