"""Prints the lowest version that pyproject.toml allows of each package, for pip to install (make test-lowest).

python tests/lowest_versions.py EXTRA...     "build" is what the package is built with; torch is left out
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

try:
    import tomllib
except ImportError:  # Python 3.10; comes with pytest there
    import tomli as tomllib

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())


def requirements() -> Iterator[tuple[str, Requirement]]:
    """Each requirement, with the extra that it belongs to: "" for all installations, "build" for building."""
    groups = {"": PYPROJECT["project"]["dependencies"], "build": PYPROJECT["build-system"]["requires"]}
    for extra, texts in (groups | PYPROJECT["project"]["optional-dependencies"]).items():
        for text in texts:
            yield extra, Requirement(text)


def lowest(requirement: Requirement) -> str | None:
    """The version that is the lower bound, or None."""
    return next((one.version for one in requirement.specifier if one.operator in (">=", "==", "~=")), None)


def main(extras: list[str]) -> None:
    """Print `name==version` of what the package and these extras require."""
    pins = {
        f"{requirement.name}=={lowest(requirement)}"
        for extra, requirement in requirements()
        if extra in ("", *extras) and requirement.name != "torch"
    }
    print(*sorted(pins))


if __name__ == "__main__":
    main(sys.argv[1:])
