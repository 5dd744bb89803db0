"""A run over a data set: what is left to do, who does it, and what came of it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deeplab_fast import _limits, files
from deeplab_fast.crf.dataset import page, pool, record, work
from deeplab_fast.crf.dataset.pairs import Pair, PathLike, find_pairs
from deeplab_fast.crf.dataset.shards import Shard
from deeplab_fast.crf.dataset.work import LEVELS, Outcome, Work
from deeplab_fast.crf.inputs import UNSURE, Reading
from deeplab_fast.crf.parameters import CRFParameters, parameters
from deeplab_fast.errors import ArgumentError, ArgumentTypeError
from deeplab_fast.measures import Scores, scores_of
from deeplab_fast.pictures import LabelValues

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEMORY_SHARE = 0.8  # of what this process may have, for all workers together
KEPT_SHARE = 0.1  # of a worker's memory, that it may keep between images
SHOWN = 24  # images on the page of those that changed most
FAILED_EVERY = 2.0  # seconds between writings of the list of failures

Progress = Callable[[int, int], None]
Note = Callable[[str], None]


@dataclass(frozen=True)
class DatasetResult:
    """What became of a data set, or of this process's part of it.

    Attributes:
        images: that were refined and written.
        skipped: whose results were there.
        missing: left out, for one half of the pair was missing.
        failed: reasons by name.
        seconds: that it took.
        changed: share of the pixels, of those that had a label, that have another one afterwards; by name.
        counts_before: int64 (K, K + 1), pixels by [truth, label], the last column being those without a label; None
            without true labels.
        counts_after: likewise after the CRF.
        peak_memory: bytes, of the worker that had most.
        jobs: worker processes, 0 for none.
    """

    images: int = 0
    skipped: int = 0
    missing: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    changed: dict[str, float] = field(default_factory=dict)
    counts_before: NDArray[np.int64] | None = None
    counts_after: NDArray[np.int64] | None = None
    peak_memory: int = 0
    jobs: int = 0

    @property
    def before(self) -> Scores | None:
        """Measures of the labels before the CRF; None without true labels."""
        return None if self.counts_before is None else scores_of(self.counts_before)

    @property
    def after(self) -> Scores | None:
        """Measures of those after it."""
        return None if self.counts_after is None else scores_of(self.counts_after)


def refine_dataset(
    images: PathLike | Iterable[tuple[PathLike, PathLike]],
    scores: PathLike | None,
    out: PathLike,
    *,
    params: str | CRFParameters = "deeplab",
    root: PathLike | None = None,
    labels: PathLike | None = None,
    kind: str = "auto",
    layout: str = "auto",
    key: str | None = None,
    classes: int | None = None,
    keys: str = "classes",
    background: float | None = None,
    gt_prob: float | None = None,
    unsure: Iterable[int] = (),
    values: str | LabelValues | None = None,
    save_probabilities: bool = False,
    overlay: bool = False,
    palette: NDArray[np.uint8] | None = None,
    skip_existing: bool = True,
    skip_missing: bool = False,
    compare: PathLike | None = None,
    shard: Shard | tuple[int, int] | str | None = None,
    jobs: int | None = None,
    threads: int = 1,
    memory: float | None = None,
    progress: Progress | None = None,
    note: Note | None = None,
) -> DatasetResult:
    """Refine the scores, or rough labels, of a whole data set with the dense CRF.

    For each image, `{name}.png`, a palette picture, is written to `out`; the name is the image's path below the folder,
    without ending. A file that is there is whole: a run that was interrupted, however, goes on where it is called
    again. An image that fails is listed in `failed.txt`, with the reason, and the run goes on.

    Worker processes are programs of their own: this may be called in daemonic processes and threads, needs no guard in
    a script, and a worker that dies is replaced; the image that it was at is tried once more.

    Args:
        images: a folder, with the folders in it; a pattern such as "images/*.jpg"; a list, a text file with an image
            and its scores a line; or pairs of paths. See `find_pairs`.
        scores: a folder or a pattern; None where `images` names them. `.npy`, `.npz`, `.pt`, `.pth`, `.safetensors`:
            logits or probabilities (K, h, w), upsampled bilinearly (align_corners=False) to the image's size, logits
            before their softmax, probabilities as they are; or pictures of labels. See
            `deeplab_fast.scores.read_stored` for files with the scores of some classes only.
        out: folder to write to; made if it is not there.
        params: a preset by name, or `CRFParameters`.
        root: what paths in a list are relative to.
        labels: a folder of true labels, pictures by the images' names, 255 where there is none, or as `values` says:
            scores before and after are counted, of images that were there already, too.
        kind, layout, key, classes, gt_prob, unsure, values: how scores and labels are read; see `inputs.Reading`.
        keys: what numbers beside the maps of some classes are: "classes", theirs, or "foreground", less 1, as IRN's.
        background: the map of class 0, where there are only those of other classes.
        save_probabilities: also write Q, `{name}.npz`: `probabilities`, float16 (K, H, W), and `keys`, if there were.
        overlay: also write image, input and result side by side, `{name}-overlay.jpg`.
        palette: uint8 (256, 3), default VOC's.
        skip_existing: leave images out whose results are all there. They must have been made with the same parameters.
        skip_missing: leave out images without scores, and scores without an image, instead of failing for them.
        compare: a web page to write, of the 24 images that changed most: before, after and truth side by side.
        shard: which part of the set to take: "3/16", or (3, 16), the third of sixteen.
        jobs: worker processes; default as many as there are processors; 0 for none, in this process.
        threads: of each worker process.
        memory: bytes that all workers together may take for images; default four fifths of what there is. An image that
            needs more is refined alone.
        progress: called with the images done and to be done, first with 0.
        note: called with remarks for people.

    Raises:
        FileNotFoundError, ValueError, TypeError: before anything is written, for arguments that do not fit.
        DestinationError, OSError: for an output that cannot or must not be written.
        RuntimeError: if no worker process can be started.
    """
    values = LabelValues.parse(values) if isinstance(values, str) else values
    how = Reading(kind, layout, key, classes, gt_prob, tuple(unsure), values, keys, background)
    examine = compare is not None or labels is not None
    todo = Work(Path(out), parameters(params), how, save_probabilities, overlay, examine, palette, threads)
    part = _shard(shard)
    jobs = _limits.processors() if jobs is None else jobs
    _check_numbers(jobs, threads, memory)
    started = time.time()
    pairs = find_pairs(images, scores, root=root, labels=labels, out=out)
    run = _Run(todo, [pair for pair in pairs if part.has(pair.name)], part, jobs, memory, progress, note)
    run.check([path for path in (images, scores, labels) if isinstance(path, (str, os.PathLike))], compare)
    if skip_existing:
        record.check_settings(todo)
    else:
        record.remove_others(todo, [pair.name for pair in pairs], started)
    result = run.over(skip_existing, skip_missing)
    if compare is not None and result.changed:
        run.show(Path(compare), result)
    return result


def _shard(shard: Shard | tuple[int, int] | str | None) -> Shard:
    if shard is None:
        return Shard()
    if isinstance(shard, Shard):
        return shard
    return Shard.parse(shard) if isinstance(shard, str) else Shard(*shard)


def _check_numbers(jobs: int, threads: int, memory: float | None) -> None:
    for name, number, least in (("jobs", jobs, 0), ("threads", threads, 1)):
        if isinstance(number, bool) or not isinstance(number, int):
            raise ArgumentTypeError(name, number, "a whole number")
        if number < least:
            raise ArgumentError(name, number, f"at least {least}")
    if memory is not None and not memory > 0:
        raise ArgumentError("memory", memory, "a positive number of bytes")


class _Run:
    """One call of `refine_dataset`."""

    def __init__(
        self,
        todo: Work,
        pairs: list[Pair],
        part: Shard,
        jobs: int,
        memory: float | None,
        progress: Progress | None,
        note: Note | None,
    ):
        self.work, self.pairs, self.part, self.jobs = todo, pairs, part, jobs
        self.memory = _limits.available_memory() * MEMORY_SHARE if memory is None else memory
        self.progress, self.note = progress, note or (lambda text: None)
        self.failed: dict[str, str] = {}
        self.changed: dict[str, float] = {}
        self.before, self.after = (np.zeros(LEVELS * LEVELS, np.int64) for _ in range(2))
        self.folders: set[Path] = set()  # that results are written to
        self.refined = self.peak = 0
        self._noted: set[str] = set()
        self._failed_written = 0.0

    def check(self, given: list[PathLike], compare: PathLike | None) -> None:
        """Raise, before anything is written, if the results cannot or must not be written."""
        out = self.work.out
        read = [path for pair in self.pairs for path in (pair.image, pair.scores, pair.truth) if path is not None]
        folders = files.Inputs([*given, *{path.parent for path in read}])
        files.check_folder(out, folders)
        owners: dict[Path, str] = {}
        for pair in self.pairs:
            for target in self.work.targets(pair.name):
                if target in owners:
                    wanted = "different ones: the results of both would be one file"
                    raise ArgumentError("images", f"{owners[target]} and {pair.name}", wanted, what="list of names")
                owners[target] = pair.name
        self.folders = {out, *(target.parent for target in owners)}
        for folder in self.folders:
            files.check_folder(folder, folders)
        links = [target for target in owners if target.is_symlink()]
        for target in links:  # what they lead to would be replaced
            files.check_destination(target, read)
        if compare is not None:
            files.check_destination(compare, folders, new_folder=True)

    def over(self, skip_existing: bool, skip_missing: bool) -> DatasetResult:
        """Refine what is left to do."""
        start = time.perf_counter()
        missing = [pair for pair in self.pairs if pair.problem is not None]
        whole = [pair for pair in self.pairs if pair.problem is None]
        there = [pair for pair in whole if skip_existing and self._is_there(pair)]
        names = {pair.name for pair in there}
        self.work.out.mkdir(parents=True, exist_ok=True)
        self._remove_abandoned()
        record.write_settings(self.work)
        for pair in missing if not skip_missing else ():
            self.failed[pair.name] = str(pair.problem)
        if missing:
            self.note(f"{len(missing)} of {len(self.pairs)} images or scores have no counterpart: {missing[0].problem}")
        if there:
            self.note(f"{len(there)} of {len(whole)} images are there already")
        tasks = [(pair, False) for pair in whole if pair.name not in names]
        tasks += [(pair, True) for pair in there if self.work.examine]
        self.jobs = min(self.jobs, len(tasks))
        progress = self.progress or (lambda done, total: None)
        progress(0, len(tasks))
        try:
            with contextlib.closing(self._outcomes(tasks)) as outcomes:
                for number, outcome in enumerate(outcomes, 1):
                    self._take(outcome, outcome.name in names)
                    progress(number, len(tasks))
        finally:  # also when it is interrupted
            self._remove_abandoned()
            record.write_failed(record.failed_path(self.work.out, self.part), self.failed)
        return self._result(time.perf_counter() - start, len(there), len(missing) * skip_missing)

    def _remove_abandoned(self) -> None:
        """Delete what killed processes left half-written."""
        for folder in self.folders:
            files.remove_abandoned(folder)

    def show(self, path: Path, result: DatasetResult) -> None:
        """Write the page of the images that changed most."""
        by_name = {pair.name: pair for pair in self.pairs}
        pairs = [by_name[name] for name in page.most_changed(result.changed, SHOWN)]
        path.parent.mkdir(parents=True, exist_ok=True)
        page.write_page(path, pairs, result.changed, self.work, result.before, result.after)

    def _is_there(self, pair: Pair) -> bool:
        return all(target.is_file() for target in self.work.targets(pair.name))

    def _outcomes(self, tasks: list[pool.Task]) -> Generator[Outcome, None, None]:
        if self.jobs == 0:
            yield from (_here(pair, is_there, self.work) for pair, is_there in tasks)
            return
        kept = int(min(_limits.most_kept(), KEPT_SHARE * self.memory / self.jobs))
        overhead = self.jobs * work.BASE_BYTES
        self.note(
            f"{self.jobs} worker process{'es' * (self.jobs > 1)}, threads of each: {self.work.threads}; "
            f"at most {self.memory / 1e9:.1f} GB of memory together"
        )
        workers = pool.Pool(self.work, self.jobs, max(self.memory - overhead - self.jobs * kept, 1.0), kept)
        try:
            yield from workers.run(tasks)
        except BaseException:
            workers.close(pool.GRACE)
            raise
        workers.close()

    def _take(self, outcome: Outcome, was_there: bool) -> None:
        self.peak = max(self.peak, outcome.peak)
        if outcome.fatal:
            raise work.WritingError(f"{outcome.name}: {outcome.error}")
        if outcome.error is not None:
            self.failed[outcome.name] = outcome.error
            if time.monotonic() - self._failed_written > FAILED_EVERY:
                record.write_failed(record.failed_path(self.work.out, self.part), self.failed)
                self._failed_written = time.monotonic()
            return
        self.refined += not was_there
        for text in outcome.notes:
            if text not in self._noted and len(self._noted) < 5:
                self._noted.add(text)
                self.note(f"{outcome.name}: {text}")
        changed, of = outcome.changed
        self.changed[outcome.name] = changed / of if of else 0.0
        for total, counted in ((self.before, outcome.before), (self.after, outcome.after)):
            if counted is not None:
                total[counted[0]] += counted[1]

    def _result(self, seconds: float, skipped: int, missing: int) -> DatasetResult:
        before, after = (total.reshape(LEVELS, LEVELS) for total in (self.before, self.after))
        seen = np.flatnonzero(after.any(axis=0) | after.any(axis=1) | before.any(axis=0))
        classes = self.work.how.classes or 1 + int(seen[seen < UNSURE % LEVELS].max(initial=0))
        return DatasetResult(
            images=self.refined,
            skipped=skipped,
            missing=missing,
            failed=self.failed,
            seconds=seconds,
            changed=self.changed,
            counts_before=_counts_of(before, classes) if seen.size else None,
            counts_after=_counts_of(after, classes) if seen.size else None,
            peak_memory=self.peak,
            jobs=self.jobs,
        )


def _counts_of(counts: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Pixels by [truth, label], (K, K + 1): labels that are no class are the last column."""
    return np.column_stack([counts[:classes, :classes], counts[:classes, classes:].sum(axis=1)])


def _here(pair: Pair, is_there: bool, todo: Work) -> Outcome:
    """An image's outcome, worked on in this process."""
    try:
        return work.done(work.finish(work.load(pair, todo.how), todo, is_there=is_there))
    except Exception as error:
        return work.failure(pair.name, error)
