"""Drop-in replacement of the package `pydensecrf`: the same names, multi-threaded, without torch.

Change the import line of a script,

    import deeplab_fast.pydensecrf.densecrf as dcrf
    from deeplab_fast.pydensecrf.utils import unary_from_softmax

or leave the script alone and call `install_as_pydensecrf()` before it imports pydensecrf.
"""

from __future__ import annotations

import sys

from . import densecrf, utils
from ._backend import get_num_threads, release_memory, set_num_threads

__all__ = ["densecrf", "get_num_threads", "install_as_pydensecrf", "release_memory", "set_num_threads", "utils"]


def install_as_pydensecrf() -> None:
    """Let `import pydensecrf`, `pydensecrf.densecrf` and `pydensecrf.utils` find this package from now on.

    Call it before the first import of pydensecrf: modules imported before keep what they have. Calling it
    twice does no harm. Raises RuntimeError when another pydensecrf has been imported already; then nothing is
    changed.
    """
    ours = {
        "pydensecrf": sys.modules[__name__],
        "pydensecrf.densecrf": densecrf,
        "pydensecrf.utils": utils,
    }
    for name, module in sys.modules.items():
        if (name == "pydensecrf" or name.startswith("pydensecrf.")) and ours.get(name) is not module:
            where = getattr(module, "__file__", None) or "an unknown place"
            raise RuntimeError(
                f"install_as_pydensecrf() comes too late: {name} has been imported from {where}; "
                "call it before the first import of pydensecrf"
            )
    sys.modules.update(ours)
