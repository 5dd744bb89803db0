"""From photos to labels: the network, the resizing, the CRF, and what to do when memory is short."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deeplab_fast import ops
from deeplab_fast._arguments import shape_of
from deeplab_fast.errors import ArgumentError, ArgumentTypeError
from deeplab_fast.evaluation import tiling

__all__ = ["FALLBACK_TILE", "NotFiniteError", "Prediction", "Predictor"]

# Side of the tiles that an image is cut into when it does not fit in memory, pixels; DeepLab's usual input on COCO.
FALLBACK_TILE = 513

_MEMORY_MESSAGES = ("can't allocate memory", "out of memory", "not enough memory", "bad_alloc", "bad allocation")

Maps = dict[str, NDArray]


class NotFiniteError(ValueError):
    """The network returned NaN or infinity for a batch of images."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says of one image.

    Attributes:
        labels: uint8 (H, W), int64 for more than 256 classes; after the CRF, where there is one.
        before_crf: likewise before the CRF, if asked for.
        logits: float32 (K, h, w) at the network's own size, if asked for and the image was not cut into tiles.
    """

    labels: NDArray
    before_crf: NDArray | None = None
    logits: NDArray[np.float32] | None = None


class Predictor:
    """Labels and probabilities of photos, from a network and, if wanted, a dense CRF behind it.

    The network gets B, G, R minus the mean colour (`deeplab_fast.data.to_network`); its scores are brought to the
    photo's size bilinearly (align_corners=False). Where memory is not enough, a batch is halved; one image that is too
    large is cut into overlapping tiles of 513 pixels, with a warning, for near their borders the result changes.

    Args:
        model: images (N, 3, H, W) -> scores (N, K, h, w). It is moved to `device`, to channels_last, and put into
            evaluation mode whenever it is used.
        num_classes: K.
        crf: a `deeplab_fast.nn.DenseCRF`, or a module called like one, (image, prob) -> Q; or None.
        device: where to compute.
        autocast: torch.bfloat16 or torch.float16, to run the network in mixed precision.
        uint8_wrap: give the CRF not the photo but, as a popular reimplementation does by mistake, the network's input
            cast to uint8, where negative numbers wrap around. Reproduces scores published with it.
        tile: cut every image that is larger into overlapping tiles of this side, pixels, whether memory is short or
            not. A pixel gets the result of the tile whose centre is nearest; the CRF runs in each tile.
        flip: also predict the photo mirrored, left to right, and take the mean of both scores: twice the work, often
            a little better.

    Raises:
        TypeError: if `model` or `crf` is no module.
        ValueError: if `num_classes` is less than 1, `autocast` another dtype, or `tile` less than 32.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        *,
        crf: nn.Module | None = None,
        device: torch.device | str = "cpu",
        autocast: torch.dtype | None = None,
        uint8_wrap: bool = False,
        tile: int | None = None,
        flip: bool = False,
    ):
        for name, module in (("model", model), ("crf", crf)):
            if not isinstance(module, nn.Module) and not (name == "crf" and module is None):
                raise ArgumentTypeError(name, type(module), "a torch.nn.Module")
        if num_classes < 1:
            raise ArgumentError("num_classes", num_classes, "at least 1")
        if autocast not in (None, torch.bfloat16, torch.float16):
            raise ArgumentError("autocast", autocast, "None, torch.bfloat16 or torch.float16")
        if tile is not None and tile < tiling.SMALLEST:
            raise ArgumentError("tile", tile, f"at least {tiling.SMALLEST}")
        self.device = torch.device(device)
        # torch's types lack its argument memory_format.
        self.model = model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.crf = None if crf is None else crf.to(self.device)
        self.num_classes = num_classes
        self.autocast = autocast
        self.uint8_wrap = uint8_wrap
        self.tile = tile
        self.flip = flip
        self._most_pixels: float = float("inf")  # of a batch; lowered whenever one did not fit

    # --- What users call -------------------------------------------------------------------------------------------

    def labels(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray]:
        """Classes of photos of equal shape.

        Args:
            images: uint8 (H, W, 3) each, RGB.

        Returns:
            uint8 (H, W) each; int64 for more than 256 classes.

        Raises:
            TypeError, ValueError: for other images, or if the network does not return scores (N, K, h, w).
            NotFiniteError: if they are not finite.
            MemoryError: if memory is not enough even for tiles.
        """
        return [prediction.labels for prediction in self.predict(images)]

    def predict(
        self, images: Sequence[NDArray[np.uint8]], *, crf: bool = True, before_crf: bool = False, logits: bool = False
    ) -> list[Prediction]:
        """As `labels`, and more of the same pass: labels before the CRF, and the network's own scores.

        With `crf=False` the CRF, if there is one, is left out.
        """
        final = "refined" if crf and self.crf is not None else "plain"
        wanted = list(dict.fromkeys([final, *["plain"] * before_crf, *["logits"] * logits]))
        return [
            Prediction(maps[final], maps["plain"] if before_crf else None, maps.get("logits"))
            for maps in self._run(images, wanted)
        ]

    def probabilities(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Probabilities of the classes, after the CRF where there is one; otherwise as `labels`.

        Returns:
            float32 (N, K, H, W), on the CPU.
        """
        if len(images) == 0:
            raise ArgumentError("images", [], "at least one image")
        return torch.from_numpy(np.stack([maps["prob"] for maps in self._run(images, ["prob"])]))

    # --- One pass --------------------------------------------------------------------------------------------------

    def _pass(self, images: Sequence[NDArray[np.uint8]], wanted: Sequence[str]) -> list[Maps]:
        """The maps that are wanted, one set an image; nothing is done about memory here.

        Their names: "plain" and "refined", labels without and with the CRF; "prob", after the CRF if there is one;
        "logits".
        """
        from deeplab_fast.data import to_network

        size = images[0].shape[:2]
        x = torch.stack([torch.as_tensor(to_network(image)) for image in images])
        with torch.inference_mode():
            scores = self._scores(x.to(self.device, memory_format=torch.channels_last))
            maps: dict[str, Tensor] = {}
            if "logits" in wanted:
                maps["logits"] = scores
            if "plain" in wanted:
                maps["plain"] = self._small(ops.upsample_argmax(scores, size))
            if "prob" in wanted or "refined" in wanted:
                maps["prob"] = ops.upsample_softmax(scores, size)
                if self.crf is not None:
                    maps["prob"] = self.crf(self._crf_image(images, x), maps["prob"])
            if "refined" in wanted:
                maps["refined"] = self._small(maps["prob"].argmax(dim=1))
            arrays = {name: maps[name].contiguous().cpu().numpy() for name in wanted}
        # Copies, so that keeping one image's maps does not keep the batch's.
        return [{name: array[n].copy() for name, array in arrays.items()} for n in range(len(images))]

    def _scores(self, x: Tensor) -> Tensor:
        scores = self._scores_of(x)
        return (scores + self._scores_of(x.flip(-1)).flip(-1)) / 2 if self.flip else scores

    def _scores_of(self, x: Tensor) -> Tensor:
        """The network's, float32 (N, K, h, w)."""
        self.model.eval()
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            scores = self.model(x)
        if not isinstance(scores, Tensor):
            raise ArgumentTypeError("model", type(scores), "a tensor of scores", what="output")
        if scores.ndim != 4 or scores.shape[:2] != (len(x), self.num_classes):
            wanted = f"(N, K, h, w) with N {len(x)} and K {self.num_classes}"
            raise ArgumentError("model", shape_of(scores), wanted, what="output's shape")
        scores = scores.float()
        if not scores.isfinite().all():
            raise NotFiniteError("model: returned scores that are NaN or infinite, should be finite numbers")
        return scores

    def _small(self, labels: Tensor) -> Tensor:
        return labels.to(torch.uint8) if self.num_classes <= 256 else labels

    def _crf_image(self, images: Sequence[NDArray[np.uint8]], x: Tensor) -> Tensor:
        """uint8 (N, 3, H, W), on the device."""
        if self.uint8_wrap:
            return (x.to(torch.int64) & 255).to(device=self.device, dtype=torch.uint8)  # truncated, then modulo 256
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().to(self.device)

    # --- Memory ----------------------------------------------------------------------------------------------------

    def _run(self, images: Sequence[NDArray[np.uint8]], wanted: Sequence[str]) -> list[Maps]:
        """`_pass`, in as large parts as memory has room for."""
        if len(images) == 0:
            return []
        _check_images(images)
        height, width = images[0].shape[:2]
        if self.tile is not None and max(height, width) > self.tile:
            return [self._tiled(image, wanted, self.tile) for image in images]
        if len(images) == 1 or len(images) * height * width <= self._most_pixels:
            result, failure = self._attempt(lambda: self._pass(images, wanted))
            if result is not None:
                return result
            self._most_pixels = min(self._most_pixels, len(images) * height * width - 1)
            if len(images) == 1:
                return [self._tiled_for_memory(images[0], wanted, failure)]
        half = (len(images) + 1) // 2
        return self._run(images[:half], wanted) + self._run(images[half:], wanted)

    def _attempt(self, work: Callable[[], list[Maps]]) -> tuple[list[Maps] | None, str]:
        """The result of `work`; or None, and the reason, if memory was not enough."""
        try:
            return work(), ""
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = " ".join(str(error).split())[:200] or type(error).__name__
        # Out here, where the exception no longer holds the frames, and the tensors in them.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None, failure

    def _tiled_for_memory(self, image: NDArray[np.uint8], wanted: Sequence[str], failure: str) -> Maps:
        height, width = image.shape[:2]
        if max(height, width) <= FALLBACK_TILE:
            raise MemoryError(self._advice(image, "", failure))
        warnings.warn(
            f"an image of {width}×{height} did not fit in memory: it is cut into tiles of {FALLBACK_TILE}, near whose "
            "borders the result differs",
            stacklevel=2,
        )
        return self._tiled(image, wanted, FALLBACK_TILE)

    def _tiled(self, image: NDArray[np.uint8], wanted: Sequence[str], side: int) -> Maps:
        """The maps of an image, of overlapping tiles; there are no logits, for tiles' grids do not fit together."""
        wanted = [name for name in wanted if name != "logits"]
        result, failure = self._attempt(
            lambda: [tiling.stitched(image, side, lambda part: self._pass([part], wanted)[0])]
        )
        if result is None:
            raise MemoryError(self._advice(image, f", even in tiles of {side}", failure))
        return result[0]

    def _advice(self, image: NDArray[np.uint8], tiles: str, failure: str) -> str:
        return (
            f"not enough memory on {self.device} for one image of {image.shape[1]}×{image.shape[0]} and "
            f"{self.num_classes} classes{tiles}: give a smaller tile, a smaller image, or autocast, or use another "
            f"device (it failed with: {failure})"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there is not enough memory, on the CPU or on a GPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _MEMORY_MESSAGES)


def _check_images(images: Sequence[NDArray[np.uint8]]) -> None:
    for image in images:
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            kind = f"a {image.dtype} array" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"
            raise ArgumentTypeError("images", kind, "a uint8 array", what="one")
        if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ArgumentError("images", image.shape, "(H, W, 3)", what="shape of one")
        if image.shape != images[0].shape:
            raise ArgumentError("images", image.shape, f"{images[0].shape}, that of the first", what="shape of one")
