"""What cases of several ops share: names of backends, input from photos, measures of how far results are apart."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from bench.case import Backend, Target
from deeplab_fast.ops import define
from tests.support.photos import PHOTOS, photo, scores

THREADS = 2  # as many as the machine of the committed results has cores
LAST = torch.channels_last
NCHW, CHANNELS_LAST = "stock, NCHW", "stock, channels_last"
PLAIN, OURS, COMPILED = "plain PyTorch", "deeplab_fast", "torch.compile"
PYDENSECRF, TRITON = ("pydensecrf.densecrf",), ("triton",)  # what backends need


def dtypes(target: Target) -> dict[str, torch.dtype]:
    """Name, and what is computed in. On a GPU float32 is of no interest, but Triton's interpreter needs it."""
    if target.gpu:
        return {"bfloat16": target.pick(torch.bfloat16, torch.float32)}
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def stock_layouts(dtype: torch.dtype) -> tuple[str, ...]:
    """Stock PyTorch's memory formats on a CPU, the better one first."""
    # Without such instructions, half a minute a call.
    slow = dtype != torch.float32 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (CHANNELS_LAST,) if slow else (CHANNELS_LAST, NCHW)


def seeded() -> None:
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)


@contextlib.contextmanager
def kernels_off() -> Iterator[None]:
    """Ops compute by the reference, as on a machine without a compiler."""
    wanted = define.kernels_wanted
    define.kernels_wanted = lambda: False
    try:
        yield
    finally:
        define.kernels_wanted = wanted


def plain(run: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`run` with ops that compute by the reference."""

    def run_plain(inputs: Any) -> Any:
        with kernels_off():
            return run(inputs)

    return run_plain


def gpu_and_cpu(run: Callable[[Any], Any], once: bool = False, graph: bool = False) -> dict[str, Backend]:
    """Our CPU path on all threads, the peer, and the GPU, of inputs {"cpu": …, "gpu": …}; maybe in a graph, too."""
    threads = torch.get_num_threads()
    backends = {
        f"{OURS}, CPU, {threads} threads": Backend(run, takes="cpu", threads=threads, once=once),
        OURS: Backend(run, takes="gpu", clock="events"),
    }
    if graph:
        backends[f"{OURS}, graph"] = Backend(run, takes="gpu", clock="graph")
    return backends


def by_path(
    kernel: Callable[[str, Any, Any], Any], takes: str | None, paths: Sequence[str], tiled: str, target: Target
) -> dict[str, Backend]:
    """kernel(path, tile, inputs) by each path of a Triton op; with `target.tiles` also by path `tiled`, every tile."""
    choices = [(path, path, None) for path in paths]
    if target.tiles:
        from deeplab_fast.kernels.choices import TILES

        choices += [(f"{tiled} {tile.pixels}x{tile.columns}", tiled, tile) for tile in TILES["16bit"]]
    return {
        f"{OURS}, {name}": Backend(functools.partial(kernel, path, tile), takes=takes, clock="graph", needs=TRITON)
        for name, path, tile in choices
    }


Module = TypeVar("Module", bound=nn.Module)


def formatted(module: Module, memory_format: torch.memory_format) -> Module:
    """The module, its weights in that format; torch's types lack this argument of `Module.to`."""
    return module.to(memory_format=memory_format)  # type: ignore[call-overload]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` through torch.compile, compiled when first called, for the shapes that it gets then."""

    @functools.cache
    def compile_once() -> Callable[..., Any]:
        torch.compiler.reset()  # of the cases before, whose shapes would make this one's dynamic
        return torch.compile(function, dynamic=False)

    return lambda *arguments: compile_once()(*arguments)


# --- Input ---------------------------------------------------------------------------------------------------------


def image_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) -> (1, 3, H, W), sharing nothing."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None]


def photo_batch(count: int, side: int, classes: int) -> tuple[Tensor, Tensor]:
    """Photos (N, 3, side, side), uint8, and probabilities (N, classes, side, side), float32."""
    images = [photo(PHOTOS[n % len(PHOTOS)], side + n, side)[:side] for n in range(count)]
    prob = [scores(image, classes, seed=n) for n, image in enumerate(images)]
    image_batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return image_batch, torch.from_numpy(np.stack(prob)).float()


# --- How far results are apart. The tests are stricter: this is to be sure that work was done. -----------------------


def relative_error(result: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor]) -> float:
    """|result - expected| / |expected|, Euclidean norms; the largest, of several tensors."""
    if isinstance(result, Tensor) and isinstance(expected, Tensor):
        return _relative_error(result, expected)
    if isinstance(result, Tensor) or isinstance(expected, Tensor):
        raise TypeError(f"one result is a tensor, the other is none: {type(result)}, {type(expected)}")
    return max(_relative_error(a, b) for a, b in zip(result, expected, strict=True))


def _relative_error(result: Tensor, expected: Tensor) -> float:
    # In float32: float64 copies of a network's gradients would not fit everywhere.
    result, expected = result.detach().float().cpu(), expected.detach().float().cpu()
    if result.shape != expected.shape:
        raise ValueError(f"shapes are {tuple(result.shape)} and {tuple(expected.shape)}")
    return ((result - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def different_labels(result: Any, expected: Any) -> float:
    """Part of the pixels with another label."""
    return float(np.mean(np.asarray(result) != np.asarray(expected)))
