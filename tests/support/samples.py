"""Sample inputs, one list for each op, which every kind of test of the op reads; and what "accurate" means."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deeplab_fast import reference
from deeplab_fast._arguments import lattice_dtype

HALF, BFLOAT = torch.float16, torch.bfloat16


# --- Inputs --------------------------------------------------------------------------------------------------------


def _contiguous(tensor: Tensor) -> Tensor:
    return tensor


def _strided(tensor: Tensor) -> Tensor:
    """Every second element of each spatial axis, of a larger tensor."""
    size = [2 * length for length in tensor.shape[2:]]
    larger = tensor.new_full((*tensor.shape[:2], *size), math.nan)
    view = larger[(..., *[slice(None, None, 2)] * len(size))]
    return view.copy_(tensor)


def _sliced(tensor: Tensor) -> Tensor:
    """Some channels of a tensor with more."""
    larger = torch.cat([torch.full_like(tensor, math.nan), tensor], dim=1)
    return larger[:, tensor.shape[1] :]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": _contiguous,
    "channels_last": lambda tensor: tensor.contiguous(memory_format=torch.channels_last),
    "transposed": lambda tensor: tensor.transpose(-1, -2).contiguous().transpose(-1, -2),
    "strided": _strided,
    "sliced": _sliced,
    "expanded": lambda tensor: tensor[:1].expand_as(tensor),
}


def random(seed: int, *shape: int) -> Tensor:
    """Uniform in 0..1, float32."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def positions(size: tuple[int, ...], batch: int, dimensions: int, spread: float, seed: int = 0) -> Tensor:
    """Features (batch, dimensions, *size) as of an image: pixel positions, then smooth colours with some noise.

    `spread` is the range of every feature, in standard deviations.
    """
    axes = [torch.linspace(0, 1, length) for length in reversed(size)]
    grid = torch.stack(torch.meshgrid(*axes[::-1], indexing="ij")[::-1])
    features = random(seed, batch, dimensions, *size)
    for d in range(dimensions):
        if d < len(size):
            features[:, d] = grid[d]
        else:
            features[:, d] = 0.5 + 0.4 * torch.sin(3 * d * grid.sum(dim=0)) + 0.1 * features[:, d]
    return spread * features


@dataclass(frozen=True)
class FilterSample:
    """One input of `permutohedral_filter`."""

    name: str
    batch: int = 2
    channels: int = 3
    size: tuple[int, ...] = (13, 11)
    dimensions: int = 5
    spread: float = 5
    dtype: torch.dtype = torch.float32
    feature_dtype: torch.dtype = torch.float32
    layout: str = "contiguous"

    def inputs(self, device: str = "cpu") -> tuple[Tensor, Tensor]:
        values = (random(1, self.batch, self.channels, *self.size) - 0.3).to(device, self.dtype)
        features = positions(self.size, self.batch, self.dimensions, self.spread).to(device, self.feature_dtype)
        layout = LAYOUTS[self.layout]
        return layout(values), layout(features)


FILTER_SAMPLES = [
    FilterSample("image"),
    FilterSample("points_by_4", size=(8, 12)),
    FilterSample("one_pixel", size=(1, 1)),
    FilterSample("one_row", size=(1, 57), dimensions=2),
    FilterSample("sequence", size=(101,), dimensions=1),
    FilterSample("volume", size=(5, 6, 7), dimensions=3),
    FilterSample("empty_batch", batch=0),
    FilterSample("one_channel", channels=1),
    FilterSample("many_channels", channels=67),
    FilterSample("flat", spread=0),
    FilterSample("narrow", spread=0.05),
    FilterSample("wide", spread=300, dimensions=3),
    FilterSample("isolated_points", spread=2000),
    *(FilterSample(f"dimensions_{d}", dimensions=d) for d in (1, 2, 3, 4, 6, 7, 8)),
    FilterSample("many_dimensions", dimensions=19, size=(5, 4)),
    *(FilterSample(layout, layout=layout) for layout in LAYOUTS if layout != "contiguous"),
    FilterSample("bfloat16", dtype=BFLOAT),
    FilterSample("float16", dtype=HALF),
    FilterSample("bfloat16_features", dtype=BFLOAT, feature_dtype=BFLOAT, layout="channels_last"),
    FilterSample("float64_features", feature_dtype=torch.float64),
    FilterSample("float64_values", dtype=torch.float64),
    FilterSample("float64", dtype=torch.float64, feature_dtype=torch.float64),
]


@dataclass(frozen=True)
class Kernel:
    """A pairwise term of a `CRFSample`; `compat` is a number, "vector" or "matrix"."""

    dimensions: int = 5
    compat: float | str = 3.0
    normalization: int = reference.NORMALIZE_SYMMETRIC
    spread: float = 5

    def make_compat(self, labels: int) -> Tensor:
        if self.compat == "vector":
            return -4 * random(3, labels)
        if self.compat == "matrix":
            return 3 * (random(4, labels, labels) - torch.eye(labels))
        return torch.tensor(float(self.compat))


@dataclass(frozen=True)
class CRFSample:
    """One input of `dense_crf`."""

    name: str
    labels: int = 4
    batch: int = 2
    size: tuple[int, ...] = (13, 11)
    kernels: tuple[Kernel, ...] = (Kernel(), Kernel(dimensions=2, spread=3))
    iterations: int = 5
    dtype: torch.dtype = torch.float32
    feature_dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    alike: int = 0  # so many labels share one unary

    def inputs(self, device: str = "cpu") -> tuple[Tensor, list[Tensor], list[Tensor], int, list[int]]:
        unary = 4 * random(2, self.batch, self.labels, *self.size)
        unary[:, self.labels - self.alike :] = 4
        layout = LAYOUTS[self.layout]
        features = [
            layout(positions(self.size, self.batch, k.dimensions, k.spread).to(device, self.feature_dtype))
            for k in self.kernels
        ]
        compat = [k.make_compat(self.labels).to(device) for k in self.kernels]
        normalization = [k.normalization for k in self.kernels]
        return layout(unary.to(device, self.dtype)), features, compat, self.iterations, normalization


CRF_SAMPLES = [
    CRFSample("image"),
    CRFSample("points_by_4", size=(8, 12)),
    CRFSample("one_pixel", size=(1, 1)),
    CRFSample("one_row", size=(1, 57)),
    CRFSample("sequence", size=(101,)),
    CRFSample("volume", size=(5, 6, 7), kernels=(Kernel(3),)),
    CRFSample("empty_batch", batch=0),
    *(CRFSample(f"labels_{labels}", labels=labels) for labels in (1, 2, 3, 21, 91, 182)),
    CRFSample("labels_alike", labels=30, alike=25),
    CRFSample("all_labels_alike", labels=3, alike=3),
    *(
        CRFSample(f"normalization_{name}_{compat}", kernels=(Kernel(compat=compat, normalization=number),))
        for name, number in (("none", 0), ("before", 1), ("after", 2), ("symmetric", 3))
        for compat in (0.5, "vector", "matrix")
    ),
    CRFSample("mixed_kernels", kernels=(Kernel(1, "matrix", 1), Kernel(2, "vector", 0), Kernel(6, -1.0, 2))),
    CRFSample("two_labels_mixed", labels=2, kernels=(Kernel(2, "matrix"), Kernel(3, 2.0, 2))),
    *(CRFSample(f"dimensions_{d}", kernels=(Kernel(d),)) for d in (1, 2, 3, 4, 6, 7, 8, 19)),
    CRFSample("no_iterations", iterations=0),
    CRFSample("no_kernels", kernels=()),
    CRFSample("many_iterations", iterations=20),
    *(CRFSample(layout, layout=layout) for layout in LAYOUTS if layout != "contiguous"),
    CRFSample("bfloat16", dtype=BFLOAT),
    CRFSample("float16", dtype=HALF),
    CRFSample("bfloat16_features", dtype=BFLOAT, feature_dtype=BFLOAT, layout="channels_last"),
    CRFSample("float64_features", feature_dtype=torch.float64),
    CRFSample("float64_unary", dtype=torch.float64),
    CRFSample("float64", dtype=torch.float64, feature_dtype=torch.float64),
]


def by_name(sample: FilterSample | CRFSample) -> str:
    return sample.name


# --- Accuracy ------------------------------------------------------------------------------------------------------
#
# A result may be off the exact one by at most twice what the reference is off in the same dtype, and a few roundings.
# Exact means: sums in float64, on the float32 lattice, because whether a vertex exists is a matter of rounding.

ROUNDINGS = 4


def _assert_close(result: Tensor, exact: Tensor, own: Tensor, floor: Tensor | float) -> None:
    error = (result.double() - exact).abs().max().item()
    own_error = (own.double() - exact).abs().max().item()
    assert error <= 2 * own_error + floor, f"error {error:.2e}; the reference's {own_error:.2e}, floor {floor:.2e}"


def _matches(result: Tensor, like: Tensor) -> None:
    assert (result.shape, result.dtype, result.device) == (like.shape, like.dtype, like.device)
    # The stride of an axis of length 1 says nothing.
    strides = [[s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1] for t in (result, torch.empty_like(like))]
    assert strides[0] == strides[1] or result.numel() == 0


def assert_strides_like(maps: Tensor, like: Tensor) -> None:
    """`maps` are channels_last if `like` is that only, else contiguous."""
    last = torch.channels_last
    wanted = last if like.is_contiguous(memory_format=last) and not like.is_contiguous() else torch.contiguous_format
    assert maps.is_contiguous(memory_format=wanted)


def assert_filter_accurate(result: Tensor, values: Tensor, features: Tensor) -> None:
    """`result` is `permutohedral_filter(values, features)`, to the accuracy of its dtype."""
    _matches(result, values)
    if result.numel() == 0:
        return
    features = features.to(lattice_dtype(features, values))
    exact = reference.permutohedral_filter(values.double(), features)
    largest = reference.permutohedral_filter(values.double().abs(), features).max().item()
    own = reference.permutohedral_filter(values, features)
    _assert_close(result, exact, own, ROUNDINGS * torch.finfo(values.dtype).eps * largest)


def assert_crf_accurate(
    Q: Tensor, unary: Tensor, features: list[Tensor], compat: list[Tensor], iterations: int, normalization: list[int]
) -> None:
    """`Q` is `dense_crf` of the rest, to the accuracy of its dtype.

    A mean field can lie between two labellings, where it magnifies what rounding does to the energies. So in addition
    the result may be off by what a few roundings of the energies, applied to the exact unary, make of it.
    """
    _matches(Q, unary)
    if Q.numel() == 0:
        return
    own = reference.dense_crf(unary, features, compat, iterations, normalization)
    exact_crf = ExactCRF(unary, features, compat, normalization)
    exact = exact_crf.infer(unary.double(), iterations)
    rounding = ROUNDINGS * torch.finfo(torch.promote_types(unary.dtype, torch.float32)).eps
    noise = (2 * random(5, *unary.shape) - 1).to(exact)
    rounded = exact_crf.infer(unary.double() + rounding * exact_crf.largest_energy() * noise, iterations)
    floor = (rounded - exact).abs().max().item() + ROUNDINGS * torch.finfo(unary.dtype).eps
    _assert_close(Q, exact, own, floor)
    assert (Q.double().sum(dim=1) - 1).abs().max() <= 2 * Q.shape[1] * torch.finfo(Q.dtype).eps


class ExactCRF:
    """The reference with sums in float64 on the lattices that `dense_crf` builds."""

    def __init__(self, unary: Tensor, features: list[Tensor], compat: list[Tensor], normalization: list[int]):
        self.unary = unary.double()
        self.kernels = [
            [
                reference.build_kernel(f[n].flatten(1).to(lattice_dtype(f, unary)), c.double(), number)
                for f, c, number in zip(features, compat, normalization, strict=True)
            ]
            for n in range(len(unary))
        ]

    def infer(self, unary: Tensor, iterations: int) -> Tensor:
        beliefs = []
        for image, kernels in zip(unary, self.kernels, strict=True):
            energies = image.flatten(1).t()
            Q = torch.softmax(-energies, dim=1)
            for _ in range(iterations):
                Q = reference.mean_field_step(Q, energies, kernels)
            beliefs.append(Q.t().reshape(image.shape))
        return torch.stack(beliefs)

    def largest_energy(self) -> float:
        """A bound: no Q is above 1, so no filtered Q above the filtered ones."""
        one = self.unary.new_ones(())
        ones = self.unary.new_ones(self.unary[0, 0].numel(), 1)
        pairwise = [
            sum(replace(k, compat=one).energy(ones).abs().max() * k.compat.abs().max() for k in kernels)
            for kernels in self.kernels
        ]
        return float(self.unary.abs().max() + max(pairwise))
