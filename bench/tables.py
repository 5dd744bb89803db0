"""Tables of results in Markdown, for the site: medians of whole calls, beside those of the peers."""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.results import WHOLE, Measurement, Run, committed, read

OURS = "deeplab"  # how the names of our backends begin
NOT_RECORDED = "instruction set, torch and oneDNN not recorded"


def markdown(patterns: Sequence[str], files: Iterable[Path] | None = None) -> str:
    """One table a machine and set of versions, newest first, of all cases whose name fits one of the patterns.

    A case that was measured again on a machine is shown as it was measured last.

    Args:
        patterns: of `OP: SIZE`, as those of a shell: `*` is anything. One that begins with `!` leaves cases out.
        files: of results; default: all in bench/results.

    Raises:
        ValueError: if nothing fits.
    """
    runs = sorted((read(path) for path in files or committed()), key=lambda run: run.date, reverse=True)
    seen: set[tuple[str, str, str]] = set()
    groups: dict[str, list[Measurement]] = {}
    for run in runs:
        machine = f"{run.machine['processor']} {run.machine['cores']}"
        mine = [m for m in run.measurements if m.stage == WHOLE and fits(m, patterns)]
        fresh = [m for m in mine if (machine, m.case, m.unit) not in seen]
        seen |= {(machine, m.case, m.unit) for m in fresh}
        if fresh:
            groups.setdefault(where(run), []).extend(fresh)
    if not groups:
        raise ValueError(f"no results fit {', '.join(patterns)}")
    return "\n\n".join(f"{heading}\n\n{_table(rows)}" for heading, rows in groups.items())


def where(run: Run) -> str:
    """Machine, instruction set and versions, in a line."""
    machine, software = run.machine, run.software
    parts = [str(machine["processor"]), f"{machine['cores']} cores", *([machine["gpu"]] if machine["gpu"] else [])]
    names = {
        "deeplab_fast_isa": "our instruction set", "torch_isa": "torch's", "torch": "torch", "onednn": "oneDNN",
        "cuda": "CUDA", "pydensecrf": "pydensecrf",
    }  # fmt: skip
    versions = [f"{name} {software[key]}" for key, name in names.items() if software.get(key)]
    return f"**{', '.join(parts)}** ({run.date[:10]}; {', '.join(versions) or NOT_RECORDED})"


def fits(measurement: Measurement, patterns: Sequence[str]) -> bool:
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
    unwanted = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    fit = [any(fnmatch.fnmatchcase(measurement.case, one) for one in some) for some in (wanted, unwanted)]
    return fit == [True, False]


def _table(rows: list[Measurement]) -> str:
    """A line a case; the peers' columns first; last, the fastest peer's figure divided by the best of ours.

    Where results are meant to differ, and have a quality, there is no ratio, and a line a backend: there are many.
    """
    backends = list(dict.fromkeys(row.backend for row in rows))
    backends = sorted(backends, key=lambda name: name.startswith(OURS))  # stable: otherwise as measured
    ops = {row.op for row in rows}
    alike = all(row.quality is None for row in rows)
    headings = [name.replace("deeplab_fast", "ours") for name in backends]
    lines = [["", *headings, *["ours is"] * alike]]
    for _, of_case in itertools.groupby(sorted(rows, key=_natural), key=lambda row: (row.case, row.unit)):
        found = {row.backend: row for row in of_case}
        first = next(iter(found.values()))
        name = first.size if len(ops) == 1 else first.case
        lines.append([name, *(_cell(found.get(one)) for one in backends), *[_ratio(found)] * alike])
    if not alike:
        lines = [list(column) for column in zip(*lines, strict=True)]
    lines.insert(1, ["---", *["---:"] * (len(lines[0]) - 1)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(row: Measurement | None) -> str:
    if row is None:
        return "–"
    text = _figure(row.median, row.unit)
    return text if row.quality is None else f"{text}, {100 * row.quality:.1f} %"


def _figure(value: float, unit: str) -> str:
    if unit == "B":
        return f"{value / 1e6:.0f} MB"
    milliseconds = 1e3 * value
    return f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.3g} ms"


def _ratio(found: dict[str, Measurement]) -> str:
    peers = [row.median for row in found.values() if not row.backend.startswith(OURS)]
    ours = [row.median for row in found.values() if row.backend.startswith(OURS)]
    if not peers or not ours:
        return ""
    times = min(peers) / min(ours)
    better, worse = ("smaller", "larger") if next(iter(found.values())).unit == "B" else ("faster", "slower")
    if 0.995 < times < 1.005:
        return "as fast"
    return f"{_times(times)} {better}" if times > 1 else f"**{_times(1 / times)} {worse}**"


def _times(factor: float) -> str:
    return f"{factor:.0f}×" if factor >= 10 else f"{factor:.1f}×" if factor >= 1.1 else f"{factor:.2f}×"


def _natural(row: Measurement) -> list[str | int]:
    """Cases in an order in which 21 comes before 182."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", row.case)]
