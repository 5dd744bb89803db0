"""`Lattice`: a permutohedral lattice that is built once and filters many times."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from deeplab_fast import _core, reference
from deeplab_fast._arguments import check_floating, may_look_at_values, shape_of, sum_dtype
from deeplab_fast.errors import ArgumentError
from deeplab_fast.ops.define import OPS, in_format_of
from deeplab_fast.ops.permutohedral_filter import kernel_takes, with_errors_of
from deeplab_fast.reference.lattice import check_range


class Lattice:
    """The permutohedral lattices of a batch of images, or that of one.

    `Lattice(features).filter(values)` is `deeplab_fast.permutohedral_filter(values, features)`, with the work split:
    building looks at the features, filtering only at the values. What is kept: the lattice; on a GPU also a copy of the
    features, from which kernels build anew with every filtering if the lattice was made while a CUDA graph was being
    captured, or is too large for one (2^29 corners). A lattice that was moved to a GPU is kept, and used there in plain
    PyTorch. Paper: Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", 2010.

    Args:
        features: floating, in units of standard deviations: (N, D, *S), or of one image without a batch axis, (D, P).
            float64 makes a float64 lattice, everything else a float32 one.
        batched: whether the first axis is the batch; by default if there are three or more. `batched=False` takes
            features (D, *S), for example (D, H, W) of one image.

    Raises:
        TypeError: if `features` is no floating tensor.
        ValueError: for another shape, NaN or infinite features, and lattice coordinates beyond ±32767.
    """

    def __init__(self, features: Tensor, batched: bool | None = None):
        check_floating("features", features)
        self._batched = features.ndim > 2 if batched is None else batched
        if features.ndim < 2 + self._batched or 0 in features.shape[int(self._batched) :]:
            wanted = "(N, D, *S)" if self._batched else "(D, *S)"
            wanted += " with D and every axis of S at least 1"
            raise ArgumentError("features", shape_of(features), wanted, what="shape")
        images = features.detach() if self._batched else features.detach()[None]
        self._size = features.shape[1 + self._batched :]
        self._device = features.device
        self._features: Tensor | None = None
        self._tables: list[Tensor] = []
        if self._device.type == "cuda":
            self._features = images.to(sum_dtype(images), copy=True)
            if may_look_at_values(self._features):
                self._tables = _tables_of(self._features)
        else:
            self._images = [_build(image.flatten(1)) for image in images]

    @cached_property
    def _images(self) -> list[Any]:
        """A lattice each. Of features on a GPU, built when it is asked for: kernels do without."""
        assert self._features is not None
        return [_build(image.flatten(1)) for image in self._features]

    @property
    def _batch(self) -> int:
        return len(self._images if self._features is None else self._features)

    @property
    def vertex_count(self) -> int:
        """Number of vertices, of all images of the batch together."""
        return sum(image.vertex_count for image in self._images)

    @property
    def device(self) -> torch.device:
        return self._device

    def __repr__(self) -> str:
        batch = f"batch of {self._batch}, " if self._batched else ""
        return f"Lattice({batch}size {tuple(self._size)}, {self.vertex_count} vertices, device {self._device})"

    def to(self, device: torch.device | str) -> Lattice:
        """The same lattice on another device: itself if it is there already."""
        device = torch.empty(0, device=device).device  # with its index
        if device == self._device:
            return self
        moved = object.__new__(Lattice)
        images = [_as_reference(image).to(device) for image in self._images]
        moved.__dict__ = dict(self.__dict__, _device=device, _features=None, _tables=[], _images=images)
        return moved

    def filter(self, values: Tensor, reverse: bool = False) -> Tensor:
        """Gaussian filtering, about sum_j exp(-|f_i - f_j|²/2) v_j, alpha included; see `permutohedral_filter`.

        Differentiable with respect to `values`.

        Args:
            values: floating, (N, C, *S), or (C, *S) for a lattice without a batch axis.
            reverse: blur the axes in reverse order, which is the adjoint.

        Returns:
            Shape, dtype and memory format of `values`. Sums are in its dtype, but for 16-bit ones in float32.

        Raises:
            TypeError: if `values` is no floating tensor.
            ValueError: if its shape or device does not fit the lattice.
        """
        check_floating("values", values)
        wanted = (*((self._batch,) if self._batched else ()), "C", *self._size)
        channels = int(self._batched)
        fits = values.ndim == len(wanted) and values.shape[channels] > 0
        if not fits or any(size not in ("C", actual) for size, actual in zip(wanted, values.shape, strict=True)):
            text = f"({', '.join(map(str, wanted))}) with C at least 1"
            raise ArgumentError("values", shape_of(values), text, what="shape")
        if values.device != self._device:
            raise ArgumentError("values", values.device, f"{self._device}, that of the lattice", what="device")
        return _Filter.apply(values, self, reverse)

    def _filter(self, values: Tensor, reverse: bool) -> Tensor:
        images = values.detach() if self._batched else values.detach()[None]
        if self._features is not None and kernel_takes(images, [self._features]):
            if self._tables:
                kept = torch.ops.deeplab_fast.lattice_filter_cuda.default
                filtered = kept(images, self._tables, self._features.shape[1], reverse)
            else:
                filtered = OPS["permutohedral_filter"](images, self._features, reverse)
            return in_format_of(values, filtered if self._batched else filtered[0])
        out = torch.empty_like(values)
        for lattice, image, to in zip(self._images, images, out if self._batched else out[None], strict=True):
            filtered = _filter_image(lattice, image.flatten(1).to(sum_dtype(values)), reverse)
            to.copy_(filtered.reshape(image.shape))
        return out


class _Filter(torch.autograd.Function):
    """Filtering is linear, and its gradient is filtering with the blur's axes in reverse."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, lattice: Lattice, reverse: bool) -> Tensor:
        ctx.lattice, ctx.reverse = lattice, reverse
        return lattice._filter(values, reverse)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Filter.apply(grad, ctx.lattice, not ctx.reverse), None, None


def _tables_of(features: Tensor) -> list[Tensor]:
    """What kernels on a GPU make of features (N, D, *S); nothing if there are none, or one lattice is not enough."""
    if kernel_takes(features, [features]):
        build = torch.ops.deeplab_fast.lattice_tables_cuda.default
        if tables := with_errors_of([features], build, features):
            return tables
    for image in features:
        check_range(image.flatten(1))
    return []


def _build(features: Tensor) -> Any:
    """The lattice of features (D, P): a compiled one for what the compiled core takes, else the reference's."""
    compiled = _core.compiled() if features.device.type == "cpu" else None
    if compiled is None or features.dtype == torch.float64:
        return reference.build_lattice(features)
    _core.apply_num_threads(compiled)
    return compiled.Lattice(features.float().contiguous().numpy())


def _filter_image(lattice: Any, values: Tensor, reverse: bool) -> Tensor:
    """Values (C, P), float32 or float64."""
    if isinstance(lattice, reference.Lattice) or values.dtype == torch.float64:
        return _as_reference(lattice).filter(values, reverse)
    compiled = _core.compiled()
    assert compiled is not None  # it built this lattice
    _core.apply_num_threads(compiled)
    return torch.from_numpy(lattice.filter(values.contiguous().numpy(), reverse))


def _as_reference(lattice: Any) -> reference.Lattice:
    if isinstance(lattice, reference.Lattice):
        return lattice
    vertices, neighbours, keys = (
        torch.from_numpy(table).long() for table in (lattice.vertices(), lattice.neighbours(), lattice.keys())
    )
    neighbours[neighbours < 0] = len(keys)
    return reference.Lattice(vertices, torch.from_numpy(lattice.weights()), neighbours, keys)
