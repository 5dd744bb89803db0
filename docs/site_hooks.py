"""What the site has beside docs/*.md: files of the repository as pages, and tables made from bench/results.

mkdocs calls `on_files` and `on_page_markdown`. Neither torch nor the compiled parts are needed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # mkdocs loads this file as a module of no package

from bench import tables  # noqa: E402

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

# page -> file of the repository: the one text for both
FROM_REPOSITORY = {
    "contributing.md": "CONTRIBUTING.md",
    "benchmarks.md": "bench/README.md",
    "bench-notes.md": "bench/NOTES.md",
    "changelog.md": "CHANGELOG.md",
    "images/hero.jpg": "demo/hero.jpg",
    "images/shapes-predicted.jpg": "demo/shapes-predicted.jpg",
    "images/shapes-eval.png": "demo/shapes-eval.png",
}
RESULTS = re.compile(r"^<!-- results: (.+) -->$", re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and pictures that stand elsewhere in the repository."""
    from mkdocs.structure.files import File

    for page, source in FROM_REPOSITORY.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put tables in the place of their markers."""
    return RESULTS.sub(lambda marker: tables.markdown(marker[1].split(", ")), markdown)
