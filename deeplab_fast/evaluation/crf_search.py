"""The CRF parameters that suit a network best, tried on its saved scores: the network does not run again."""

from __future__ import annotations

import csv
import io
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from deeplab_fast import files, ops
from deeplab_fast.crf import PRESETS, CRFParameters, parameters
from deeplab_fast.errors import ArgumentError, ArgumentTypeError
from deeplab_fast.evaluation.metrics import ConfusionMatrix
from deeplab_fast.scores import ScoreMap, find_scores, read_scores

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["SearchResult", "combinations", "differences", "search", "table", "write_table"]

NAMES = tuple(one.name for one in fields(CRFParameters))
NUMBERS = tuple(name for name in NAMES if name != "normalization")  # what a grid can have
_MEASURES = ("mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou")


@dataclass(frozen=True)
class SearchResult:
    """Scores with one set of parameters, 0..1; `params` is None for the scores without CRF.

    `seconds` is the CRF's time for one image, on average.
    """

    params: CRFParameters | None
    mean_iou: float
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float
    seconds: float


def combinations(
    grid: Mapping[str, Sequence[float]],
    random: int | None = None,
    seed: int = 0,
    presets: Sequence[str | CRFParameters] = ("deeplab",),
) -> list[CRFParameters]:
    """The sets of parameters in a grid around each of some presets; all of them, or `random` different ones.

    What the grid does not name is as in the preset. Sets that are the same are there once.

    Raises:
        TypeError, ValueError: for unknown names, empty lists, or values that CRFParameters does not take.
    """
    for name, values in grid.items():
        if name not in NUMBERS:
            raise ArgumentError("grid", name, f"one of {', '.join(NUMBERS)}", what="name")
        if isinstance(values, str) or not isinstance(values, Sequence) or len(values) == 0:
            raise ArgumentError("grid", repr(values), "a list of at least one number", what=name)
    if random is not None and random < 1:
        raise ArgumentError("random", random, "at least 1")
    if isinstance(presets, str) or len(presets) == 0:
        raise ArgumentError("presets", presets, "a list of at least one preset")
    axes: list[list[Any]] = [list(dict.fromkeys(map(parameters, presets)))]
    axes += [list(dict.fromkeys(_number(name, value) for value in values)) for name, values in grid.items()]
    count = math.prod(map(len, axes))
    if random is None or random >= count:
        chosen = list(itertools.product(*axes))
    else:  # by number, for a grid can have more sets than could be listed
        numbers = Random(seed).sample(range(count), random)
        places = np.unravel_index(np.array(numbers), [len(axis) for axis in axes])
        chosen = [tuple(axis[i] for axis, i in zip(axes, one, strict=True)) for one in zip(*places, strict=True)]
    return list(dict.fromkeys(parameters(base, **dict(zip(grid, values, strict=True))) for base, *values in chosen))


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ArgumentTypeError("grid", repr(value), "a number", what=f"one of {name}")
    return int(value) if name == "iterations" and float(value).is_integer() else value


def search(
    logits_dir: Path | str,
    dataset: Any,
    grid: Mapping[str, Sequence[float]],
    *,
    kind: str = "auto",
    layout: str = "auto",
    key: str | None = None,
    skip_missing: bool = False,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    random: int | None = None,
    seed: int = 0,
    presets: Sequence[str | CRFParameters] = ("deeplab",),
    device: torch.device | str = "cpu",
    count_background: bool = True,
) -> list[SearchResult]:
    """Scores of a set with many CRFs, from the network's scores that `evaluate(save_logits=…)` saved.

    Args:
        logits_dir: folder with `{name}.npy` or `{name}.npz`, scores of the set's images; see
            `deeplab_fast.scores.as_scores`.
        dataset: a `deeplab_fast.data.SegmentationDataset` with labels.
        grid: values to try, by the parameters' names: pos_w, pos_xy_std, bi_w, bi_xy_std, bi_rgb_std, iterations.
        kind: of the scores: "logits", "probabilities", "sigmoid" or "auto".
        layout: of the scores: "khw", "hwk" or "auto".
        key: name of the array in a `.npz` that holds several.
        skip_missing: leave out images without scores, with a warning that counts them.
        limit: images to use at most, spread evenly over the set.
        progress: called with the CRFs run and to run.
        random: how many sets of parameters to try, drawn from the grid; default all.
        seed: of the draw.
        presets: names of presets, or parameters, to start from: each with all values of the grid.
        device: where to compute.
        count_background: see `deeplab_fast.evaluation.ConfusionMatrix`.

    Returns:
        The scores without CRF first; then the others, best mean IoU first.

    Raises:
        FileNotFoundError: if the folder, or an image's scores, are missing; with `skip_missing`, if all are.
        TypeError, ValueError: for a grid or scores that do not fit, are not finite, or could mean several things.
    """
    tried = combinations(grid, random, seed, presets)
    paths = _with_scores(Path(logits_dir), dataset, limit, skip_missing)
    counts = _Counts(tried, dataset, count_background)
    done, total = itertools.count(1), len(paths) * len(tried)
    for index, path in paths.items():  # images outside: each is read once
        sample = _labelled(dataset[index])
        size = sample.image.shape[:2]
        scores = read_scores(path, size, kind=kind, layout=layout, key=key, classes=dataset.num_classes)
        for _ in counts.add(sample, scores, device):
            if progress is not None:
                progress(next(done), total)
    without, *found = counts.results(len(paths))
    return [without, *sorted(found, key=lambda result: -np.nan_to_num(result.mean_iou, nan=-1.0))]


class _Counts:
    """What is counted, and the seconds that it took: first without CRF, then with each set of parameters."""

    def __init__(self, tried: Sequence[CRFParameters], dataset: Any, count_background: bool = True):
        self.tried = tried
        self.matrices = [
            ConfusionMatrix(dataset.num_classes, dataset.ignore_index, count_background=count_background)
            for _ in [None, *tried]
        ]
        self.seconds = [0.0] * len(self.matrices)

    def add(self, sample: Any, scores: ScoreMap, device: torch.device | str) -> Iterator[None]:
        """Count an image; yields after every CRF, for who shows progress."""
        image = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))[None].to(device)
        labels, prob = _upsampled(scores, sample.image.shape[:2], device)
        self.matrices[0].update(sample.label, labels)
        for k, params in enumerate(self.tried, 1):
            start = time.perf_counter()
            labels = _refined(params, image, prob)
            self.seconds[k] += time.perf_counter() - start
            self.matrices[k].update(sample.label, labels)
            yield

    def results(self, images: int) -> list[SearchResult]:
        """In the order of the sets."""
        found = []
        for params, matrix, seconds in zip([None, *self.tried], self.matrices, self.seconds, strict=True):
            scores = matrix.scores()
            measures = {name: getattr(scores, name) for name in _MEASURES}
            found.append(SearchResult(params, **measures, seconds=seconds / images))
        return found


def score_files(folder: Path | str, dataset: Any) -> dict[int, Path]:
    """The files in a folder that have the scores of a set's images, by the images' numbers."""
    found = ((index, find_scores(Path(folder), name)) for index, name in enumerate(dataset.names))
    return {index: path for index, path in found if path is not None}


def _with_scores(folder: Path, dataset: Any, limit: int | None, skip_missing: bool) -> dict[int, Path]:
    """The images to use, by number, and their scores."""
    if not folder.is_dir():
        raise FileNotFoundError(f"logits_dir: folder not found: {folder}")
    if limit is not None and limit < 1:
        raise ArgumentError("limit", limit, "at least 1")
    there = score_files(folder, dataset)
    if not there:
        raise FileNotFoundError(f"logits_dir: {folder} has no file for any image of the set, should hold {{name}}.npy")
    missing = [name for index, name in enumerate(dataset.names) if index not in there]
    if missing:
        counted = f"{len(missing)} of {len(dataset.names)} images have no scores in {folder}"
        if not skip_missing:
            raise FileNotFoundError(f"{counted}, the first {missing[0]}; --skip-missing goes on without them")
        warnings.warn(f"{counted}, they were left out", stacklevel=3)
    numbers = list(there)
    if limit is not None and limit < len(numbers):
        numbers = [numbers[n * len(numbers) // limit] for n in range(limit)]
    return {number: there[number] for number in numbers}


def _labelled(sample: Any) -> Any:
    """A sample that has labels, or the error that it has none."""
    if not hasattr(sample, "image"):  # a data.Problem, from a set that was told to go on
        raise ValueError(getattr(sample, "message", repr(sample)))
    if sample.label is None:
        raise ArgumentError("dataset", None, "there for a search", what=f"label of {sample.name}")
    return sample


@torch.inference_mode()
def _upsampled(scores: ScoreMap, size: tuple[int, int], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Labels (H, W), on the CPU, and probabilities (1, K, H, W), by the scores of an image."""
    values = torch.from_numpy(scores.values)[None].to(device)
    if scores.kind == "logits":
        return ops.upsample_argmax(values, size)[0].cpu(), ops.upsample_softmax(values, size)
    prob = torch.nn.functional.interpolate(values, size, mode="bilinear", align_corners=False)
    return prob.argmax(dim=1)[0].cpu(), prob


@torch.inference_mode()
def _refined(params: CRFParameters, image: Tensor, prob: Tensor) -> Tensor:
    """Labels after the CRF, (H, W), on the CPU."""
    from deeplab_fast.nn import DenseCRF

    return DenseCRF(**asdict(params))(image, prob).argmax(dim=1)[0].cpu()


# --- Showing -------------------------------------------------------------------------------------------------------


def write_table(path: Path | str, results: Sequence[SearchResult]) -> None:
    """Write results as CSV, whole or not at all: parameters (empty without CRF), scores in 0..1, seconds an image.

    The first column names the preset that has these parameters, if there is one.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["preset", *NAMES, *_MEASURES, "seconds"])
    for one in results:
        params = [""] * len(NAMES) if one.params is None else [getattr(one.params, name) for name in NAMES]
        writer.writerow([preset_of(one.params), *params, *(getattr(one, name) for name in _MEASURES), one.seconds])
    files.atomic_write(path, lambda file: file.write(text.getvalue().encode()))


def table(results: Sequence[SearchResult], rows: int = 20) -> Table:
    """The first `rows` results as a rich table; scores in per cent. Presets are named if one is among them."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False)
    headings = [
        {"iterations": "iters"}.get(name, name.replace("_", " ")) for name in NUMBERS
    ]  # so that they can be broken
    named = any(preset_of(one.params) for one in results[:rows])
    if named:
        made.add_column("preset")
    for heading in (*headings, "mean IoU", "gain", "pixel acc.", "ms an image"):
        made.add_column(heading, justify="right")
    for one in results[:rows]:
        params = ["–"] * len(NUMBERS) if one.params is None else [_shown(getattr(one.params, name)) for name in NUMBERS]
        gain = "no CRF" if one.params is None else f"{100 * (one.mean_iou - results[0].mean_iou):+.2f}"
        measures = [f"{100 * one.mean_iou:.2f}", gain, f"{100 * one.pixel_accuracy:.2f}", f"{1000 * one.seconds:.0f}"]
        made.add_row(*[preset_of(one.params)] * named, *params, *measures)
    return made


def _shown(value: float | tuple[float, ...]) -> str:
    return " ".join(f"{number:g}" for number in value) if isinstance(value, tuple) else f"{value:g}"


def preset_of(params: CRFParameters | None) -> str:
    """The first preset that has these parameters; "" if there is none."""
    return next((name for name, preset in PRESETS.items() if preset == params), "")


def differences(params: CRFParameters) -> tuple[str, dict[str, Any]]:
    """These parameters in the fewest words: the nearest preset, and what differs from it."""

    def changes(name: str) -> dict[str, Any]:
        given, preset = vars(params), vars(PRESETS[name])
        return {key: given[key] for key in NAMES if given[key] != preset[key]}

    # The command `crf` has no option for the normalization, so that a preset has to bring it.
    nearest = min(PRESETS, key=lambda name: ("normalization" in changes(name), len(changes(name))))
    return nearest, changes(nearest)
