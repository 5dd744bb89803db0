"""``deeplab-fast doctor``: what was built, what is used, and why not, in words; works with nothing built."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import deeplab_fast
from deeplab_fast import _native

# "good": there and used. "lesser": absent, and something slower or nothing at all takes its place. "off": absent
# or not used, and not missed here.
GOOD, LESSER, OFF = "good", "lesser", "off"
MARKS = {GOOD: ("✓", "green"), LESSER: ("!", "yellow"), OFF: ("·", "dim")}
OLDEST_TORCH = (2, 10)


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    state: str
    name: str
    text: str


def examine() -> list[Finding]:
    """Look at everything that decides what is used. A check that fails becomes a finding, never an error."""
    checks: dict[str, Callable[[], list[Finding]]] = {
        "deeplab-fast": _package,
        "dense CRF on numpy": _numpy_core,
        "torch": _torch,
        "torch operators": _operators,
        "pydensecrf": _peer,
    }
    findings = []
    for name, check in checks.items():
        try:
            findings += check()
        except Exception as error:
            findings.append(Finding(LESSER, name, f"could not be examined: {type(error).__name__}: {error}"))
    return findings


def version_of(*distributions: str) -> str | None:
    """Version of the first of these distributions that is installed, without importing it."""
    for distribution in distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def numbers_depend_on() -> str:
    """One line of what results and times depend on in rounding and speed: instruction sets, versions, threads."""
    try:
        isa = importlib.import_module("deeplab_fast._densecrf").isa()
    except ImportError:
        isa = "not compiled"
    parts = [f"deeplab-fast {deeplab_fast.__version__} ({isa})"]
    if version_of("torch") is not None:
        parts.append(_torch_in_brief())
    parts += [f"{name} {version_of(name)}" for name in ("numpy", "triton") if version_of(name) is not None]
    return ", ".join(parts)


def _torch_in_brief() -> str:
    """Version, instruction set, oneDNN and threads of torch."""
    torch = importlib.import_module("torch")
    onednn = re.search(r"(?:MKL-DNN|oneDNN) v?([\d.]+)", torch.__config__.show())
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    words = [
        torch.backends.cpu.get_cpu_capability(),
        f"oneDNN {onednn[1]}" if onednn else "no oneDNN",
        *([f"limited to {limit}"] if onednn and limit else []),
        f"{torch.get_num_threads()} threads",
    ]
    return f"torch {torch.__version__} ({', '.join(words)})"


def _package() -> list[Finding]:
    where = os.path.dirname(os.path.abspath(__file__))
    python = f"{platform.python_version()} ({sys.executable}), {platform.system()} {platform.machine()}"
    return [
        Finding(GOOD, "deeplab-fast", f"{deeplab_fast.__version__} from {where}"),
        Finding(GOOD, "Python", python),
    ]


def _described(details: Mapping[str, Any]) -> str:
    """``compiler GCC 12.2, openmp no`` from a dict of facts."""
    words = {True: "yes", False: "no", None: "none"}
    shown = []
    for key, value in details.items():
        if isinstance(value, (list, tuple)):
            value = " ".join(map(str, value)) or "none"
        elif isinstance(value, bool) or value is None:
            value = words[value]
        shown.append(f"{str(key).replace('_', ' ')} {value}")
    return ", ".join(shown)


def _numpy_core() -> list[Finding]:
    """The compiled module behind the numpy CRF and the pydensecrf drop-in."""
    name = "dense CRF on numpy"
    try:
        core = importlib.import_module("deeplab_fast._densecrf")
    except ImportError as error:
        built = importlib.util.find_spec("deeplab_fast._densecrf") is not None
        why = f"is there but does not load ({error})" if built else "was not built"
        text = f"the compiled module {why}: computing in plain numpy, much slower; {_native.COMPILER}"
        return [Finding(LESSER, name, text)]
    from deeplab_fast import pydensecrf

    threads = pydensecrf.get_num_threads()
    forced = os.environ.get("DEEPLAB_FAST_ISA")
    why = f"forced by DEEPLAB_FAST_ISA={forced}" if forced else "the widest this processor has and the build knows"
    return [
        Finding(GOOD, name, f"compiled; {_described(core.build_info())}"),
        Finding(GOOD, "instructions", f"{core.isa()}, {why}"),
        Finding(GOOD, "threads", f"{threads}, {_why_threads(threads)}"),
    ]


def _why_threads(threads: int) -> str:
    if os.environ.get("OMP_NUM_THREADS"):
        return f"OMP_NUM_THREADS is {os.environ['OMP_NUM_THREADS']}"
    return f"of {os.cpu_count()} processors" if threads != os.cpu_count() else "as many as processors"


def _torch() -> list[Finding]:
    version = version_of("torch")
    if version is None:
        text = "not installed: the numpy dense CRF and the pydensecrf drop-in work, operators and modules do not"
        return [Finding(LESSER, "torch", f"{text}; install torch >= {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]} for them")]
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST_TORCH:
        return [
            Finding(
                LESSER,
                "torch",
                f"{version} is too old: {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]} or newer is needed",
            )
        ]
    torch = importlib.import_module("torch")
    cuda = "without CUDA" if torch.version.cuda is None else f"for CUDA {torch.version.cuda}"
    if torch.version.cuda is not None:
        cuda += f", {torch.cuda.device_count()} GPU(s)" if torch.cuda.is_available() else ", but no GPU is usable"
    return [Finding(GOOD, "torch", f"{_torch_in_brief().removeprefix('torch ')}, {cuda}")]


def _operators() -> list[Finding]:
    """The libraries with kernels of the torch operators, as ``deeplab_fast._native`` tells in words."""
    if version_of("torch") is None:
        return [
            Finding(OFF, "CPU kernels", "not used, without torch"),
            Finding(OFF, "CUDA kernels", "not used, without torch"),
        ]
    return [_kernels(kind, library) for kind, library in _native.libraries().items()]


def _kernels(kind: str, library: _native.Library) -> Finding:
    name = f"{kind.upper()} kernels"
    if library.loaded:
        return Finding(GOOD, name, f"loaded; torch operators on {kind.upper()} tensors use them")
    text = f"{library.status}: torch operators on {kind.upper()} tensors run in plain PyTorch, much slower"
    missed = kind == "cpu" or library.broken or importlib.import_module("torch").cuda.is_available()
    if not missed:
        return Finding(OFF, name, f"{library.status}; there is no GPU here that torch could use")
    return Finding(LESSER, name, f"{text}; {library.remedy}" if library.remedy else text)


def _peer() -> list[Finding]:
    version = version_of("pydensecrf2", "pydensecrf")
    if version is None and importlib.util.find_spec("pydensecrf") is None:
        return [Finding(OFF, "pydensecrf", "not installed; it is only needed to compare with")]
    return [Finding(GOOD, "pydensecrf", f"{version or 'unknown version'}, for comparisons; nothing here uses it")]


def show(findings: list[Finding]) -> None:
    """Print the findings, one paragraph each, marked good or lesser."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(Text(*MARKS[finding.state]), Text(finding.name, "bold"), Text(finding.text))
    Console().print(table)
