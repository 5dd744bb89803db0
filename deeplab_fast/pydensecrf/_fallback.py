"""The numerical core on plain numpy, for installations without the compiled module.

It has the classes and functions of `deeplab_fast._densecrf` (`Lattice`, `DenseCRF`, `set_num_threads`, ...)
with the same meaning and the same answers, on one thread and much slower. The lattice geometry follows the
compiled code operation by operation in float32, since one differently rounded tie makes another vertex and so
another blur; the filtering itself runs in float64.

Papers: Adams, Baek, Davis, Fast High-Dimensional Filtering Using the Permutohedral Lattice (2010);
Krähenbühl, Koltun, Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials (2011).
"""

from __future__ import annotations

import numpy as np

NO_NORMALIZATION, NORMALIZE_BEFORE, NORMALIZE_AFTER, NORMALIZE_SYMMETRIC = range(4)
KEY_LIMIT = 32767  # lattice coordinates are 16-bit integers in the compiled code
LANES = 4  # the original embeds four points at once: see `Lattice`


class KeyIndex:
    """Row numbers of lattice keys (n, D), by a sorted table a coordinate, as D rarely fit one integer.

    A key's first d coordinates are known by their row in table d, so the next coordinate always fits beside
    it.
    """

    BASE = 1 << 17  # room for a 16-bit coordinate and its neighbours outside, shifted to be positive

    def __init__(self, keys: np.ndarray):
        code = np.zeros(len(keys), np.int64)
        self.tables: list[np.ndarray] = []
        for column in keys.T:
            table, first, code = np.unique(self._append(code, column), return_index=True, return_inverse=True)
            self.tables.append(table)
        self.keys, self.rows = keys[first], code

    def _append(self, code: np.ndarray, column: np.ndarray) -> np.ndarray:
        return code * self.BASE + (column.astype(np.int64) + self.BASE // 2)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Row numbers of `keys` (n, D), -1 where there is no such key."""
        code, present = np.zeros(len(keys), np.int64), np.ones(len(keys), bool)
        for table, column in zip(self.tables, keys.T, strict=True):
            wanted = self._append(code, column)
            code = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
            present &= table[code] == wanted
        return np.where(present, code, -1)


def _embed(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Enclosing simplices: (N, D+1, D) first key coordinates by remainder, (N, D+1) barycentric weights."""
    dims, points = features.shape
    f32, size = np.float32, np.float32(dims + 1)
    steps = np.arange(dims)
    # Diagonal of E and the expected standard deviation of the blur (Adams et al., pages 5 and 6).
    deviation = float(f32(np.sqrt(2.0 / 3.0) * (dims + 1)))
    scale = (1.0 / np.sqrt((steps + 1.0) * (steps + 2.0)) * deviation).astype(f32)

    elevated = np.empty((dims + 1, points), f32)
    total = np.zeros(points, f32)
    for i in range(dims, 0, -1):
        scaled = features[i - 1] * scale[i - 1]
        elevated[i] = total - f32(i) * scaled
        total = total + scaled
    elevated[0] = total

    inverse = f32(1) / size
    quotient = np.rint(elevated * inverse)  # nearest remainder-0 point; ties to even
    nearest = quotient * size
    offset = elevated - nearest
    rank = np.zeros((dims + 1, points), f32)
    for i in range(dims):
        for j in range(i + 1, dims + 1):
            lower = offset[i] < offset[j]  # of two equal ones, the lower index comes first
            rank[i] += lower
            rank[j] += ~lower
    # Back onto the plane where the coordinates sum to zero.
    rank += quotient.sum(axis=0, dtype=f32)
    shift = np.where(rank < 0, size, f32(0)) - np.where(rank >= size, size, f32(0))
    rank, nearest = rank + shift, nearest + shift
    if not np.all(np.abs(nearest) <= KEY_LIMIT - dims):
        raise ValueError(
            f"features reach {np.abs(features).max():g}: their lattice keys exceed 16 bits; "
            "use larger standard deviations"
        )

    rank = rank.astype(np.int64)
    distance = (elevated - nearest) * inverse
    barycentric = np.zeros((dims + 2, points), f32)
    column = np.arange(points)
    for i in range(dims + 1):
        barycentric[dims - rank[i], column] += distance[i]
        barycentric[dims + 1 - rank[i], column] -= distance[i]
    barycentric[0] += 1 + barycentric[dims + 1]

    remainder = np.arange(dims + 1)[:, None]
    order = rank[:dims].T[:, None, :]
    canonical = np.where(order > dims - remainder, remainder - (dims + 1), remainder)
    keys = nearest[:dims].T.astype(np.int64)[:, None, :] + canonical
    return keys, barycentric[: dims + 1].T


class Lattice:
    """Permutohedral lattice over `features` (D, N) float32; filters with exp(-|f_i - f_j|²/2), unnormalised.

    When N is not a multiple of four, the vertices around feature 0 exist though no point is there: the
    original, which embeds four points at once, pads the last group with zeros. Vertices change the blur, so
    they belong to the answer.
    """

    def __init__(self, features: np.ndarray):
        features = _float32("features", features, 2)
        self.dimensions, self.points = features.shape
        if not self.dimensions or not self.points:
            raise ValueError(f"features must be (D, N) with D and N at least 1, got {features.shape}")
        if not np.isfinite(features).all():
            raise ValueError("features must be finite, got NaN or Inf")
        padding = np.zeros((self.dimensions, 1 if self.points % LANES else 0), np.float32)
        keys, weights = _embed(np.concatenate([features, padding], axis=1))
        index = KeyIndex(keys.reshape(-1, self.dimensions))
        self._keys = index.keys
        self._vertices = index.rows.reshape(-1, self.dimensions + 1)[: self.points]
        self._weights = weights[: self.points]
        self._neighbours = np.stack([self._along(index, axis) for axis in range(self.dimensions + 1)])

    def _along(self, index: KeyIndex, axis: int) -> np.ndarray:
        step = np.full(self.dimensions, -1)
        if axis < self.dimensions:
            step[axis] = self.dimensions
        return np.stack([index.find(self._keys + step), index.find(self._keys - step)])

    @property
    def vertex_count(self) -> int:
        return len(self._keys)

    def keys(self) -> np.ndarray:
        return self._keys.astype(np.int32)

    def vertices(self) -> np.ndarray:
        return self._vertices.astype(np.int32)

    def weights(self) -> np.ndarray:
        return self._weights.astype(np.float32)

    def neighbours(self) -> np.ndarray:
        return self._neighbours.astype(np.int32)

    def filter(self, values: np.ndarray, reverse: bool = False) -> np.ndarray:
        values = _float32("values", values, 2)
        if values.shape[1] != self.points:
            raise ValueError(f"values must be (C, {self.points}), got {values.shape}")
        filtered = np.empty(values.shape, np.float32)
        for channel, out in zip(values, filtered, strict=True):
            out[...] = self.filter_channel(channel, reverse)
        return filtered

    def filter_channel(self, values: np.ndarray, reverse: bool = False) -> np.ndarray:
        """Splat, blur along each axis, slice: (N,) -> (N,) float64. `reverse`: axes backwards (adjoint)."""
        rows = self._vertices.ravel()
        splat = (self._weights * values[:, None].astype(np.float64)).ravel()
        # One more row, always zero, is what a missing neighbour (-1) contributes.
        vertex = np.append(np.bincount(rows, weights=splat, minlength=self.vertex_count), 0.0)
        for n1, n2 in self._neighbours[::-1] if reverse else self._neighbours:
            vertex[:-1] += 0.5 * (vertex[n1] + vertex[n2])
        alpha = 1.0 / (1.0 + 2.0**-self.dimensions)
        return alpha * np.einsum("nj,nj->n", self._weights, vertex[self._vertices])


class _Pairwise:
    """One kernel: lattice, normalisation (one of four) and label compatibility."""

    def __init__(self, features: np.ndarray, compat: np.ndarray, normalization: int):
        self.lattice, self.compat, self.normalization = (
            Lattice(features),
            compat.astype(np.float64),
            normalization,
        )
        norm = self.lattice.filter_channel(np.ones(self.lattice.points)) + 1e-20
        self.norm = 1 / np.sqrt(norm) if normalization == NORMALIZE_SYMMETRIC else 1 / norm

    def energy(self, q: np.ndarray) -> np.ndarray:
        """compat(filter(Q)) for Q (K, N) float64."""
        if self.normalization in (NORMALIZE_BEFORE, NORMALIZE_SYMMETRIC):
            q = q * self.norm
        filtered = np.stack([self.lattice.filter_channel(channel) for channel in q])
        if self.normalization in (NORMALIZE_AFTER, NORMALIZE_SYMMETRIC):
            filtered *= self.norm
        if self.compat.ndim == 0:
            return -self.compat * filtered
        return self.compat[:, None] * filtered if self.compat.ndim == 1 else self.compat @ filtered


class DenseCRF:
    """Mean-field inference over points and labels; `deeplab_fast.pydensecrf.densecrf` is the public side."""

    def __init__(self, points: int, labels: int, width: int = 0):  # width: a hint this core has no use for
        self.points, self.labels = points, labels
        self._unary: np.ndarray | None = None
        self._pairwise: list[_Pairwise] = []

    def set_unary(self, unary: np.ndarray) -> bool:
        energy = self._checked("unary", unary, (self.labels, self.points)).astype(np.float64)
        if not np.isfinite(energy).all():
            return False
        self._unary = energy
        return True

    def set_collapse(self, eps: float) -> None:
        """No effect: nothing is merged here, which stays within any bound."""

    def add_pairwise(self, features: np.ndarray, compat: np.ndarray, normalization: int) -> None:
        features = self._checked("features", features, (len(features), self.points))
        self._pairwise.append(_Pairwise(features, compat, normalization))

    def add_gaussian(
        self, width: int, height: int, sx: float, sy: float, compat: np.ndarray, normalization: int
    ) -> None:
        self.add_pairwise(np.stack(_grid(width, height, sx, sy)), compat, normalization)

    def add_bilateral(
        self,
        width: int,
        height: int,
        sx: float,
        sy: float,
        sr: float,
        sg: float,
        sb: float,
        image: np.ndarray,
        compat: np.ndarray,
        normalization: int,
    ) -> None:
        colours = [image[..., c].ravel() / np.float32(s) for c, s in enumerate((sr, sg, sb))]
        self.add_pairwise(np.stack([*_grid(width, height, sx, sy), *colours]), compat, normalization)

    def start(self) -> np.ndarray:
        return self.inference(0)

    def step(self, q: np.ndarray) -> None:
        q[...] = self._update(self._checked("Q", q, (self.points, self.labels)).T.astype(np.float64)).T

    def inference(self, iterations: int) -> np.ndarray:
        q = _softmax(np.zeros((self.labels, self.points)) if self._unary is None else -self._unary)
        for _ in range(iterations):
            q = self._update(q)
        return q.T.astype(np.float32, order="C")

    def kl_divergence(self, q: np.ndarray) -> float:
        q = self._checked("Q", q, (self.points, self.labels)).T.astype(np.float64)
        entropy = np.sum(q * np.log(np.maximum(q, 1e-20)))
        unary = 0.0 if self._unary is None else np.sum(self._unary * q)
        return float(entropy + unary + sum(np.sum(q * kernel.energy(q)) for kernel in self._pairwise))

    def _update(self, q: np.ndarray) -> np.ndarray:
        """One iteration: Q = softmax(-U - Σ_k compat_k(filter_k(Q))) (Krähenbühl and Koltun, algorithm 1)."""
        energy = np.zeros_like(q) if self._unary is None else self._unary.copy()
        for kernel in self._pairwise:
            energy += kernel.energy(q)
        return _softmax(-energy)

    @staticmethod
    def _checked(name: str, array: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        array = _float32(name, array, 2)
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
        return array


def _float32(name: str, array: np.ndarray, ndim: int) -> np.ndarray:
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.ndim != ndim:
        raise TypeError(f"{name} must be a float32 array with {ndim} dimensions")
    return array


def _grid(width: int, height: int, sx: float, sy: float) -> list[np.ndarray]:
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return [x.ravel() / np.float32(sx), y.ravel() / np.float32(sy)]


def _softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits - logits.max(axis=0))
    return exp / exp.sum(axis=0)


def set_num_threads(count: int) -> None:
    """No effect: numpy works on one thread here."""


def get_num_threads() -> int:
    return 1


def isa() -> str:
    return "numpy"


def build_info() -> dict[str, str]:
    return {"backend": "numpy", "isa": isa()}


def release_memory() -> None:
    """No effect: numpy keeps nothing."""
