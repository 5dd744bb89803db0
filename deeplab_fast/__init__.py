"""Fast kernels for DeepLab-v2: dense CRF, atrous convolution, ASPP.

Importing this package imports neither torch nor the compiled code; each name below does that when first used, so
``deeplab_fast.pydensecrf`` starts fast and works without torch.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

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
    *("config", "crf", "data", "evaluation", "models", "nn", "ops", "patching", "pictures"),
    *("pydensecrf", "reference", "training"),
)

__all__ = ["__version__", *_LAZY, *_MODULES]


def __getattr__(name: str):
    if name in _LAZY:
        value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
