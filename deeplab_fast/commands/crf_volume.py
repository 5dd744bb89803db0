"""One volume through the dense CRF: what the command does, writes and says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplab_fast.commands import crf_photo
from deeplab_fast.commands.common import WrongOption, WrongUse, note, option_errors
from deeplab_fast.commands.options import parsed_numbers

# numpy is imported where it is used: --help and --version answer at once.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deeplab_fast.crf import CRFParameters, Volume
    from deeplab_fast.crf.inputs import CRFInput, Reading


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for; `modalities` are further files of the same volume."""

    image: Path
    scores: Path
    out: Path
    params: CRFParameters
    how: Reading
    modalities: tuple[Path, ...] = ()
    spacing: tuple[float, ...] | None = None
    save_probabilities: bool = False
    threads: int | None = None

    @property
    def probabilities(self) -> Path | None:
        """Where the probabilities are written."""
        if not self.save_probabilities:
            return None
        name = self.out.name.lower()
        stem = self.out.name[: -len(".nii.gz")] if name.endswith(".nii.gz") else self.out.stem
        return self.out.with_name(f"{stem}.npz")

    @property
    def outputs(self) -> list[Path]:
        return [path for path in (self.out, self.probabilities) if path is not None]


def is_volume(image: Path) -> bool:
    """Whether a name is that of a volume, not of a photo."""
    from deeplab_fast.crf.volumes import VOLUME_ENDINGS

    return image.name.lower().endswith(VOLUME_ENDINGS)


def parsed_spacing(text: str | None) -> tuple[float, ...] | None:
    """What --spacing says."""
    if text is None:
        return None
    return parsed_numbers("--spacing", text, "three numbers, as in 3,1,1: slices, rows, columns")


def refine(request: Request) -> None:
    """Refine a volume's scores or labels, write the labels, and say what changed."""
    _check_use(request)
    from deeplab_fast import crf
    from deeplab_fast.crf import volumes

    with option_errors("--spacing", paths="--modality"):
        volume = crf.read_volume([request.image, *request.modalities], request.spacing)
    given = _read_input(request, volume)
    for text in given.notes:
        note(text)
    Q, seconds = crf_photo.infer(volume.values, given.prob, request.params, request.threads, volume.spacing)
    labels = Q.argmax(axis=0)
    _write(request, volumes.labels_writer(request.out, labels, volume), Q, given)
    crf_photo.report(given, labels, seconds, request.outputs, unit="voxels")


def _check_use(request: Request) -> None:
    """Refuse, before anything is read, what does not apply or cannot be written."""
    from deeplab_fast import files
    from deeplab_fast.crf.inputs import Reading
    from deeplab_fast.crf.volumes import VOLUME_ENDINGS
    from deeplab_fast.errors import one_of

    how = request.how
    if replace(how, kind="auto", classes=None, gt_prob=None) != Reading():
        raise WrongUse(
            "--layout, --key, --keys, --background, --values and --unsure belong to photos, "
            f"{request.image} is a volume: its scores are K×D×H×W, its labels D×H×W, 255 meaning unsure"
        )
    if not request.out.name.lower().endswith(VOLUME_ENDINGS):
        raise WrongOption("--out", str(request.out), f"a name that ends in {one_of(VOLUME_ENDINGS)}")
    for path in request.outputs:
        files.check_destination(path, [request.image, request.scores, *request.modalities])


def _read_input(request: Request, volume: Volume) -> CRFInput:
    """Scores (K, D, H, W) or labels (D, H, W) of the volume's size."""
    import numpy as np

    from deeplab_fast import crf, scores
    from deeplab_fast.crf import inputs
    from deeplab_fast.errors import ArgumentError, at

    values = crf.read_volume(request.scores).values
    size = volume.values.shape[1:]
    how = request.how
    try:
        if values.shape[1:] != size:
            raise ArgumentError("scores", values.shape[1:], f"{size}, as the volume", what="size")
        is_labels = how.kind == "labels" or (
            how.kind == "auto" and len(values) == 1 and bool((values == np.round(values)).all())
        )
        flat = values.reshape(len(values), -1, size[-1])  # what is read of photos, is read of these slices, too
        if is_labels:
            found = inputs.from_labels(
                inputs.label_map(flat[:1]), flat.shape[1:], how.classes, how.gt_prob or inputs.DEFAULT_GT_PROB, ()
            )
        else:
            if how.gt_prob is not None:
                raise WrongUse("--gt-prob belongs to labels, the input is scores")
            scores_ = scores.as_scores(flat, flat.shape[1:], kind=how.kind, layout="khw", classes=how.classes)
            found = inputs.from_scores(scores_, flat.shape[1:])
    except (TypeError, ValueError) as error:
        raise at(request.scores, error) from error
    return replace(found, prob=found.prob.reshape(-1, *size), before=found.before.reshape(size))


def _write(request: Request, labels_writer: Any, Q: NDArray[np.float32], given: CRFInput) -> None:
    """Write the labels, and the probabilities if they are wanted: both or neither."""
    from deeplab_fast import files

    writers = {request.out: labels_writer}
    if request.probabilities is not None:
        writers[request.probabilities] = given.probabilities_writer(Q)
    files.atomic_write_all(writers)
