"""The scores of a network on a labelled set, before and after the CRF, in one pass over its images."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from deeplab_fast import files, pictures, scores
from deeplab_fast.errors import ArgumentError
from deeplab_fast.evaluation import batching
from deeplab_fast.evaluation.metrics import ConfusionMatrix
from deeplab_fast.evaluation.predictor import NotFiniteError, Prediction, Predictor

__all__ = ["EvaluationResult", "evaluate"]

Progress = Callable[[int, int], None]
PNG, NPY, NPZ = ".png", ".npy", ".npz"  # endings of what is saved


@dataclass(frozen=True)
class EvaluationResult:
    """What was counted.

    Attributes:
        matrix: of the labels before the CRF.
        matrix_crf: of those after it; None without a CRF.
        images: that were predicted.
        seconds: that it took; of several processes the longest.
        problems: one line for each image that was left out, or of which not everything was saved.
    """

    matrix: ConfusionMatrix
    matrix_crf: ConfusionMatrix | None
    images: int
    seconds: float
    problems: list[str] = field(default_factory=list)


def evaluate(
    predictor: Predictor,
    dataset: Any,
    *,
    batch_size: int = 1,
    save_png: Path | None = None,
    save_scores: Path | None = None,
    save_logits: Path | None = None,
    logits_dtype: type[np.floating] = np.float16,
    with_crf: bool | None = None,
    progress: Progress | None = None,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    on_problem: Literal["raise", "skip"] = "raise",
    count_background: bool = True,
) -> EvaluationResult:
    """Predict every image of a set once and compare with its labels.

    Images are read one by one; those of equal shape go through the network together.

    Args:
        predictor: the network, and the CRF behind it.
        dataset: a `deeplab_fast.data.SegmentationDataset`. Images without labels are predicted and saved only.
        batch_size: images of equal shape to predict at once.
        save_png: folder for `{name}.png`, the labels (after the CRF, where there is one) in the set's palette; none
            that the set is read from.
        save_scores: folder for `{name}.npz`, the network's scores (K, h, w) at its own size, float16; see
            `deeplab_fast.scores.save_scores`. `crf_search.search` and `deeplab_fast.crf.refine_dataset` read them.
        save_logits: folder for `{name}.npy`, the same, not compressed.
        logits_dtype: of these `.npy`, np.float16 (then less each pixel's largest score) or np.float32.
        with_crf: scores after the CRF, too; default: if the predictor has one.
        progress: called with the images done and all images of this process.
        workers: processes that read ahead.
        rank: number of this process among `world`; it takes images rank, rank + world, … In processes of
            torch.distributed the result is that of all of them together, in every one.
        world: how many processes share the set.
        on_problem: "skip" goes on without an image that cannot be read or does not fit in memory, or for which the
            network returns NaN or infinity, and lists it.
        count_background: see `ConfusionMatrix`.

    Raises:
        DestinationError, OSError: before any work, for files that cannot or must not be written; see
            `deeplab_fast.files.check_destination`.
        TypeError, ValueError: for arguments that do not fit each other, and, with "raise", for unreadable images and
            labels outside the classes.
        MemoryError: as the predictor does, with "raise".
        RuntimeError: if another process failed.
    """
    batching.check_batch_size(batch_size)
    folders = {ending: Path(one) for ending, one in ((PNG, save_png), (NPZ, save_scores), (NPY, save_logits)) if one}
    _check(predictor, dataset, folders, logits_dtype)
    if on_problem not in ("raise", "skip"):
        raise ArgumentError("on_problem", on_problem, "'raise' or 'skip'")
    _check_share(rank, world)
    with_crf = predictor.crf is not None if with_crf is None else with_crf
    if with_crf and predictor.crf is None:
        raise ArgumentError("with_crf", True, "False for a predictor without a CRF")
    matrices = [
        ConfusionMatrix(predictor.num_classes, dataset.ignore_index, count_background=count_background)
        for _ in range(1 + with_crf)
    ]
    run = _Run(predictor, dataset, matrices, folders, logits_dtype, on_problem == "skip", progress)
    start = time.perf_counter()
    failure: Exception | None = None
    try:
        run.over(range(rank, len(dataset), world), batch_size, workers)
    except Exception as error:  # the other processes must hear of it first, or they would wait for ever
        failure = error
    return run.result(time.perf_counter() - start, failure, world)


def _check(predictor: Predictor, dataset: Any, folders: dict[str, Path], dtype: Any) -> None:
    """Raise for a set that does not go with the network or cannot be saved."""
    if dataset.num_classes != predictor.num_classes:
        wanted = f"{predictor.num_classes}, as the network's"
        raise ArgumentError("dataset", dataset.num_classes, wanted, what="number of classes")
    if len(dataset) == 0:
        raise ArgumentError("dataset", 0, "at least 1", what="number of images")
    if np.dtype(dtype) not in (np.float16, np.float32):
        raise ArgumentError("logits_dtype", str(np.dtype(dtype)), "float16 or float32")
    if PNG in folders and predictor.num_classes > 256:
        wanted = "at most 256, what PNGs hold, to save them"
        raise ArgumentError("predictor", predictor.num_classes, wanted, what="number of classes")
    if folders:
        twice = [name for name, count in Counter(dataset.names).items() if count > 1]
        if twice:
            wanted = "there once: the files of both would be one"
            raise ArgumentError("dataset", repr(twice[0]), wanted, what="name")
        for name in dataset.names:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                wanted = "that of a file inside the folder to save in"
                raise ArgumentError("dataset", repr(name), wanted, what="name")
    inputs = files.Inputs(getattr(dataset, "inputs", list)())
    for ending, folder in folders.items():
        for name in dataset.names:
            files.check_destination(folder / f"{name}{ending}", inputs, new_folder=True)


def _check_share(rank: int, world: int) -> None:
    if not 0 <= rank < world:
        raise ArgumentError("rank", rank, f"in 0..{world - 1}, world being {world}")
    if world > 1 and _distributed() and torch.distributed.get_world_size() != world:
        raise ArgumentError("world", world, f"{torch.distributed.get_world_size()}, as in torch.distributed")


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


class _Run:
    """One process's pass over its images."""

    def __init__(
        self,
        predictor: Predictor,
        dataset: Any,
        matrices: list[ConfusionMatrix],
        folders: dict[str, Path],
        logits_dtype: type[np.floating],
        skip: bool,
        progress: Progress | None,
    ):
        self.predictor, self.dataset, self.with_crf = predictor, dataset, len(matrices) > 1
        self.folders, self.logits_dtype = folders, logits_dtype
        self.skip, self.progress = skip, progress
        self.matrix, self.matrix_crf = matrices[0], matrices[1] if len(matrices) > 1 else None
        self.images = self.done = self.total = 0
        self.problems: list[str] = []

    def over(self, indices: range, batch_size: int, workers: int) -> None:
        """Predict, count and save the images of these numbers."""
        self.total = len(indices)
        for folder in self.folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        samples = self._samples(indices, workers)
        for batch in batching.same_key(samples, batch_size, lambda sample: sample.image.shape):
            for sample, prediction in zip(batch, self._predicted(batch), strict=True):
                if prediction is not None:
                    self._count(sample, prediction)
                    self._save(sample.name, prediction)
                    self.images += 1
                self._advance()

    def _advance(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)

    def _problem(self, name: str, error: Exception) -> None:
        if not self.skip:
            raise NotFiniteError(f"{name}: {error}") if isinstance(error, NotFiniteError) else error
        self.problems.append(f"{name}: {' '.join(str(error).split()) or type(error).__name__}")

    def _samples(self, indices: range, workers: int) -> Iterator[Any]:
        """The samples that can be read and compared."""
        for index, item in batching.read(self.dataset, indices, workers):
            name = self.dataset.names[index]
            if not isinstance(item, Exception) and not hasattr(item, "image"):
                # A data.Problem, from a set that was told to go on without what it cannot read.
                self.problems.append(f"{name}: {item}")
                self._advance()
                continue
            problem = item if isinstance(item, Exception) else self._misfit(item)
            if problem is None:
                yield item
            else:
                self._problem(name, problem)
                self._advance()

    def _misfit(self, sample: Any) -> Exception | None:
        """What is wrong with a sample's labels, if anything."""
        if sample.label is None:
            return None
        size = sample.image.shape[:2]
        if sample.label.shape != size:
            return ValueError(f"{sample.name}: labels have the shape {sample.label.shape}, should have {size}")
        classes, ignored = self.predictor.num_classes, self.dataset.ignore_index
        wrong = (sample.label != ignored) & ((sample.label < 0) | (sample.label >= classes))
        if wrong.any():
            values = ", ".join(map(str, np.unique(sample.label[wrong])[:5]))
            return ValueError(f"{sample.name}: has the labels {values}, should be in 0..{classes - 1}, or {ignored}")
        return None

    def _predicted(self, batch: list[Any]) -> list[Prediction | None]:
        """A prediction for each; None for one that cannot be predicted, if that is to be gone on from."""
        images, logits = [sample.image for sample in batch], bool({NPZ, NPY} & self.folders.keys())
        try:
            return list(self.predictor.predict(images, crf=self.with_crf, before_crf=self.with_crf, logits=logits))
        except (MemoryError, NotFiniteError) as error:
            if len(batch) == 1:
                self._problem(batch[0].name, error)
                return [None]
        return [prediction for sample in batch for prediction in self._predicted([sample])]

    def _count(self, sample: Any, prediction: Prediction) -> None:
        if sample.label is None:
            return
        before = prediction.labels if prediction.before_crf is None else prediction.before_crf
        self.matrix.update(sample.label, before)
        if self.matrix_crf is not None:
            self.matrix_crf.update(sample.label, prediction.labels)

    def _save(self, name: str, prediction: Prediction) -> None:
        paths = {ending: _inside(folder, name, ending) for ending, folder in self.folders.items()}
        if PNG in paths:
            pictures.save_labels(paths[PNG], prediction.labels, self.dataset.palette)
        if prediction.logits is not None:
            if NPZ in paths:
                scores.save_scores(paths[NPZ], prediction.logits)
            if NPY in paths:
                save_logits(paths[NPY], prediction.logits, self.logits_dtype)
        elif NPZ in paths or NPY in paths:
            self.problems.append(f"{name}: its scores were not saved, for it was cut into tiles")

    def result(self, seconds: float, failure: Exception | None, world: int) -> EvaluationResult:
        """What all processes counted; raises if this or another one failed."""
        images, problems = self.images, self.problems
        if world > 1 and _distributed():
            gathered: list[Any] = [None] * world
            mine = (images, seconds, problems, None if failure is None else str(failure))
            torch.distributed.all_gather_object(gathered, mine)
            images, seconds = sum(one[0] for one in gathered), max(one[1] for one in gathered)
            problems = [problem for one in gathered for problem in one[2]]
            failures = [one[3] for one in gathered if one[3] is not None]
            if failures and failure is None:
                raise RuntimeError(f"evaluation failed in another process: {failures[0]}")
        if failure is not None:
            raise failure
        if images == 0 and problems:
            raise ValueError(f"dataset: no image could be evaluated; the first problem: {problems[0]}")
        if world > 1:
            self.matrix.all_reduce()
            if self.matrix_crf is not None:
                self.matrix_crf.all_reduce()
        return EvaluationResult(self.matrix, self.matrix_crf, images, seconds, problems)


def _inside(folder: Path, name: str, ending: str) -> Path:
    """The file for a name, which may have folders of its own."""
    path = Path(folder) / f"{name}{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def save_logits(path: Path, logits: NDArray[np.float32], dtype: type[np.floating]) -> None:
    """Write logits (K, h, w) as `.npy`, whole or not at all; in float16 as `deeplab_fast.scores.save_scores` does."""
    saved = scores.half_logits(logits) if np.dtype(dtype) == np.float16 else logits.astype(dtype)
    buffer = io.BytesIO()
    np.save(buffer, saved, allow_pickle=False)
    files.atomic_write(path, lambda file: file.write(buffer.getbuffer()))
