"""Errors about arguments: their text, their parts, their way between processes, and into a command's words."""

from __future__ import annotations

import pickle

import pytest

from deeplab_fast.commands.common import WrongOption, WrongUse, option_errors
from deeplab_fast.errors import ArgumentError, ArgumentTypeError, at, one_of

CASES = [
    (ArgumentError("tile", 3, "at least 32"), "tile: is 3, should be at least 32"),
    (ArgumentError("kind", "odds", one_of(["auto", "logits"])), "kind: is 'odds', should be auto or logits"),
    (ArgumentError("x", (2, 3), "(N, C, H, W)", what="shape"), "x: shape is (2, 3), should be (N, C, H, W)"),
    (ArgumentError("prob", "2 to 3", "in 0..1", what="values"), "prob: values are 2 to 3, should be in 0..1"),
    (
        ArgumentError("x", "NaN", "finite", what="values", text="there are NaN, all should be finite"),
        "x: there are NaN, all should be finite",
    ),
    (ArgumentTypeError("model", type([]), "a module"), "model: is a list, should be a module"),
]


@pytest.mark.parametrize(("error", "text"), CASES)
def test_text_and_parts(error, text):
    assert str(error) == text
    assert isinstance(error, TypeError if isinstance(error, ArgumentTypeError) else ValueError)
    there = at("b/a.npy", error)
    assert str(there) == f"b/a.npy: {text}"
    for sent in (error, there):
        got = pickle.loads(pickle.dumps(sent))
        assert type(got) is type(sent)
        assert (str(got), vars(got)) == (str(sent), vars(sent))


def test_place_of_other_errors():
    error = at("a.npy", ValueError("is broken"))
    assert type(error) is ValueError
    assert str(error) == "a.npy: is broken"


def test_one_of():
    assert [one_of(words) for words in ("a", "ab", "abc")] == ["a", "a or b", "a, b or c"]


def test_option_errors():
    with pytest.raises(WrongUse, match="--pos-w: is 3, should be less") as caught, option_errors("--pos-w"):
        raise ArgumentError("pos_w", 3, "less")
    error = caught.value
    assert isinstance(error, WrongOption)
    assert (error.name, error.value, error.wanted) == ("--pos-w", 3, "less")
    with pytest.raises(WrongOption, match="a: --out: dtype is 3, should be 4"), option_errors(path="--out"):
        raise ArgumentTypeError("path", 3, "4", what="dtype", where="a")
    for other in (ArgumentError("bi_w", 3, "less"), ValueError("pos_w: is 3, should be less")):
        with pytest.raises(ValueError, match="is 3, should be less") as caught, option_errors("--pos-w"):
            raise other
        assert caught.value is other
