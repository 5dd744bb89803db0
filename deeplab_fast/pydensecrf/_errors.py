"""Errors about arguments, in the words that this package has for them."""

from __future__ import annotations

from deeplab_fast.errors import ArgumentError


class Refused(ArgumentError):
    """An `ArgumentError` whose text is `NAME must be WANTED, got VALUE`, or `NAME must have WHAT WANTED, got VALUE`."""

    def __str__(self) -> str:
        shown = repr(self.value) if isinstance(self.value, str) and not self.what else str(self.value)
        return f"{self.name} must {f'have {self.what}' if self.what else 'be'} {self.wanted}, got {shown}"
