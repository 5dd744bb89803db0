"""A web page of the images that changed most: before, after and truth side by side, in one file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from deeplab_fast import files, pictures
from deeplab_fast.crf.dataset import work
from deeplab_fast.crf.dataset.pairs import Pair, PathLike
from deeplab_fast.crf.dataset.work import LEVELS, Work
from deeplab_fast.crf.inputs import UNSURE
from deeplab_fast.measures import Scores, scores_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDEST = 480  # pixels of a picture in the page
QUALITY = 85  # of its JPEG
# Colours of pixels that changed: to the true label, from it, and between others, or where the truth is not known.
BETTER, WORSE, OTHER = (46, 160, 67), (218, 54, 51), (245, 166, 35)

STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; padding: 0 1.5rem; max-width: 120rem; }
h1 { font-size: 1.4rem; margin-bottom: .2rem; } h2 { font-size: 1rem; margin: 0; font-weight: 600; }
p { margin: .3rem 0; } .muted { opacity: .7; }
section { border-top: 1px solid var(--line); padding: 1rem 0; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: .6rem; margin-top: .5rem; }
figure { margin: 0; } figure img { width: 100%; height: auto; display: block; border-radius: 3px; }
figcaption { font-size: .85rem; opacity: .7; padding-bottom: .2rem; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin: 0 .3em 0 .9em;
  box-shadow: 0 0 0 1px #8888; }
.up { color: rgb(46, 160, 67); } .down { color: rgb(218, 54, 51); }
"""


def most_changed(changed: Mapping[str, float], count: int) -> list[str]:
    """The names of the images of which the largest share changed, most first."""
    return sorted(changed, key=lambda name: (-changed[name], name))[:count]


def write_page(
    path: PathLike,
    pairs: Sequence[Pair],
    changed: Mapping[str, float],
    todo: Work,
    before: Scores | None = None,
    after: Scores | None = None,
) -> None:
    """Write the page, whole or not at all; pictures are inside.

    Args:
        path: of the page.
        pairs: the images to show, in this order; their results are there.
        changed: share of the pixels that changed, by name; of all images.
        todo: how they were refined.
        before: scores of all images before the CRF, if they are known.
        after: and after it.
    """
    parts = [_head(len(pairs), changed, todo, before, after)]
    parts += [_section(pair, changed[pair.name], todo) for pair in pairs]
    parts.append("</body></html>\n")
    files.atomic_write(path, files.writer_of("\n".join(parts).encode()))


def _head(count: int, changed: Mapping[str, float], todo: Work, before: Scores | None, after: Scores | None) -> str:
    params = ", ".join(f"{name} {value}" for name, value in vars(todo.params).items())
    share = 100 * sum(changed.values()) / max(len(changed), 1)
    on_average = f"on average {share:.1f} % of an image's pixels did"
    lines = [f"<p>Of {len(changed)} images the {count} that changed most; {on_average}.</p>"]
    if before is not None and after is not None:
        lines.append(f"<p>Mean IoU of all: {_change(before.mean_iou, after.mean_iou)}</p>")
    lines.append(f'<p class="muted">Dense CRF: {html.escape(params)}</p>')
    lines.append(
        "<p>Changed pixels:" + "".join(_key(colour, text) for colour, text in _legend(before is not None)) + "</p>"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Before and after the dense CRF</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body>'
        "<h1>Before and after the dense CRF</h1>" + "".join(lines)
    )


def _legend(with_truth: bool) -> list[tuple[tuple[int, int, int], str]]:
    if not with_truth:
        return [(OTHER, "changed")]
    return [(BETTER, "became right"), (WORSE, "became wrong"), (OTHER, "wrong before and after, or not labelled")]


def _key(colour: Sequence[int], text: str) -> str:
    red, green, blue = colour
    return f'<span class="swatch" style="background: rgb({red}, {green}, {blue})"></span>{html.escape(text)}'


def _change(before: float, after: float) -> str:
    """Two shares, and their difference, in per cent."""
    kind = "up" if after > before else "down" if after < before else "muted"
    return f'{100 * before:.1f} % → {100 * after:.1f} % <span class="{kind}">({100 * (after - before):+.1f})</span>'


def _section(pair: Pair, share: float, todo: Work) -> str:
    loaded = work.load(pair, todo.how)
    before = work.as_input(loaded, todo.how).before
    after = pictures.read_labels(todo.targets(pair.name)[0])
    shown = _pictures(loaded.photo, before, after, loaded.truth, todo.palette)
    figures = "".join(
        f"<figure><figcaption>{name}</figcaption>{_img(picture, name)}</figure>" for name, picture in shown
    )
    return (
        f"<section><h2>{html.escape(pair.name)}</h2>"
        f"<p>{100 * share:.1f} % changed{_iou(before, after, loaded.truth)}</p>"
        f"<p>{_classes(before, after, loaded.truth, todo.palette)}</p>"
        f'<div class="row">{figures}</div></section>'
    )


def _iou(before: NDArray[Any], after: NDArray[Any], truth: NDArray[Any] | None) -> str:
    """The image's own mean IoU, before and after."""
    if truth is None:
        return ""
    means = []
    for labels in (before % LEVELS, after):
        counts = np.zeros(LEVELS * LEVELS, np.int64)
        places, numbers = work.pixel_counts(truth, labels)
        counts[places] = numbers
        means.append(scores_of(counts.reshape(LEVELS, LEVELS)).mean_iou)
    return "" if np.isnan(means).any() else f"; mean IoU {_change(*means)}"


def _classes(
    before: NDArray[Any], after: NDArray[Any], truth: NDArray[Any] | None, palette: NDArray[Any] | None
) -> str:
    """The classes that occur, each with its colour."""
    present = {int(k) for labels in (before, after, truth) if labels is not None for k in np.unique(labels)}
    colours = pictures.voc_palette() if palette is None else palette
    return "Classes:" + "".join(_key(colours[k], str(k)) for k in sorted(present - {UNSURE, pictures.IGNORED}))


def _pictures(
    photo: NDArray[np.uint8],
    before: NDArray[Any],
    after: NDArray[Any],
    truth: NDArray[Any] | None,
    palette: NDArray[np.uint8] | None,
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """What is shown of an image, with the names of it."""
    labels = {"before": before % LEVELS, "after": after} | ({} if truth is None else {"truth": truth})
    yield "photo", photo
    for name, one in labels.items():
        yield name, pictures.overlay(photo, one, palette=palette, lines=False, strength=0.6)
    grey = photo.mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.4 + 30
    did = (before != after) & (before != UNSURE)
    right = (did & (after == truth), did & (before == truth)) if truth is not None else (False & did, False & did)
    for mask, colour in zip((did, *right), (OTHER, BETTER, WORSE), strict=True):
        grey[mask] = colour
    yield "changed", grey.round().astype(np.uint8)


def _img(picture: NDArray[np.uint8], name: str) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((WIDEST, WIDEST))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=QUALITY)
    encoded = base64.b64encode(content.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img loading="lazy" alt="{name}" {size} src="data:image/jpeg;base64,{encoded}">'
