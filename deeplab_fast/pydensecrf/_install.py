"""Makes `import pydensecrf` find deeplab_fast.pydensecrf, in this process and in those it starts."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from pathlib import Path
from types import FunctionType, ModuleType

FOLDER = str(Path(__file__).parent / "on_path")  # holds a package `pydensecrf`
PACKAGE = "deeplab_fast.pydensecrf"


def install_as_pydensecrf() -> None:
    """Let `import pydensecrf`, and of its modules, find this package from now on, in child processes as well.

    A folder with a package of that name becomes the first of `sys.path`, which processes of multiprocessing, joblib and
    torch take over (fork, spawn or forkserver), and of the environment variable PYTHONPATH, for any other Python that
    this process starts.

    Calling it twice does no harm. Call it before the first import of pydensecrf, and before worker processes start:
    where another pydensecrf has been imported, later imports find this one, but what has been bound already (`import
    pydensecrf.densecrf as dcrf`, `from pydensecrf.utils import …`) stays the other's, of which a RuntimeWarning tells.
    """
    sys.path[:] = [FOLDER, *(entry for entry in sys.path if entry != FOLDER)]
    inherited = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [FOLDER, *(entry for entry in inherited.split(os.pathsep) if entry not in ("", FOLDER))]
    )
    ours = {"pydensecrf": sys.modules[PACKAGE]}
    for name in ("densecrf", "eigen", "utils"):
        ours[f"pydensecrf.{name}"] = importlib.import_module(f"{PACKAGE}.{name}")
    others = {name: module for name, module in sys.modules.items() if _is_other(name, module)}
    if others:
        warnings.warn(_too_late(others), RuntimeWarning, stacklevel=2)
    for name in others:
        del sys.modules[name]
    sys.modules.update(ours)


def _is_other(name: str, module: object) -> bool:
    """Whether this is a module of another pydensecrf; the one that is just being imported from FOLDER is not."""
    if name.partition(".")[0] != "pydensecrf" or not isinstance(module, ModuleType):
        return False
    return not module.__name__.startswith(PACKAGE) and not (getattr(module, "__file__", None) or "").startswith(FOLDER)


def _too_late(others: dict[str, ModuleType]) -> str:
    bound = sorted(
        f"{module.__name__}.{name}"
        for module in set(sys.modules.values()) - set(others.values())
        if isinstance(module, ModuleType)
        for name, value in list(vars(module).items())
        if (isinstance(value, ModuleType) and value in others.values())
        or (isinstance(value, type | FunctionType) and value.__module__ in others)
    )
    where = getattr(next(iter(others.values())), "__file__", None) or "an unknown place"
    return (
        f"install_as_pydensecrf() comes late: pydensecrf has been imported from {where} already. Imports from now on "
        "find deeplab_fast's; names bound before stay the other's" + (f": {', '.join(bound)}" if bound else "")
    )
