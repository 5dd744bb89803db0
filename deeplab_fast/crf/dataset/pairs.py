"""Which images belong to which scores: of folders, patterns and lists."""

from __future__ import annotations

import glob
import itertools
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deeplab_fast.errors import ArgumentError
from deeplab_fast.pictures import IMAGE_ENDINGS
from deeplab_fast.scores import ARRAY_ENDINGS

LABEL_ENDINGS = (".png", ".bmp", ".tif", ".tiff")
# Of scores, what is taken first of several files with one name: pictures may be there to be looked at only.
SCORE_ENDINGS = (ARRAY_ENDINGS, LABEL_ENDINGS, tuple(one for one in IMAGE_ENDINGS if one not in LABEL_ENDINGS))
LIST_ENDINGS = (".txt", ".lst", ".tsv")

# What a run writes into its folder.
SETTINGS = "settings.json"

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Pair:
    """An image and what belongs to it.

    Attributes:
        name: of what is written for it, without ending; with folders where the images are in some.
        image: the photo; None where there are only scores.
        scores: None where there are none.
        truth: its true labels, a picture; None if there are none, or none are asked for.
    """

    name: str
    image: Path | None
    scores: Path | None
    truth: Path | None = None

    @property
    def problem(self) -> str | None:
        """What is missing."""
        if self.image is None:
            return f"there are scores, {self.scores}, but no image"
        return f"no scores found for {self.image}" if self.scores is None else None


def is_several(path: PathLike) -> bool:
    """Whether a path stands for several: a folder, a pattern or a list."""
    path = Path(path)
    return path.is_dir() or path.suffix.lower() in LIST_ENDINGS or _is_pattern(path)


def find_pairs(
    images: PathLike | Iterable[tuple[PathLike, PathLike]],
    scores: PathLike | None = None,
    *,
    root: PathLike | None = None,
    labels: PathLike | None = None,
    out: PathLike | None = None,
) -> list[Pair]:
    """Images and their scores, by name.

    A name is the path below the folder, or below the part of a pattern that has no wildcard, without ending. Images and
    scores are paired by it or, where that finds nothing, by the last part of it, if no others have the same.

    Args:
        images: a folder, with those in it; a pattern such as "data/*/images/*.jpg"; a list, a text file with an image
            and its scores in each line, or an image alone, separated by a tab or by blanks; or pairs of paths.
        scores: a folder or a pattern; None for lists that name them.
        root: what paths in a list are relative to; default the working directory.
        labels: a folder of true labels, by the images' names.
        out: a folder with results of earlier runs, which is not looked into.

    Returns:
        In the order of their names; those of which one half is missing, too.

    Raises:
        FileNotFoundError: if a folder or list is not there, or nothing is found.
        ValueError: for two images, or two files of scores, with one name; for a line of a list that has other parts.
    """
    given = None
    if isinstance(images, (str, os.PathLike)):
        if Path(images).suffix.lower() in LIST_ENDINGS and not Path(images).is_dir():
            given = _read_list(Path(images), Path(root or ""))
    else:
        given = [(Path(image), Path(one)) for image, one in images]
        if not given:
            raise ArgumentError("images", [], "at least one pair of paths")
    if given is None:
        photos = _found("images", images, IMAGE_ENDINGS, out)  # type: ignore[arg-type]  # pairs were taken above
        found = _names("images", *photos)
        matched = _matched(found, scores, out)
    else:
        found = _names("images", _common_folder(image for image, _ in given), [image for image, _ in given])
        matched = _of_list(found, given, scores, out)
    truths = {} if labels is None else _truths(labels, out)
    pairs = [Pair(name, image, matched.pop(name, None), _looked_up(truths, name)) for name, image in found.items()]
    pairs += [Pair(name, None, path) for name, path in matched.items()]
    return sorted(pairs, key=lambda pair: pair.name)


# ------------------------------------------------------------------------------------------------------- matching


def _of_list(
    found: Mapping[str, Path],
    given: Sequence[tuple[Path, Path | None]],
    scores: PathLike | None,
    out: PathLike | None,
) -> dict[str, Path]:
    """The scores that a list names, or, where it names none, those found elsewhere."""
    named = {image: one for image, one in given if one is not None}
    if len(named) == len(given):
        if scores is not None:
            raise ArgumentError("scores", str(scores), "left out: the list names the scores")
        return {name: named[image] for name, image in found.items()}
    if named:
        raise ArgumentError("images", "some with scores and some without", "all alike", what="list of lines")
    if scores is None:
        raise ArgumentError("scores", None, "a folder or a pattern: the list names images only")
    matched = _matched(found, scores, out)
    return {name: path for name, path in matched.items() if name in found}  # a list is a choice


def _matched(found: Mapping[str, Path], where: PathLike | None, out: PathLike | None) -> dict[str, Path]:
    """Scores by the names of images; those that belong to none by their own."""
    if where is None:
        raise ArgumentError("scores", None, "a folder or a pattern, unless a list of images names them")
    folder, files = _found("scores", where, tuple(itertools.chain(*SCORE_ENDINGS)), out)
    images = set(found.values())
    matched: dict[str, Path] = {}
    alone: dict[str, Path] = {}
    for endings in SCORE_ENDINGS:
        some = [path for path in files if path.suffix.lower() in endings and path not in images]
        by_name = _names("scores", folder, some)
        _match(found, by_name, matched)
        alone = alone or by_name  # pictures without an image may be anything, where there are arrays
    if not matched:
        raise FileNotFoundError(f"scores: none in {where} has the name of an image, such as {next(iter(found))}")
    return matched | {name: path for name, path in alone.items() if name not in matched}


def _match(found: Mapping[str, Path], by_name: dict[str, Path], matched: dict[str, Path]) -> None:
    """Move the scores of images that have none yet."""
    left = [name for name in found if name not in matched]
    matched.update({name: by_name.pop(name) for name in left if name in by_name})
    stems, wanted = _by_stem(by_name), _by_stem(name for name in left if name not in matched)
    for stem, names in wanted.items():
        if len(names) == 1 and len(stems.get(stem, ())) == 1:
            matched[names[0]] = by_name.pop(stems[stem][0])


def _by_stem(names: Iterable[str]) -> dict[str, list[str]]:
    stems: dict[str, list[str]] = defaultdict(list)
    for name in names:
        stems[name.rpartition("/")[2]].append(name)
    return stems


def _truths(folder: PathLike, out: PathLike | None) -> dict[str, Path]:
    by_name = _names("labels", *_found("labels", folder, LABEL_ENDINGS, out))
    return by_name | {stem: by_name[names[0]] for stem, names in _by_stem(by_name).items() if len(names) == 1}


def _looked_up(truths: Mapping[str, Path], name: str) -> Path | None:
    return truths.get(name, truths.get(name.rpartition("/")[2]))


def _names(what: str, folder: Path, paths: Sequence[Path]) -> dict[str, Path]:
    """Paths by their names below a folder, in the order of these."""
    found: dict[str, Path] = {}
    for path in paths:
        name = Path(os.path.relpath(path, folder)).with_suffix("").as_posix()
        if name in found and found[name] != path:
            wanted = "different ones, for the results of both would have one name"
            raise ArgumentError(what, f"{found[name]} and {path}", wanted, what="list of files")
        found[name] = path
    return found


# -------------------------------------------------------------------------------------------------------- finding


def _is_pattern(path: PathLike) -> bool:
    return glob.has_magic(os.fspath(path)) and not os.path.exists(path)


def _found(what: str, where: PathLike, endings: Sequence[str], out: PathLike | None) -> tuple[Path, list[Path]]:
    """The folder that names are below, and files with one of these endings, in order."""
    if _is_pattern(where):
        folder = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(where).parts))
        paths = [path for path in map(Path, glob.glob(os.fspath(where), recursive=True)) if path.is_file()]
    else:
        folder = Path(where)
        if not folder.exists():
            raise FileNotFoundError(f"{what}: folder not found: {folder}")
        if not folder.is_dir():
            wanted = f"a folder, a pattern or, for images, a list ({', '.join(LIST_ENDINGS)})"
            raise ArgumentError(what, f"the file {folder}", wanted)
        paths = list(_below(folder, out))
    files = sorted(path for path in paths if path.suffix.lower() in endings)
    if not files:
        raise FileNotFoundError(f"{what}: {where} has no {', '.join(endings)} files")
    return folder, files


def _below(folder: Path, out: PathLike | None) -> Iterator[Path]:
    """The files in a folder and in those in it; not hidden ones, nor results."""
    without = os.path.realpath(out) if out is not None and Path(out, SETTINGS).exists() else None
    for place, folders, files in os.walk(folder, followlinks=True):
        visible = [name for name in folders if not name.startswith(".")]
        folders[:] = [name for name in visible if os.path.realpath(os.path.join(place, name)) != without]
        yield from (Path(place, name) for name in files if not name.startswith("."))


def _read_list(path: Path, root: Path) -> list[tuple[Path, Path | None]]:
    """The images of a list, and their scores where it names them."""
    if not path.exists():
        raise FileNotFoundError(f"images: list not found: {path}")
    if not root.is_dir():
        raise FileNotFoundError(f"root: folder not found: {root}")
    found: list[tuple[Path, Path | None]] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        parts = line.strip().split("\t") if "\t" in line.strip() else line.split()
        if not parts:
            continue
        if len(parts) > 2:
            wanted = "an image and its scores, or an image alone; with blanks in names, separated by a tab"
            where = f"{path}, line {number}"
            raise ArgumentError("images", len(parts), wanted, what="number of parts", where=where)
        image, *rest = (root / part.strip() for part in parts)
        found.append((image, rest[0] if rest else None))
    if not found:
        raise ArgumentError("images", f"{path}, empty", "a list of an image and its scores a line")
    return found


def _common_folder(paths: Iterable[Path]) -> Path:
    return Path(os.path.commonpath([os.path.abspath(path.parent) for path in paths]))
