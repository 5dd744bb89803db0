"""The format of results: one JSON file a run, with the machine, the versions and every single sample."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "bench" / "results"
WHOLE = "whole"  # stage: the whole call, as a user makes it
FORMAT = 1  # another number for a change that makes old files unreadable


@dataclass(frozen=True)
class Measurement:
    """One stage of one backend of one case."""

    op: str
    size: str
    device: str  # "cpu" or "cuda": what the case is for; a peer in it may compute on a CPU all the same
    stage: str
    backend: str
    peer: str  # the backend that it is compared with
    threads: int | None
    sizes: dict[str, Any]
    unit: str  # of the samples: "s" or "B"
    samples: list[float]
    error: float | None = None  # how far the result is from the peer's; None for the peer
    quality: float | None = None  # mean IoU, 0..1, where results are meant to differ

    @property
    def case(self) -> str:
        return f"{self.op}: {self.size}"

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def best(self) -> float:
        return min(self.samples)


@dataclass
class Run:
    """What a file holds."""

    date: str
    commit: dict[str, Any]
    machine: dict[str, Any]
    software: dict[str, Any]
    measurements: list[Measurement] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @classmethod
    def new(cls) -> Run:
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return cls(date, describe_commit(), describe_machine(), describe_software())

    def times_better(self, measurement: Measurement, of: Callable[[Measurement], float]) -> float:
        """The peer's figure divided by this one's, above 1 where this is faster or smaller; NaN without a peer."""
        same = (measurement.case, measurement.device, measurement.stage, measurement.peer, measurement.unit)
        for other in self.measurements:
            if (other.case, other.device, other.stage, other.backend, other.unit) == same:
                return of(other) / of(measurement)
        return math.nan


def median(measurement: Measurement) -> float:
    return measurement.median


def best(measurement: Measurement) -> float:
    return measurement.best


def write(path: Path, run: Run) -> None:
    """Beside the samples, median, best and ratios stand in the file, to be read by eye."""
    rows = []
    for measurement in run.measurements:
        ratios = {
            "times_better_median": run.times_better(measurement, median),
            "times_better_best": run.times_better(measurement, best),
        }
        figures = {"median": measurement.median, "best": measurement.best} | ratios
        rows.append(asdict(measurement) | {name: None if math.isnan(n) else n for name, n in figures.items()})
    content = {"format": FORMAT} | asdict(run) | {"measurements": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    part.replace(path)  # never half a file


def read(path: Path) -> Run:
    """Raises ValueError for a file that is none of results, or of another format."""
    content = json.loads(path.read_text())
    found = content.pop("format", None) if isinstance(content, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path}: format is {found}, should be {FORMAT}")
    derived = ("median", "best", "times_better_median", "times_better_best")
    rows = [{k: v for k, v in row.items() if k not in derived} for row in content.pop("measurements")]
    return Run(**content, measurements=[Measurement(**row) for row in rows])


# --- Where it was measured -----------------------------------------------------------------------------------------


def describe_machine() -> dict[str, Any]:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    """Its name, and what tells two of the same name apart."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = {
        key: match[1]
        for key in ("model name", "cpu family", "model")
        if (match := re.search(rf"^{key}\s*: (.*)$", text, re.MULTILINE))
    }
    name = found.get("model name", platform.machine())
    details = [f"{key.removeprefix('cpu ')} {found[key]}" for key in ("cpu family", "model") if key in found]
    return f"{name} ({', '.join(details)})" if details else name


def describe_software() -> dict[str, Any]:
    """Versions; the instruction sets that our kernels and torch's have chosen here; None for what is not installed."""
    import torch

    import deeplab_fast

    onednn = re.search(r"(?:MKL-DNN|oneDNN) v([\d.]+)", torch.__config__.show())
    try:
        from deeplab_fast import _densecrf

        isa = _densecrf.isa()
    except ImportError:
        isa = None
    return {
        "python": platform.python_version(),
        "deeplab_fast": deeplab_fast.__version__,
        "deeplab_fast_isa": isa,
        "torch": torch.__version__,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "onednn": onednn[1] if onednn else None,
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "pydensecrf": _version("pydensecrf2") or _version("pydensecrf"),
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def describe_commit() -> dict[str, Any]:
    """None where git or the repository is not there."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"id": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {"id": None, "dirty": None}


def committed() -> Iterator[Path]:
    """The files of results that are part of the repository."""
    yield from sorted(FOLDER.glob("*.json"))
