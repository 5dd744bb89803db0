"""Where the checkout's parts lie, for tests that read or run them."""

import os
import re
from pathlib import Path

SUPPORT = Path(__file__).parent
TESTS = SUPPORT.parent
NATIVE = TESTS / "native"
ROOT = TESTS.parent
CSRC = ROOT / "csrc"
# The instruction sets of x86-64, best first, from their one list.
INSTRUCTION_SETS = [*re.findall(r"^  SET\((\w+), HAS", (CSRC / "isa" / "isa.h").read_text(), re.MULTILINE), "baseline"]


def with_path(*folders: Path) -> dict[str, str]:
    """The environment of a command whose Python may import from these folders, and from this one."""
    path = [*map(str, folders), str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
