"""Drop-in replacement of the package `pydensecrf`: the same names, multi-threaded, without torch.

Change the import line of a script,

    import deeplab_fast.pydensecrf.densecrf as dcrf
    from deeplab_fast.pydensecrf.utils import unary_from_softmax

or leave the script alone and call `install_as_pydensecrf()` before it imports pydensecrf, or run it with

    python -m deeplab_fast.pydensecrf SCRIPT [ARGUMENT ...]
"""

from __future__ import annotations

from deeplab_fast._core import get_num_threads, set_num_threads

from . import densecrf, eigen, utils
from ._backend import release_memory
from ._install import install_as_pydensecrf

__all__ = [
    "densecrf",
    "eigen",
    "get_num_threads",
    "install_as_pydensecrf",
    "release_memory",
    "set_num_threads",
    "utils",
]
