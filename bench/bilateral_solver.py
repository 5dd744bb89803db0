"""The fast bilateral solver with scipy's sparse matrices: wheels of OpenCV's extra modules are built without it.

Barron and Poole, "The Fast Bilateral Solver" (ECCV 2016), written from the paper, to whose equations numbers refer.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def solve(
    image: np.ndarray,
    targets: np.ndarray,
    confidence: np.ndarray,
    xy_std: float = 8,
    luma_std: float = 8,
    chroma_std: float = 8,
    smoothness: float = 128,
) -> np.ndarray:
    """Maps (K, H, W) that are near `targets` where `confidence` (K, H, W) is high, and smooth where the image is.

    Args:
        image: uint8 (H, W, 3), RGB.
        targets: (K, H, W).
        confidence: (K, H, W), at least 0.
        xy_std, luma_std, chroma_std: sides of a cell of the bilateral grid.
        smoothness: lambda.
    """
    from scipy.sparse import diags
    from scipy.sparse.linalg import cg

    splat, blur = _grid(image, (xy_std, luma_std, chroma_std))
    # Bistochastization: n such that diag(n) B diag(n) has the rows' sums m (algorithm 1).
    m = np.asarray(splat.sum(axis=1)).ravel()
    n = np.ones_like(m)
    for _ in range(20):
        n = np.sqrt(n * m / (blur @ n))
    m = n * (blur @ n)
    smooth = smoothness * (diags(m) - diags(n) @ blur @ diags(n))
    solved = []
    for target, sure in zip(targets.reshape(len(targets), -1), confidence.reshape(len(targets), -1), strict=True):
        weight = splat @ sure
        A = smooth + diags(weight)  # (8)
        b = splat @ (sure * target)
        start = b / np.maximum(weight, 1e-9)
        y, _ = cg(A, b, x0=start, rtol=1e-5, maxiter=25, M=diags(1 / np.maximum(A.diagonal(), 1e-9)))
        solved.append(splat.T @ y)  # (6)
    return np.stack(solved).reshape(targets.shape).astype(np.float32)


def _grid(image: np.ndarray, sides: tuple[float, float, float]) -> tuple[Any, Any]:
    """Splatting (vertices, pixels), and the blur between a vertex and its neighbours along each axis."""
    from scipy.sparse import csr_matrix, identity

    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    red, green, blue = np.moveaxis(image.astype(np.float64), 2, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    position, brightness, colour = sides
    cells = [y / position, x / position, luma / brightness]
    cells += [0.564 * (blue - luma) / colour + 100, 0.713 * (red - luma) / colour + 100]
    coordinates = np.stack([np.floor(cell).astype(np.int64).ravel() for cell in cells])
    steps = np.cumprod([1, *(coordinates.max(axis=1)[:-1] + 2)])
    keys, vertex = np.unique(steps @ coordinates, return_inverse=True)
    pixels = height * width
    splat = csr_matrix((np.ones(pixels), (vertex.ravel(), np.arange(pixels))), (len(keys), pixels))
    blur = 2 * len(steps) * identity(len(keys), format="csr")
    for step in steps:
        place = np.minimum(np.searchsorted(keys, keys + step), len(keys) - 1)
        here = np.flatnonzero(keys[place] == keys + step)
        neighbours = csr_matrix((np.ones(len(here)), (here, place[here])), blur.shape)
        blur = blur + neighbours + neighbours.T
    return splat, blur
