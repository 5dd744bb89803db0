"""Where the checkout's parts lie, for tests that read or run them."""

import os
from pathlib import Path

SUPPORT = Path(__file__).parent
TESTS = SUPPORT.parent
NATIVE = TESTS / "native"
ROOT = TESTS.parent
CSRC = ROOT / "csrc"


def with_path(*folders: Path) -> dict[str, str]:
    """The environment of a command whose Python may import from these folders, and from this one."""
    path = [*map(str, folders), str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
