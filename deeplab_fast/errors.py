"""Errors about arguments, as objects: who catches one can ask what it is about, and say it in other words.

Both have one text, `NAME: is VALUE, should be WANTED`, or, about a property of the argument,
`NAME: shape is VALUE, should be WANTED`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

__all__ = ["ArgumentError", "ArgumentTypeError", "at", "one_of"]


class _AboutArgument(Exception):
    def __init__(self, name: str, value: object, wanted: str, *, what: str = "", where: str = "", text: str = ""):
        super().__init__(name, value, wanted)  # what pickle makes it from again; the others follow
        self.name, self.value, self.wanted = name, value, wanted
        self.what, self.where, self.text = what, where, text

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        if self.text:
            return f"{place}{self.name}: {self.text}"
        if isinstance(self.value, type):
            shown = f"a {self.value.__name__}"
        else:
            shown = str(self.value) if self.what else repr(self.value)
        verb = "are" if self.what == "values" else "is"
        return f"{place}{self.name}: {self.what and self.what + ' '}{verb} {shown}, should be {self.wanted}"


class ArgumentError(_AboutArgument, ValueError):
    """An argument has a value that cannot be taken.

    Attributes:
        name: of the argument.
        value: that it had; of one that is large, the property that is wrong.
        wanted: what it should have been, as the end of a sentence: "at least 1".
        what: which property of the argument `value` is, such as "shape" or "dtype"; "" for the argument itself.
        where: file or item that the argument comes from, if it is from one.
        text: what is said in place of `is VALUE, should be WANTED`, where that is no good sentence.
    """


class ArgumentTypeError(_AboutArgument, TypeError):
    """An argument is of a type, or dtype, that cannot be taken.

    Attributes: as those of `ArgumentError`; `value` may be the type.
    """


Error = TypeVar("Error", bound=Exception)


def at(where: str | os.PathLike[str], error: Error) -> Error:
    """The same error with the place that it is about in its text."""
    if not isinstance(error, _AboutArgument):
        return type(error)(f"{where}: {error}")
    return type(error)(error.name, error.value, error.wanted, what=error.what, where=os.fspath(where), text=error.text)


def one_of(choices: Sequence[object]) -> str:
    """ "a, b or c", for `wanted`."""
    *others, last = map(str, choices)
    return f"{', '.join(others)} or {last}" if others else last
