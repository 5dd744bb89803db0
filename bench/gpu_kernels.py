"""What the CUDA kernels of lattice, dense CRF and upsampling do, on paper: a `Launch` for each launch, in order.

Bytes are those of 32-byte sectors between the L2 cache and the multiprocessors: a sector that a warp reads again comes
from its L1, one that it writes by two instructions goes out twice. `once` counts every sector that a launch touches one
time, which is what memory has to bring where nothing is in the L2. `tests/bench/test_gpu_model.py` has the kernels
themselves, on the host, count the same, which holds these formulas.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

SECTOR, WARP, FLOAT = 32, 32, 4
PIECE = 64  # entries that one group of threads splats: kPiece in csrc/lattice/permutohedral_filter.cuh


@dataclass(frozen=True)
class Launch:
    """One launch. `chain`: accesses of one thread that each wait for the one before, and miss the L1."""

    kernel: str
    threads: int
    read: float = 0.0
    written: float = 0.0
    once: float = 0.0
    flops: float = 0.0
    chain: int = 1
    launches: int = 1  # of a library's function
    symbol: str = ""  # of the compiled kernel, as far as it tells which registers it has
    matrix: bool = False  # products of matrix units
    programs: int = 0  # of Triton: blocks of this many threads, and their shared memory, bytes
    block: int = 256
    shared: int = 0

    @property
    def moved(self) -> float:
        return self.read + self.written


# --- Sectors -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1000)
def row_bytes(size: int, step: int | None = None) -> float:
    """Bytes of the sectors that `size` bytes touch, on average over the rows of an array `step` bytes apart."""
    step = step or size
    begins = [step * i % SECTOR for i in range(SECTOR)]
    return sum(math.ceil((begin + size) / SECTOR) for begin in begins) / len(begins) * SECTOR


def distinct(draws: float, of: float) -> float:
    """How many different ones are drawn, of so many, at random."""
    return 0.0 if of <= 0 else of * (1 - math.exp(-draws / of))


def group_of(labels: int) -> int:
    """Threads that share a row of labels: csrc/cuda/common.cuh."""
    return next((group for group in (4, 8, 16) if labels <= group), 32)


@dataclass(frozen=True)
class Rows:
    """Rows of labels, [rows][labels], as groups of threads see them."""

    labels: int
    size: int = FLOAT

    @property
    def group(self) -> int:
        return group_of(self.labels)

    @property
    def per_warp(self) -> int:
        return WARP // self.group

    @property
    def bytes(self) -> int:
        return self.labels * self.size

    @property
    def gathered(self) -> float:
        """Bytes of a row that lies anywhere."""
        return row_bytes(self.bytes)

    def streamed(self) -> float:
        """Bytes a row, of rows one after the other: a warp has `per_warp` of them."""
        return row_bytes(self.per_warp * self.bytes) / self.per_warp

    def stored(self) -> float:
        """The same of a store: an instruction for every `group` labels."""
        if self.labels <= self.group:
            return self.streamed()
        blocks = [min(self.group, self.labels - first) for first in range(0, self.labels, self.group)]
        return sum(row_bytes(block * self.size, self.bytes) for block in blocks)


# --- The lattice ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LatticeShape:
    """The lattices of a batch, as far as kernels' traffic depends on them."""

    images: int
    points: int  # of one image
    dimensions: int
    vertices: int
    near: dict[int, float]  # of so many entries one after the other, how many are of different vertices, on average
    # Of so many sorted entries one after the other, of how many points they are, in how many runs of neighbours.
    places: dict[int, tuple[float, float]]
    runs: float  # of sorted entries, the part followed by the next point's of the same vertex
    present: float  # part of the neighbours that exist
    cut: int  # vertices whose entries lie in several pieces
    of_cut: int  # entries of these in their first pieces
    carried: int  # pieces that go on with a vertex of an earlier piece
    longest: int  # pieces of one vertex, at most

    @property
    def corners(self) -> int:
        return self.dimensions + 1

    @property
    def all_points(self) -> int:
        return self.images * self.points

    @property
    def entries(self) -> int:
        return self.all_points * self.corners

    @property
    def all_entries(self) -> int:
        return self.entries + (self.images * self.corners if self.points % 4 else 0)

    @property
    def pieces(self) -> int:
        return self.images * math.ceil(self.points * self.corners / PIECE)

    @property
    def table(self) -> int:
        least = 2 * self.all_entries // self.images
        return max(64, 1 << (least - 1).bit_length())

    def near_bytes(self, rows: Rows) -> float:
        """Of a vertex's row among those of vertices near it: narrow ones share sectors, more so in smooth images.

        The constants are fitted to what the kernels do on the host.
        """
        return min(rows.gathered, rows.bytes + SECTOR * (0.65 - 0.4 * self.runs))

    def near_of(self, entries: int) -> float:
        return self.near.get(entries) or np.interp(entries, [0, *self.near], [0, *self.near.values()]).item()


def lattice_shape(features: np.ndarray) -> LatticeShape:
    """Of one image's features (D, P), float32, in units of standard deviations."""
    from deeplab_fast import _densecrf

    dimensions, points = features.shape
    lattice = _densecrf.Lattice(np.ascontiguousarray(features, np.float32))
    vertex = np.asarray(lattice.vertices()).reshape(-1)
    order = np.argsort(vertex, kind="stable")
    by_vertex, point = vertex[order], order // (dimensions + 1)
    starts = np.arange(0, len(vertex), PIECE)
    goes_on = (starts > 0) & (by_vertex[starts] == by_vertex[np.maximum(starts, 1) - 1])
    cut = np.unique(by_vertex[starts[goes_on]])
    first = np.searchsorted(by_vertex, cut)
    whole = by_vertex[starts] == by_vertex[np.minimum(starts + PIECE, len(vertex)) - 1]
    return LatticeShape(
        images=1,
        points=points,
        dimensions=dimensions,
        vertices=len(lattice.keys()),
        near={n: _near(vertex, n) for n in (2, 4, 8, 16, 32, *(k * (dimensions + 1) for k in (1, 2, 4, 8)))},
        places={n: _places(point, n) for n in (PIECE * k for k in (1, 2, 4, 8))},
        runs=float(np.mean((np.diff(by_vertex) == 0) & (np.diff(point) == 1))),
        present=float(np.mean(np.asarray(lattice.neighbours()) >= 0)),
        cut=len(cut),
        of_cut=int(np.sum(first // PIECE * PIECE + PIECE - first)),
        carried=int(goes_on.sum()),
        longest=_longest(goes_on, whole),
    )


def _near(vertex: np.ndarray, count: int) -> float:
    rows = np.sort(vertex[: len(vertex) // count * count].reshape(-1, count), axis=1)
    return float(np.mean((np.diff(rows, axis=1) != 0).sum(axis=1) + 1)) if len(rows) else 0.0


def _places(point: np.ndarray, count: int) -> tuple[float, float]:
    count = min(count, len(point))
    rows = np.sort(point[: len(point) // count * count].reshape(-1, count), axis=1)
    step = np.diff(rows, axis=1)
    return float(np.mean((step != 0).sum(axis=1) + 1)), float(np.mean((step > 1).sum(axis=1) + 1))


def _longest(goes_on: np.ndarray, whole: np.ndarray) -> int:
    """Pieces one after the other that go on with the same vertex."""
    longest = now = 0
    for on, full in zip(goes_on.tolist(), whole.tolist(), strict=True):
        now = now + 1 if on else 0
        longest = max(longest, now)
        now = now if full else 0
    return longest + 1


def build(lattice: LatticeShape) -> Iterator[Launch]:
    """As LatticeOnDevice does it (csrc/lattice/on_device.cuh)."""
    D, c, M, E, A = lattice.dimensions, lattice.corners, lattice.vertices, lattice.entries, lattice.all_entries
    located = A // c
    key = 2 * -(-D // 8) * 8  # bytes
    tables = lattice.images * lattice.table * FLOAT
    yield Launch("memset", 0, 0, tables, tables, launches=3)
    yield Launch(
        "locate_points_kernel", located + (0 if lattice.points % 4 else lattice.images),
        read=FLOAT * D * lattice.all_points,
        written=SECTOR * located * c * (key / 16 + 1),  # of each store every thread has a sector of its own
        once=FLOAT * D * lattice.all_points + located * c * (key + FLOAT),
        flops=located * (4 * D + 1.5 * D * c + 22 * c), chain=2, symbol=f"locate_points_kernelILi{D if D <= 6 else 0}E",
    )  # fmt: skip
    gathered = A * lattice.near_of(WARP)  # a sector for every vertex of a warp
    slots = min(SECTOR * M, tables)
    yield Launch(
        "insert_keys_kernel", A, read=key * A + 2 * gathered, written=FLOAT * A + SECTOR * M,
        once=key * A + 2 * slots + FLOAT * A, chain=4, symbol="insert_keys_kernel",
    )  # fmt: skip
    yield Launch(
        "mark_owners_kernel", A + 1, read=FLOAT * A + gathered, written=FLOAT * A, once=2 * FLOAT * A + slots,
        chain=2, symbol="mark_owners_kernel",
    )  # fmt: skip
    yield Launch("cub scan", A + 1, read=FLOAT * A, written=FLOAT * A, once=FLOAT * A, launches=2)
    yield Launch(
        "number_entries_kernel", A, read=FLOAT * A + 2 * gathered, written=FLOAT * E + 2 * FLOAT * M,
        once=2 * FLOAT * A + 2 * slots, chain=3, symbol="number_entries_kernel",
    )  # fmt: skip
    found = 2 * lattice.present
    yield Launch(
        "find_neighbours_kernel", M * c,
        # Its vertex's own key; a slot on either side; of those found the key and the number.
        read=M * (FLOAT + SECTOR) + M * c * SECTOR * (2 + found * (2 - lattice.runs)),
        written=M * c / WARP * 2 * c * row_bytes(FLOAT * WARP // c, FLOAT),
        once=M * (FLOAT + 2 * SECTOR) + SECTOR * distinct(2 * M * c * (1 - lattice.present), tables / SECTOR)
        + 2 * FLOAT * M * c, chain=8,
        symbol="find_neighbours_kernel",
    )  # fmt: skip
    yield Launch("count_entries_kernel", E, written=FLOAT * E, once=FLOAT * E, symbol="count_entries_kernel")
    passes = math.ceil(max(M - 1, 1).bit_length() / 8)
    pairs = 2 * FLOAT * E
    yield Launch(
        "cub sort", E, read=FLOAT * E + passes * pairs, written=passes * pairs, once=2 * pairs, launches=2 + passes
    )


def splat(lattice: LatticeShape, rows: Rows, source: Rows, factor: bool) -> Iterator[Launch]:
    c, E, K, pieces = lattice.corners, lattice.entries, rows.labels, lattice.pieces
    blocks = math.ceil(K / rows.group)
    warps = pieces * blocks / rows.per_warp
    points, runs = lattice.places[PIECE * rows.per_warp]  # of a warp
    edge = SECTOR - FLOAT  # of a run, what its sectors have besides

    def gathered(size: int) -> float:
        return warps * (points * size + runs * (edge if size % SECTOR else 0))

    rows_read = gathered(source.bytes)
    if blocks > 1:  # a part of each row
        rows_read = warps * points * source.stored() / blocks
    listed = warps * rows.per_warp * (2 * PIECE * FLOAT + SECTOR / 2)
    factors = gathered(FLOAT) if factor else 0.0
    whole_rows = lattice.vertices * rows.gathered if rows.group >= K else lattice.vertices * rows.stored()
    yield Launch(
        "splat_kernel", pieces * blocks * rows.group,
        read=listed + gathered(FLOAT * c) + factors + rows_read,
        written=whole_rows + lattice.carried * rows.gathered,
        once=3 * FLOAT * E + lattice.all_points * source.bytes + lattice.vertices * rows.bytes,
        flops=E * K * (3 if factor else 2), chain=PIECE, symbol="splat_kernelIff",
    )  # fmt: skip
    threads = (pieces + lattice.images * c) * K
    # A piece's threads, one a label, may lie in several warps.
    split = (WARP + K - 1) / WARP
    ends = pieces * split * 2 * SECTOR
    own = FLOAT + FLOAT * c + (FLOAT if factor else 0)
    at_once = min(8, 1 << max(0, round(math.log2(WARP / K))))  # pieces of a warp, which look at the same points again
    again = lattice.places[PIECE * at_once][0] / (PIECE * at_once)
    of_cut = split * (own + edge * (1 - lattice.runs)) + source.bytes + edge * (split - lattice.runs)
    of_cut = split * lattice.cut * PIECE * FLOAT + again * lattice.of_cut * of_cut
    yield Launch(
        "add_carried_kernel", threads, read=ends + of_cut + split * lattice.carried * (SECTOR + Rows(K).gathered),
        written=lattice.cut * rows.gathered,
        once=pieces * 2 * SECTOR + lattice.cut * (PIECE * FLOAT + SECTOR) + lattice.carried * (SECTOR + FLOAT * K)
        + distinct(lattice.of_cut, lattice.all_points) * (source.bytes + own),
        flops=lattice.of_cut * (3 if factor else 2) * K + lattice.carried * K,
        chain=2 + (PIECE if lattice.cut else 0) + 2 * lattice.longest, symbol="add_carried_kernelIff",
    )  # fmt: skip


def blur(lattice: LatticeShape, rows: Rows) -> Iterator[Launch]:
    M = lattice.vertices
    neighbours = M / rows.per_warp * distinct(
        2 * lattice.present * rows.per_warp * lattice.near_bytes(rows) / SECTOR, M * rows.bytes / SECTOR
    ) * SECTOR  # fmt: skip
    once = 2 * FLOAT * M + 2 * M * rows.bytes
    for _ in range(lattice.corners):
        yield Launch(
            "blur_kernel", M * rows.group,
            read=2 * M * row_bytes(FLOAT * rows.per_warp) / rows.per_warp + M * rows.streamed() + neighbours,
            written=M * rows.stored(), once=once, flops=3 * M * rows.labels, chain=2, symbol="blur_kernelIf",
        )  # fmt: skip


def _sliced(lattice: LatticeShape, rows: Rows) -> float:
    """Bytes read to slice: the vertices' numbers and weights, and their rows."""
    entries = rows.per_warp * lattice.corners
    warps = lattice.all_points / rows.per_warp
    return warps * (2 * row_bytes(FLOAT * entries) + lattice.near_of(entries) * lattice.near_bytes(rows))


def slice_(lattice: LatticeShape, rows: Rows, factor: bool, add: bool = False) -> Launch:
    P, c, K = lattice.all_points, lattice.corners, rows.labels
    out = Rows(K)
    factors = P * row_bytes(FLOAT * rows.per_warp) / rows.per_warp if factor else 0.0
    return Launch(
        "slice_kernel", P * rows.group, read=_sliced(lattice, rows) + factors + (P * out.streamed() if add else 0.0),
        written=P * out.stored(), once=2 * FLOAT * P * c + lattice.vertices * rows.bytes + P * out.bytes,
        flops=P * K * (2 * c + 1 + add), chain=2 * math.ceil(c / 4), symbol="slice_kernelIf",
    )  # fmt: skip


def rows_of_maps(points: int, labels: int, kernel: str = "rows_of_maps_kernel") -> Launch:
    """Also back: one side is read or written a number a row at a time."""
    maps, rows = FLOAT * labels * points, points * labels * min(SECTOR, FLOAT * labels)
    there = kernel == "rows_of_maps_kernel"
    return Launch(
        kernel, points * labels, read=maps if there else rows, written=rows if there else maps, once=2 * maps,
        flops=points * labels if there else 0.0, symbol=f"{kernel}If",
    )  # fmt: skip


def filter_rows(
    lattice: LatticeShape, rows: Rows, source: Rows | None = None, factor: bool = False
) -> Iterator[Launch]:
    yield from splat(lattice, rows, source or Rows(rows.labels), factor)
    yield from blur(lattice, rows)


def permutohedral_filter(lattice: LatticeShape, channels: int) -> Iterator[Launch]:
    """The op, forward."""
    rows = Rows(channels)
    yield from build(lattice)
    yield rows_of_maps(lattice.all_points, channels)
    yield from filter_rows(lattice, rows)
    yield slice_(lattice, rows, factor=False)
    yield rows_of_maps(lattice.all_points, channels, "maps_of_rows_kernel")


def filter_both_ways(lattice: LatticeShape, channels: int) -> Iterator[Launch]:
    """What pairwise_energy has of it."""
    rows = Rows(channels)
    yield from build(lattice)
    yield rows_of_maps(lattice.all_points, channels)
    yield from splat(lattice, rows, rows, factor=False)
    for add in (False, True):
        yield from blur(lattice, rows)
        yield slice_(lattice, rows, factor=False, add=add)
    yield rows_of_maps(lattice.all_points, channels, "maps_of_rows_kernel")


# --- The dense CRF -------------------------------------------------------------------------------------------------


def _mean_field(lattices: Sequence[LatticeShape], rows: Rows, last: bool) -> Launch:
    P, K, g, terms = lattices[0].all_points, rows.labels, rows.group, len(lattices)
    constants = terms * (row_bytes(FLOAT * rows.per_warp) + SECTOR) / rows.per_warp  # factors, Potts weights
    read = P * (Rows(K).streamed() + constants) + sum(_sliced(lattice, rows) for lattice in lattices)
    tables = sum(2 * FLOAT * lattice.entries + lattice.vertices * rows.bytes for lattice in lattices)
    out = Rows(K) if last else rows
    corners = sum(lattice.corners for lattice in lattices)
    return Launch(
        "mean_field_kernel", P * g, read=read, written=P * out.stored(),
        once=tables + P * (FLOAT * K + FLOAT * terms + out.bytes),
        flops=P * K * (2 * corners + 3 * terms + 4) + P * g * (math.log2(g) + terms + 1),
        chain=1 + sum(2 * math.ceil(lattice.corners / 4) for lattice in lattices),
        symbol=f"mean_field_kernelIfLi{math.ceil(K / 32)}E",
    )  # fmt: skip


def dense_crf(lattices: Sequence[LatticeShape], labels: int, iterations: int, size: int = FLOAT) -> Iterator[Launch]:
    """The op, forward: Potts weights, symmetric normalisation, float32 or (`size` 2) 16 bits between iterations."""
    P, K, g = lattices[0].all_points, labels, group_of(labels)
    rows, one = Rows(K, size), Rows(1)
    yield rows_of_maps(P, K)
    for lattice in lattices:
        yield from build(lattice)
        yield Launch("fill_kernel", P, written=FLOAT * P, once=FLOAT * P, symbol="fill_kernel")
        yield from filter_rows(lattice, one)
        yield slice_(lattice, one, factor=False)
        yield Launch(
            "normalization_kernel", P, FLOAT * P, FLOAT * P, 2 * FLOAT * P, chain=1, symbol="normalization_kernel"
        )
    yield Launch(
        "softmax_kernel", P * g, P * Rows(K).streamed(), P * rows.stored(), P * (FLOAT * K + rows.bytes),
        flops=P * (6 * K + g * (math.log2(g) + 1)), chain=3, symbol="softmax_kernelIf",
    )  # fmt: skip
    for iteration in range(iterations):
        for lattice in lattices:
            yield from filter_rows(lattice, rows, rows, factor=True)
        yield _mean_field(lattices, rows, last=iteration == iterations - 1)
    yield rows_of_maps(P, K, "maps_of_rows_kernel")


# --- Upsampling ----------------------------------------------------------------------------------------------------


def upsample(op: str, classes: int, source: tuple[int, int], size: tuple[int, int]) -> Iterator[Launch]:
    """Contiguous float32 logits of one image: a thread a pixel, a warp along a line of it."""
    pixels, logits = size[0] * size[1], classes * source[0] * source[1]
    passes = 2 if op == "upsample_softmax" else 1
    # Of every class two pieces of lines, which 32 pixels of the result look at.
    line = row_bytes(math.ceil(WARP * source[1] / size[1] + 1) * FLOAT, FLOAT)
    written = (FLOAT * classes if passes == 2 else 8) * pixels
    yield Launch(
        f"{op}_kernel", pixels, read=pixels / WARP * classes * 2 * line, written=written,
        once=FLOAT * logits + written, flops=pixels * classes * (9 * passes + (6 if passes == 2 else 0)),
        chain=passes * math.ceil(classes / 4), symbol=f"{op}_kernelIf",
    )  # fmt: skip


def together(launches: Sequence[Launch]) -> Launch:
    """Several launches of one kernel as one line."""
    sums: dict[str, Any] = {
        name: sum(getattr(launch, name) for launch in launches)
        for name in ("threads", "read", "written", "once", "flops", "launches")
    }
    return replace(launches[0], **sums, chain=max(launch.chain for launch in launches))
