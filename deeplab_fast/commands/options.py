"""Options that mean the same in several commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deeplab_fast.commands.common import WrongOption, option_errors
from deeplab_fast.errors import one_of

if TYPE_CHECKING:
    from deeplab_fast.pictures.label_values import LabelValues

# Headings of the options in --help.
SCORES, LABELS, CRF, SET, VOLUME = "Scores", "Labels", "CRF parameters", "Data sets", "Volumes"

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Config = Annotated[
    Path, typer.Option("--config", "-c", help="Configuration, a YAML file; see configs/.", show_default=False)
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Replace an entry, as in training.lr=0.001; may be given more than once."),
]
WeightsKey = Annotated[
    str | None, typer.Option("--key", help="Which weights, where the file holds several: ema or student, say.")
]
Palette = Annotated[
    Path | None,
    typer.Option(help="A palette picture, whose colours the results get (default: VOC's).", show_default=False),
]
SaveScores = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the network's scores, NAME.npz, at its own size and in float16, for crf and crf-eval.",
        show_default=False,
    ),
]
Crf = Annotated[bool, typer.Option("--crf", help="Refine with the dense CRF of the configuration.")]
Tile = Annotated[int | None, typer.Option(min=32, help="Cut larger images into tiles of this side, pixels.")]
Flip = Annotated[bool, typer.Option("--flip", help="Also predict photos mirrored, and take the mean of both.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda (default: as the configuration).")]
Kind = Annotated[
    str,
    typer.Option(
        rich_help_panel=SCORES,
        help="What the input's numbers are: auto, logits, probabilities, sigmoid (one channel: class 1 of two); in "
        "crf also labels.",
    ),
]
Layout = Annotated[
    str,
    typer.Option(
        rich_help_panel=SCORES, help="Order of the scores' axes: auto, khw (classes first) or hwk (classes last)."
    ),
]
Key = Annotated[
    str | None, typer.Option(rich_help_panel=SCORES, help="Name of the array in a file that holds several.")
]
Keys = Annotated[
    str,
    typer.Option(
        rich_help_panel=SCORES,
        help="What the numbers beside the maps of some classes are: classes (theirs) or foreground (less 1, as IRN's "
        "and psa's; class 0 is the background).",
    ),
]
Background = Annotated[
    float | None,
    typer.Option(rich_help_panel=SCORES, help="Score of class 0, where there are maps of other classes only."),
]
Values = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=LABELS,
        help="What each value of a label picture means: 0:0,255:1, or 0:0,128:ignore,255:1.",
        show_default=False,
    ),
]
SkipMissing = Annotated[
    bool, typer.Option("--skip-missing", help="Go on without images whose scores are missing, and count them.")
]


def check_scores_options(kind: str, layout: str, labels: bool = False) -> None:
    """Raise WrongOption unless --kind and --layout are words that they take; with `labels`, --kind takes that, too."""
    from deeplab_fast import scores

    choices = {"--kind": (kind, (*scores.KINDS, *["labels"] * labels)), "--layout": (layout, scores.LAYOUTS)}
    for option, (word, words) in choices.items():
        if word not in words:
            raise WrongOption(option, word, one_of(words))


def parsed_numbers(option: str, text: str, wanted: str, *, whole: bool = False) -> tuple[float, ...]:
    """Numbers, whole ones if so, that are separated by commas; raise WrongOption, which says what is wanted."""
    try:
        return tuple((int if whole else float)(number) for number in text.split(","))
    except ValueError:
        raise WrongOption(option, text, wanted) from None


def parsed_values(text: str | None) -> LabelValues | None:
    """What --values says."""
    if text is None:
        return None
    from deeplab_fast.pictures.label_values import LabelValues

    with option_errors("--values"):
        return LabelValues.parse(text)
