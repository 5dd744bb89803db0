"""Photos in, label pictures and overlays out."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deeplab_fast import files, pictures, scores
from deeplab_fast.errors import ArgumentError
from deeplab_fast.evaluation import batching
from deeplab_fast.evaluation.predictor import NotFiniteError, Prediction, Predictor

__all__ = ["PredictionResult", "collect_images", "predict"]


PathLike = str | os.PathLike[str]
SCORES = ".npz"  # ending of saved scores


@dataclass(frozen=True)
class PredictionResult:
    """What was written.

    Attributes:
        written: files, in the order in which they were.
        images: that were predicted.
        seconds: that it took.
        problems: path and message of each image that was left out.
    """

    written: list[Path]
    images: int
    seconds: float
    problems: list[tuple[Path, str]] = field(default_factory=list)


def collect_images(paths: Sequence[PathLike] | PathLike) -> list[Path]:
    """The image files that paths stand for: files as they are, folders by what they hold, each file once.

    A folder's files that end as `pictures.IMAGE_ENDINGS` says are taken in the order of their names; not those in
    folders inside it, nor hidden ones.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for a folder without image files, or no path at all.
    """
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"paths: image or folder not found: {path}")
        files = _in_folder(path) if path.is_dir() else [path]
        for file in files:
            found.setdefault(os.path.realpath(file), file)
    if not found:
        raise ArgumentError("paths", [], "at least one image or folder")
    return list(found.values())


def _in_folder(folder: Path) -> list[Path]:
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in pictures.IMAGE_ENDINGS and not path.name.startswith(".") and path.is_file()
    )
    if not files:
        wanted = f"one that holds {', '.join(pictures.IMAGE_ENDINGS)} files"
        raise ArgumentError("paths", f"{folder}, without images", wanted, what="folder")
    return files


def predict(
    predictor: Predictor,
    paths: Sequence[PathLike] | PathLike,
    out: PathLike,
    *,
    overlay: bool | Literal["png", "jpg"] = False,
    save_scores: PathLike | None = None,
    palette: NDArray[np.uint8] | None = None,
    batch_size: int = 1,
    on_error: Literal["raise", "skip"] = "raise",
    progress: Callable[[int, int], None] | None = None,
) -> PredictionResult:
    """Predict photos and write, for each, `{stem}.png` with its labels and, if wanted, `{stem}-overlay.png`.

    Args:
        predictor: the network, and the CRF behind it.
        paths: image files and folders; see `collect_images`.
        out: folder to write to; made if it is not there.
        overlay: also write photo, labels in colour and both on top of each other, side by side: True or "png" as PNG,
            "jpg" as JPEG.
        save_scores: folder for `{stem}.npz`, the network's scores (K, h, w) at its own size, float16; see
            `deeplab_fast.scores.save_scores`. `deeplab_fast.crf.refine_dataset` reads them.
        palette: uint8 (256, 3), default VOC's.
        batch_size: images of equal shape to predict at once.
        on_error: "skip" goes on without images that cannot be read or do not fit in memory, or for which the network
            returns NaN or infinity, and lists them.
        progress: called with the images done and all images.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for images that cannot be read; before any work, for two images with one stem.
        DestinationError, OSError: before any work, for an output that cannot or must not be written; see
            `deeplab_fast.files.check_destination`.
        MemoryError: as the predictor does.
    """
    batching.check_batch_size(batch_size)
    if on_error not in ("raise", "skip"):
        raise ArgumentError("on_error", on_error, "'raise' or 'skip'")
    if predictor.num_classes > 256:
        wanted = "at most 256, what label pictures hold"
        raise ArgumentError("predictor", predictor.num_classes, wanted, what="number of classes")
    images = collect_images(paths)
    given = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    folder = None if save_scores is None else Path(save_scores)
    targets = _targets(images, Path(out), overlay, folder, files.Inputs([*given, *images]))
    for made in filter(None, (Path(out), folder)):
        made.mkdir(parents=True, exist_ok=True)
    palette = pictures.voc_palette() if palette is None else palette
    job = _Job(predictor, targets, palette, folder is not None, on_error == "skip", progress)
    start = time.perf_counter()
    for batch in batching.same_key(job.photos(images), batch_size, lambda pair: pair[1].shape):
        job.handle(batch)
    return PredictionResult(job.written, job.predicted, time.perf_counter() - start, job.problems)


def _targets(
    images: Sequence[Path], out: Path, overlay: bool | str, scores_folder: Path | None, inputs: files.Inputs
) -> dict[Path, list[Path]]:
    """The files to write for each image; raises where two would be one, or one may not be written."""
    if overlay not in (False, True, "png", "jpg"):
        raise ArgumentError("overlay", overlay, "True, False, 'png' or 'jpg'")
    ending = overlay if isinstance(overlay, str) else "png"
    for name, folder in (("out", out), ("save_scores", scores_folder)):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise ArgumentError(name, str(folder), "a folder, not a file")
    owners: dict[str, Path] = {}
    targets: dict[Path, list[Path]] = {}
    for image in images:
        targets[image] = [out / f"{image.stem}.png"] + [out / f"{image.stem}-overlay.{ending}"] * bool(overlay)
        targets[image] += [scores_folder / f"{image.stem}{SCORES}"] if scores_folder is not None else []
        for target in targets[image]:
            place = os.path.realpath(target)
            if place in owners:
                raise ValueError(
                    f"paths: {owners[place]} and {image} would both be written to {target}, should have different names"
                )
            owners[place] = image
            files.check_destination(target, inputs, new_folder=True)
    return targets


class _Job:
    """One call of `predict`."""

    def __init__(
        self,
        predictor: Predictor,
        targets: dict[Path, list[Path]],
        palette: NDArray[np.uint8],
        with_scores: bool,
        skip: bool,
        progress: Callable[[int, int], None] | None,
    ):
        self.predictor, self.targets, self.palette = predictor, targets, palette
        self.with_scores = with_scores
        self.skip, self.progress = skip, progress
        self.written: list[Path] = []
        self.problems: list[tuple[Path, str]] = []
        self.predicted = self.done = 0

    def photos(self, images: Sequence[Path]) -> Iterator[tuple[Path, NDArray[np.uint8]]]:
        for path in images:
            try:
                photo = pictures.read_image(path)
            except (*batching.READ_ERRORS, MemoryError) as error:
                self._problem(path, error)
                continue
            yield path, photo

    def handle(self, batch: list[tuple[Path, NDArray[np.uint8]]]) -> None:
        """Predict photos of equal shape and write what belongs to them."""
        try:
            photos = [photo for _, photo in batch]
            made: list[Prediction] | None = self.predictor.predict(photos, logits=self.with_scores)
        except (MemoryError, NotFiniteError) as error:
            if len(batch) == 1:
                self._problem(batch[0][0], error)
                return
            made = None
        if made is None:  # one of them is to blame, perhaps
            for pair in batch:
                self.handle([pair])
            return
        for (path, photo), prediction in zip(batch, made, strict=True):
            self._write(self.targets[path], photo, prediction)
            self.predicted += 1
            self._advance()

    def _write(self, targets: list[Path], photo: NDArray[np.uint8], prediction: Prediction) -> None:
        labels = prediction.labels
        writers = {targets[0]: pictures.labels_writer(labels, targets[0], self.palette)}
        for target in targets[1:]:
            if target.suffix != SCORES:
                tinted = pictures.overlay(photo, labels, palette=self.palette)
                shown = [photo, pictures.colour_labels(labels, self.palette), tinted]
                panel = pictures.panel(shown, ["photo", "prediction", "overlay"])
                writers[target] = pictures.picture_writer(panel, target)
            elif prediction.logits is not None:
                writers[target] = scores.scores_writer(prediction.logits)
            else:
                warnings.warn(f"{target} is not written, for the photo was cut into tiles", stacklevel=2)
        files.atomic_write_all(writers)
        self.written += writers

    def _problem(self, path: Path, error: Exception) -> None:
        if not self.skip:
            raise NotFiniteError(f"{path}: {error}") if isinstance(error, NotFiniteError) else error
        self.problems.append((path, " ".join(str(error).split()) or type(error).__name__))
        self._advance()

    def _advance(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, len(self.targets))
