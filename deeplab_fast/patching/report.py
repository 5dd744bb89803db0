"""What `patch` tells of its work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

REPLACED, LEFT_ALONE, ALREADY_PATCHED = "replaced", "left alone", "already patched"


@dataclass(frozen=True)
class Entry:
    """One thing that was found in a module.

    Attributes:
        status: "replaced", "left alone" or "already patched".
        path: of the module in the model, "" for the model itself.
        kind: the name of the module's class.
        what: which of its children do what, for example "conv1 + bn1 + relu".
        why: it was left alone; else "".
    """

    status: str
    path: str
    kind: str
    what: str
    why: str = ""

    def __str__(self) -> str:
        where = f"{self.path or '(the model)'} ({self.kind})"
        return ": ".join(part for part in (where, self.what, self.why) if part)


@dataclass
class Report:
    """What was replaced in a model, what was not, and why; `str(report)` is for people.

    Attributes:
        entries: what was found.
        remark: why fused ops are slower here than they could be; "" if they are not.
    """

    entries: list[Entry] = field(default_factory=list)
    remark: str = ""

    @property
    def replaced(self) -> list[Entry]:
        return self._with(REPLACED)

    @property
    def left_alone(self) -> list[Entry]:
        return self._with(LEFT_ALONE)

    @property
    def already_patched(self) -> list[Entry]:
        return self._with(ALREADY_PATCHED)

    def _with(self, status: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.status == status]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __str__(self) -> str:
        if not self.entries:
            return (
                "Nothing to replace was found: no summed atrous convolutions, no convolutions with batch norm or ReLU."
            )
        lines = [self.remark] if self.remark else []
        for status in (REPLACED, ALREADY_PATCHED, LEFT_ALONE):
            if entries := self._with(status):
                lines += [f"{status.capitalize()} ({len(entries)}):", *(f"  {entry}" for entry in entries)]
        return "\n".join(lines)
