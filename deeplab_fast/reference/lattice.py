"""The permutohedral lattice in plain PyTorch, to be read beside the paper.

Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Eurographics 2010 (here:
Adams). Differentiable by autograd, to features as well.

Letters: N batch, C channels, K classes (labels), D feature dimensions, *S the spatial axes, P the points of one
image (the product of S), M the vertices of its lattice. Tables inside are (P, C) and (M, C), as rows are gathered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from deeplab_fast._arguments import check_floating, shape_of, sum_dtype
from deeplab_fast.errors import ArgumentError

KEY_LIMIT = 32767  # pydensecrf keeps lattice coordinates in 16 bits, and wraps around beyond
POINTS_AT_ONCE = 4  # as many as pydensecrf embeds at once


@dataclass(frozen=True)
class Lattice:
    """The permutohedral lattice of one image, and the three steps of filtering on it (Adams, section 3).

    Attributes:
        vertices: (P, D+1) int64, the simplex around each point: rows of `keys`, by remainder 0..D.
        barycentric: (P, D+1), dtype of the features: weights of these vertices, summing to 1. Differentiable to them.
        neighbours: (D+1, 2, M) int64, rows of `keys` on both sides along each axis; M where there is none.
        keys: (M, D) int64, the vertices' lattice coordinates; the last, coordinate D, is minus their sum.
    """

    vertices: Tensor
    barycentric: Tensor
    neighbours: Tensor
    keys: Tensor

    @property
    def vertex_count(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str) -> Lattice:
        tables = (self.vertices, self.barycentric, self.neighbours, self.keys)
        return Lattice(*(table.to(device) for table in tables))

    def splat(self, rows: Tensor) -> Tensor:
        """Points (P, C) to vertices, (M+1, C): the last row stays zero, and stands in for missing neighbours."""
        weights = self.barycentric.to(rows.dtype)
        table = rows.new_zeros(self.vertex_count + 1, rows.shape[1])
        for remainder in range(self.vertices.shape[1]):
            table.index_add_(0, self.vertices[:, remainder], weights[:, remainder, None] * rows)
        return table

    def blur(self, table: Tensor, reverse: bool = False) -> Tensor:
        """[1/2, 1, 1/2] along each axis. At the rim axes do not commute: the adjoint takes them in reverse order."""
        for axis in self.neighbours.flip(0) if reverse else self.neighbours:
            both = table.index_select(0, axis[0]) + table.index_select(0, axis[1])
            table = table + pad(0.5 * both, (0, 0, 0, 1))
        return table

    def slice(self, table: Tensor) -> Tensor:
        """Vertices (M+1, C) back to points, (P, C)."""
        weights = self.barycentric.to(table.dtype)
        rows = table.new_zeros(len(self.vertices), table.shape[1])
        for remainder in range(self.vertices.shape[1]):
            rows = rows + weights[:, remainder, None] * table.index_select(0, self.vertices[:, remainder])
        return rows

    def filter_rows(self, rows: Tensor, reverse: bool = False) -> Tensor:
        """(P, C) -> (P, C). Krähenbühl's alpha, 1 / (1 + 2^-D), makes up for the amplitude lost on the way."""
        dimensions = self.keys.shape[1]
        return self.slice(self.blur(self.splat(rows), reverse)) / (1 + 2.0**-dimensions)

    def filter(self, values: Tensor, reverse: bool = False) -> Tensor:
        """Filter values (C, P); sums are in their dtype."""
        return self.filter_rows(values.t(), reverse).t()


def build_lattice(features: Tensor) -> Lattice:
    """Build the permutohedral lattice of one image.

    A vertex exists or not, and changes the blur by a finite amount, so every rounding counts: operations and their
    order are those of pydensecrf. As there, when P is not a multiple of 4, the simplex at feature 0 exists as well.

    Args:
        features: (D, P), floating, in units of standard deviations. 16-bit ones are computed in float32.

    Raises:
        ValueError: for NaN or infinite features, or lattice coordinates beyond ±32767.
    """
    if features.ndim != 2 or 0 in features.shape:
        raise ArgumentError("features", shape_of(features), "(D, P) with D and P at least 1", what="shape")
    check_floating("features", features)
    features = features.to(sum_dtype(features))
    points = features.shape[1]
    _check_finite(features)
    if points % POINTS_AT_ONCE != 0:
        features = torch.cat([features, features.new_zeros(len(features), 1)], dim=1)

    elevated = elevate(features)
    cell, rank = find_simplex(elevated.detach())  # which are constant but where points change simplices
    barycentric = _barycentric(elevated, cell, rank)
    index = _KeyIndex(_simplex_keys(cell, rank))
    return Lattice(index.rows[:points], barycentric[:points], _find_neighbours(index), index.keys)


def check_range(features: Tensor) -> None:
    """Raise for features (D, P) what `build_lattice` would raise."""
    features = features.to(sum_dtype(features))
    _check_finite(features)
    find_simplex(elevate(features))


def _check_finite(features: Tensor) -> None:
    if not torch.isfinite(features).all():
        text = "there are NaN or infinite values, all should be finite"
        raise ArgumentError("features", "NaN or infinite", "finite", what="values", text=text)


def embedding_scales(dimensions: int, dtype: torch.dtype) -> list[float]:
    """The diagonal of the embedding E (Adams, page 5), in units of the blur's standard deviation (page 6)."""
    deviation = _rounded(math.sqrt(2 / 3) * (dimensions + 1), dtype)
    return [_rounded(1 / math.sqrt(i * (i + 1)) * deviation, dtype) for i in range(1, dimensions + 1)]


def elevate(features: Tensor) -> Tensor:
    """Embed (D, P) in the hyperplane where the D+1 coordinates sum to zero: (D+1, P), y = E x (Adams, page 5)."""
    dimensions = len(features)
    scales = embedding_scales(dimensions, features.dtype)
    elevated = [features[0]] * (dimensions + 1)
    total = torch.zeros_like(features[0])
    for i in range(dimensions, 0, -1):
        scaled = features[i - 1] * scales[i - 1]
        elevated[i] = total - i * scaled
        total = total + scaled
    elevated[0] = total
    return torch.stack(elevated)


def _rounded(number: float, dtype: torch.dtype) -> float:
    return torch.tensor(number, dtype=dtype).item()


def find_simplex(elevated: Tensor) -> tuple[Tensor, Tensor]:
    """The simplex around each point (Adams, section 3.1), both (D+1, P).

    Returns:
        cell: its vertex of remainder 0, divided by D+1.
        rank: int64, the place of each coordinate when the differences to that vertex are in descending order.
    """
    size = len(elevated)
    cell = torch.round(elevated * _rounded(1 / size, elevated.dtype))  # halves to even
    difference = elevated - cell * size
    rank = torch.zeros_like(cell, dtype=torch.int64)
    for i in range(size - 1):
        later_first = difference[i] < difference[i + 1 :]  # a tie leaves the lower index first
        rank[i] += later_first.sum(dim=0)
        rank[i + 1 :] += ~later_first

    # If rounding has left the hyperplane, the coordinates rounded worst step back to it.
    rank += cell.sum(dim=0).long()
    wrap = (rank < 0).long() - (rank >= size).long()
    cell = cell + wrap
    if not (cell[:-1].abs() * size <= KEY_LIMIT - size).all():  # the last coordinate is no part of the key
        text = (
            f"key range overflow: a lattice coordinate is beyond ±{KEY_LIMIT} (pydensecrf would wrap around); features "
            "should be smaller, that is, the standard deviations (sigmas) larger"
        )
        raise ArgumentError("features", f"beyond ±{KEY_LIMIT}", "smaller", what="lattice coordinates", text=text)
    return cell, rank + wrap * size


def _barycentric(elevated: Tensor, cell: Tensor, rank: Tensor) -> Tensor:
    """Barycentric coordinates of each point in its simplex, by remainder: (P, D+1) (Adams, page 10)."""
    size = len(elevated)
    difference = (elevated - cell * size) * _rounded(1 / size, elevated.dtype)
    by_rank = torch.zeros_like(difference).scatter_(0, rank, difference).flip(0)  # ascending
    first = by_rank[0] + (1 - by_rank[-1])
    return torch.cat([first[None], by_rank[1:] - by_rank[:-1]]).t().contiguous()


def _simplex_keys(cell: Tensor, rank: Tensor) -> Tensor:
    """Coordinates of the D+1 vertices around each point, but for the last coordinate: (D, P, D+1) int64."""
    size = len(cell)
    remainder = torch.arange(size, device=cell.device)
    # The canonical simplex (Adams, page 4): vertex k adds k to a coordinate, or k - (D+1) to those of the last k ranks.
    offset = remainder - size * (rank[:-1, :, None] > size - 1 - remainder)
    return cell[:-1, :, None].long() * size + offset


class _KeyIndex:
    """Row numbers of keys by binary search, one coordinate after another.

    Keys of many coordinates do not fit one integer. But the keys' first d coordinates, known by their row in table d,
    and the next coordinate do. So table d+1 holds such pairs, sorted and once each; the last table's rows are the keys.
    """

    BASE = 4 * (KEY_LIMIT + 1)  # more than coordinates and one step beyond

    def __init__(self, keys: Tensor):
        """Of keys (D, ...), with duplicates."""
        self.tables = []
        rows = torch.zeros_like(keys[0])
        for coordinate in keys:
            table, rows = torch.unique(self._pair(rows, coordinate), sorted=True, return_inverse=True)
            self.tables.append(table)
        self.rows = rows  # (...), of the keys given
        self.keys = keys.new_zeros(len(table), len(keys))  # (M, D)
        self.keys[rows.flatten()] = keys.flatten(1).t()

    def find(self, keys: Tensor) -> Tensor:
        """Rows of keys (M, D), M where there is none."""
        rows = torch.zeros_like(keys[:, 0])
        found = torch.ones_like(rows, dtype=torch.bool)
        for table, coordinate in zip(self.tables, keys.t(), strict=True):
            pair = self._pair(rows, coordinate)
            rows = torch.searchsorted(table, pair).clamp_(max=len(table) - 1)
            found &= table[rows] == pair
        return torch.where(found, rows, len(self.keys))

    def _pair(self, rows: Tensor, coordinate: Tensor) -> Tensor:
        return rows * self.BASE + coordinate + self.BASE // 2


def _find_neighbours(index: _KeyIndex) -> Tensor:
    """(D+1, 2, M): a step along axis i changes coordinate i by D and all others by 1, the other way."""
    dimensions = index.keys.shape[1]
    neighbours = []
    for axis in range(dimensions + 1):
        step = index.keys.new_full((dimensions,), -1)
        if axis < dimensions:
            step[axis] = dimensions
        neighbours.append(torch.stack([index.find(index.keys + step), index.find(index.keys - step)]))
    return torch.stack(neighbours)
