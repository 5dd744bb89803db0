"""What a release names in several places is the same in all."""

from __future__ import annotations

import re

import pytest
from places import ROOT

import deeplab_fast

CITATION = (ROOT / "CITATION.cff").read_text()
TOP = re.search(r"^## (\S+) \((.*)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_version_is_the_changelogs_and_the_citations():
    """Unless the changelog's top section is one that is not released."""
    version, date = TOP.groups()
    if date == "unreleased":
        pytest.skip(f"{version} is not released")
    assert version == deeplab_fast.__version__
    assert re.search(r"^version: (.*)$", CITATION, re.MULTILINE)[1] == version
    assert re.search(r"^date-released: (.*)$", CITATION, re.MULTILINE)[1] == date


def test_citation_is_sound():
    yaml = pytest.importorskip("yaml")
    content = yaml.safe_load(CITATION)
    assert {"cff-version", "message", "title", "authors", "version", "date-released", "license"} <= content.keys()
    assert all({"type", "title", "authors", "year"} <= reference.keys() for reference in content["references"])


def test_issue_templates_are_sound():
    yaml = pytest.importorskip("yaml")
    templates = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.md"))
    if not templates:
        pytest.skip("not a checkout of the repository")
    for path in templates:
        _, front, body = path.read_text().split("---\n", 2)
        assert yaml.safe_load(front).keys() == {"name", "about", "labels"}
        assert body.strip()
