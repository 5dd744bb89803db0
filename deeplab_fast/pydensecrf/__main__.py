"""`python -m deeplab_fast.pydensecrf`: runs a script, unchanged, with this package in pydensecrf's place.

In its worker processes, too: see `install_as_pydensecrf`.
"""

from __future__ import annotations

import os
import runpy
import sys

from deeplab_fast.pydensecrf import install_as_pydensecrf

USAGE = """usage: python -m deeplab_fast.pydensecrf SCRIPT [ARGUMENT ...]
       python -m deeplab_fast.pydensecrf -m MODULE [ARGUMENT ...]"""


def main(arguments: list[str]) -> None:
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return
    as_module = arguments[:1] == ["-m"]
    target = arguments[as_module : as_module + 1]
    if not target or target[0].startswith("-"):
        print(USAGE, file=sys.stderr)
        sys.exit(2)
    sys.argv[:] = arguments[as_module:]
    if as_module:
        install_as_pydensecrf()
        names = runpy.run_module(target[0], run_name="__main__", alter_sys=True)
    else:
        if not os.path.exists(target[0]):
            sys.exit(f"python -m deeplab_fast.pydensecrf: there is no file {target[0]!r}")
        # Of `python -m`, the first entry is the working directory; of a script, it is the script's folder.
        if not getattr(sys.flags, "safe_path", False):
            sys.path[0] = os.path.dirname(os.path.realpath(target[0]))
        install_as_pydensecrf()
        names = runpy.run_path(target[0], run_name="__main__")
    # Threads and pools that outlive the script's last line find its functions by name.
    vars(sys.modules["__main__"]).update(names)


if __name__ == "__main__":
    main(sys.argv[1:])
