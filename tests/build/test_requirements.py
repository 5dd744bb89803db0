"""Every requirement in pyproject.toml says which version it takes at least: `make test-lowest` runs with those."""

from __future__ import annotations

import pytest

pytest.importorskip("packaging")

from lowest_versions import lowest, requirements


def test_every_requirement_has_a_lower_bound():
    assert [f"{extra}: {requirement}" for extra, requirement in requirements() if lowest(requirement) is None] == []


def test_extras_agree_on_a_package():
    bounds: dict[str, set[str | None]] = {}
    for _, requirement in requirements():
        bounds.setdefault(requirement.name, set()).add(lowest(requirement))
    assert {name: versions for name, versions in bounds.items() if len(versions) > 1} == {}
