"""What a run leaves beside its results: how they were made, and which images failed."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deeplab_fast import files
from deeplab_fast.crf.dataset.pairs import SETTINGS
from deeplab_fast.crf.dataset.shards import Shard
from deeplab_fast.crf.dataset.work import Work
from deeplab_fast.errors import ArgumentError

FAILED = "failed"


def check_settings(work: Work) -> None:
    """Raise if results that are there were made in another way.

    Raises:
        ValueError: if parameters of the CRF, or how scores are read, differ; the message says in what.
    """
    there, settings = _there(work), _settings(work)
    if there is None or there == settings:
        return
    names = [name for name in settings if there.get(name) != settings[name]]
    was, now = (", ".join(f"{name} {one.get(name)}" for name in names) for one in (there, settings))
    wanted = f"another folder, or images made anew (--no-skip-existing): now it is {now}"
    raise ArgumentError("out", f"{work.out}, with results of {was}", wanted, what="folder")


def remove_others(work: Work, names: Iterable[str], before: float) -> None:
    """Delete results that were made in another way: a run to come must not take them for its own.

    Args:
        work: how they are made now.
        names: of all images, those of other parts of the set, too.
        before: a time, in seconds, before the settings were looked at; what was written later is another part's.
    """
    there = _there(work)
    if there is None or there == _settings(work):
        return
    for target in itertools.chain.from_iterable(map(work.targets, names)):
        with contextlib.suppress(FileNotFoundError):
            if target.stat().st_mtime < before:
                target.unlink()


def write_settings(work: Work) -> None:
    """Note how results are made."""
    text = json.dumps(_settings(work), indent=1)
    files.atomic_write(work.out / SETTINGS, files.writer_of(text.encode() + b"\n"))


def _there(work: Work) -> dict[str, Any] | None:
    """How the results that are there were made; None if that is not known."""
    try:
        return dict(json.loads((work.out / SETTINGS).read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):  # another program's file of that name
        return {}


def _settings(work: Work) -> dict[str, Any]:
    how = asdict(work.how) | {"values": None if work.how.values is None else str(work.how.values)}
    settings = asdict(work.params) | how | {"palette": None if work.palette is None else work.palette.tolist()}
    return json.loads(json.dumps(settings, default=float))  # as it comes back: tuples are lists


def failed_path(out: Path, shard: Shard) -> Path:
    """The list of failures; each part of a set has its own."""
    return out / (f"{FAILED}.txt" if shard.count == 1 else f"{FAILED}-{shard.number}-of-{shard.count}.txt")


def write_failed(path: Path, failed: Mapping[str, str]) -> None:
    """Write names and reasons, a line each with a tab between; without any, there is no list."""
    if not failed:
        path.unlink(missing_ok=True)
        return
    lines = [f"{' '.join(name.split())}\t{reason}\n" for name, reason in sorted(failed.items())]
    files.atomic_write(path, files.writer_of("".join(lines).encode(errors="replace")))
