"""What `import pydensecrf` finds where the folder above is on the path: see `install_as_pydensecrf`.

Importing it puts deeplab_fast.pydensecrf and its modules in its own place in `sys.modules`.
"""

import importlib.util
import sys
from pathlib import Path


def _import_package() -> None:
    """Import deeplab_fast, from beside this file where it is not on the path of this process."""
    if importlib.util.find_spec("deeplab_fast") is not None:
        return
    folder = Path(__file__).resolve().parents[3]
    spec = importlib.util.spec_from_file_location(
        "deeplab_fast", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["deeplab_fast"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


_import_package()
importlib.import_module("deeplab_fast.pydensecrf").install_as_pydensecrf()
