"""The gradients of the dense CRF in plain PyTorch, written out: what compiled kernels compute, and what it takes.

They equal what autograd makes of `deeplab_fast.reference.crf`, but hold one Q per iteration instead of every
intermediate. Letters, and shapes of tables, are as there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from deeplab_fast._arguments import NORMALIZE_SYMMETRIC, sum_dtype
from deeplab_fast.reference.crf import (
    Lattice,
    PairwiseKernel,
    build_kernels,
    build_lattice,
    elevate,
    embedding_scales,
    find_simplex,
    in_shape_of,
    mean_field_step,
)


def permutohedral_filter_backward_features(
    grad: Tensor, values: Tensor, features: Tensor, reverse: bool = False
) -> Tensor:
    """Gradient of sum(grad · permutohedral_filter(values, features, reverse)) to the features.

    Args:
        grad, values: (N, C, *S), floating.
        features: (N, D, *S), floating.
        reverse: as the filter's.

    Returns:
        (N, D, *S), dtype of `features`, or float32 for 16-bit ones.
    """
    dtype = sum_dtype(values)
    gradients = []
    for image_grad, image, image_features in zip(
        grad.flatten(2).to(dtype), values.flatten(2).to(dtype), features.flatten(2), strict=True
    ):
        lattice = build_lattice(image_features)
        weights = filter_backward_weights(lattice, image.t(), image_grad.t(), reverse)
        gradients.append(weights_backward_features(weights, image_features))
    return in_shape_of(features.to(sum_dtype(features)), gradients)


def filter_backward_weights(lattice: Lattice, rows: Tensor, grad: Tensor, reverse: bool = False) -> Tensor:
    """Gradient of sum(grad · filter(rows)), both (P, C), to the barycentric weights: (P, D+1).

    The weights occur twice: slicing a vertex, its gradient meets the vertex's blurred value; splatting to it, the value
    meets the gradient that comes back to the vertex.
    """
    blurred = lattice.blur(lattice.splat(rows), reverse)
    back = lattice.blur(lattice.splat(grad), not reverse)
    by_remainder = [
        (grad * blurred[vertex]).sum(dim=1) + (rows * back[vertex]).sum(dim=1) for vertex in lattice.vertices.t()
    ]
    return torch.stack(by_remainder, dim=1) / (1 + 2.0 ** -lattice.keys.shape[1])


def weights_backward_features(weights_grad: Tensor, features: Tensor) -> Tensor:
    """From a gradient to barycentric weights (P, D+1) to one to features: (D, P), dtype of the lattice.

    Within its simplex a point's weights are linear in its features, by the steps of `build_lattice` in reverse.
    """
    features = features.to(sum_dtype(features))
    size = len(features) + 1
    _, rank = find_simplex(elevate(features))
    by_vertex = weights_grad.to(features.dtype).t().flip(0)
    by_rank = by_vertex - by_vertex.roll(1, dims=0)
    elevated = by_rank.gather(0, rank) / size
    axis = torch.arange(1, size, device=features.device, dtype=features.dtype)[:, None]
    scaled = elevated.cumsum(dim=0)[:-1] - axis * elevated[1:]
    return scaled * scaled.new_tensor(embedding_scales(size - 1, features.dtype))[:, None]


# --- Mean field ----------------------------------------------------------------------------------------------------


def dense_crf_history(
    unary: Tensor,
    features: Sequence[Tensor],
    compat: Sequence[Tensor],
    iterations: int,
    normalization: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """`dense_crf`, and Q after each iteration, which its gradient needs.

    Returns:
        Q (N, K, *S) as `dense_crf` gives it, and the history (iterations, N, P, K), in the dtype of sums.
    """
    shape = (iterations, len(unary), math.prod(unary.shape[2:]), unary.shape[1])
    history = unary.new_empty(shape, dtype=sum_dtype(unary))
    beliefs = []
    for n, image_unary in enumerate(_rows(unary)):
        kernels = build_kernels(n, features, compat, normalization)
        Q = torch.softmax(-image_unary, dim=1)
        for iteration in range(iterations):
            Q = history[iteration, n] = mean_field_step(Q, image_unary, kernels)
        beliefs.append(Q.t())
    return in_shape_of(unary, beliefs), history


def dense_crf_backward(
    grad: Tensor,
    unary: Tensor,
    features: Sequence[Tensor],
    compat: Sequence[Tensor],
    iterations: int,
    normalization: Sequence[int],
    history: Tensor | None,
    need_features: bool,
    need_compat: bool,
) -> list[Tensor]:
    """Gradients of sum(grad · dense_crf(unary, …)).

    Args:
        history: of `dense_crf_history`; or None: Q is computed again, and about 2·sqrt(iterations) of them held.
        need_features, need_compat: whether to compute these gradients at all.

    Returns:
        The gradient to unary (shape and dtype of it); if needed those to the features of each kernel, (N, D, *S); and
        if needed those to the compat of each kernel, in its shape.
    """
    images: list[Tensor] = []
    features_grads: list[list[Tensor]] = [[] for _ in features]
    compat_grads = [torch.zeros_like(kernel_compat) for kernel_compat in compat]
    for n, (image_grad, image_unary) in enumerate(zip(_rows(grad), _rows(unary), strict=True)):
        kernels = build_kernels(n, features, compat, normalization)
        gradients = [
            _KernelGradient(kernel, total, need_features, need_compat)
            for kernel, total in zip(kernels, compat_grads, strict=True)
        ]
        if history is None:
            beliefs = _in_reverse(image_unary, kernels, iterations)
        else:
            beliefs = iter([*history[:, n].flip(0), torch.softmax(-image_unary, dim=1)])
        images.append(_image_backward(image_grad, beliefs, gradients).t())
        for k in range(len(features)) if need_features else ():
            features_grads[k].append(gradients[k].to_features(features[k][n].flatten(1), normalization[k]))
    result = [in_shape_of(unary, images)]
    if need_features:
        result += [
            in_shape_of(kernel_features.to(sum_dtype(kernel_features)), kernel_grads)
            for kernel_features, kernel_grads in zip(features, features_grads, strict=True)
        ]
    return result + compat_grads if need_compat else result


def _rows(maps: Tensor) -> Tensor:
    """(N, K, *S) -> (N, P, K), in the dtype of sums."""
    return maps.flatten(2).transpose(1, 2).to(sum_dtype(maps))


def _image_backward(grad: Tensor, beliefs: Iterator[Tensor], kernels: Sequence[_KernelGradient]) -> Tensor:
    """From the gradient to the last Q to that to the unary, both (P, K); `beliefs` are Q from the last to the first."""
    Q = next(beliefs)
    unary_grad = torch.zeros_like(grad)
    while True:
        energy_grad = -Q * (grad - (grad * Q).sum(dim=1, keepdim=True))  # of Q = softmax(-energy)
        unary_grad = unary_grad + energy_grad
        Q = next(beliefs, None)
        if Q is None:
            return unary_grad
        grad = torch.zeros_like(grad)
        for kernel in kernels:
            grad = grad + kernel.step(energy_grad, Q)


def _in_reverse(unary: Tensor, kernels: Sequence[PairwiseKernel], iterations: int) -> Iterator[Tensor]:
    """Q after the last iteration, the one before, …, and softmax(-unary); from checkpoints some iterations apart."""
    Q = torch.softmax(-unary, dim=1)
    stride = math.isqrt(max(iterations, 1) - 1) + 1
    checkpoints = [Q]
    for iteration in range(1, iterations + 1):
        Q = mean_field_step(Q, unary, kernels)
        if iteration % stride == 0:
            checkpoints.append(Q)
    count = iterations % stride
    while checkpoints:
        beliefs = [checkpoints.pop()]
        for _ in range(count):
            beliefs.append(mean_field_step(beliefs[-1], unary, kernels))
        count = stride - 1
        yield from reversed(beliefs)


class _KernelGradient:
    """What the iterations of one image add to the gradients of one pairwise term."""

    def __init__(self, kernel: PairwiseKernel, compat_grad: Tensor, need_features: bool, need_compat: bool):
        """`compat_grad` is added to in place."""
        self.kernel, self.compat_grad = kernel, compat_grad
        self.need_features, self.need_compat = need_features, need_compat
        barycentric = kernel.lattice.barycentric
        self.weights = torch.zeros_like(barycentric, dtype=compat_grad.dtype)
        self.normalization = self.weights.new_zeros(len(barycentric), 1)  # to the factors, before and after together

    def step(self, energy_grad: Tensor, Q: Tensor) -> Tensor:
        """One iteration: from the gradient to its energies to that to the Q it started from, both (P, K)."""
        kernel, lattice = self.kernel, self.kernel.lattice
        before = 1.0 if kernel.before is None else kernel.before
        after = 1.0 if kernel.after is None else kernel.after
        rows, out_grad = before * Q, kernel.transform(energy_grad)
        rows_grad = lattice.filter_rows(after * out_grad, reverse=True)
        if self.need_features or self.need_compat:
            filtered = lattice.filter_rows(rows)
            self._add_compat(energy_grad, after * filtered)
        if self.need_features:
            self.weights += filter_backward_weights(lattice, rows, after * out_grad)
            if kernel.after is not None:
                self.normalization += (out_grad * filtered).sum(dim=1, keepdim=True)
            if kernel.before is not None:
                self.normalization += (rows_grad * Q).sum(dim=1, keepdim=True)
        return before * rows_grad

    def _add_compat(self, energy_grad: Tensor, filtered: Tensor) -> None:
        if self.compat_grad.ndim == 0:
            self.compat_grad -= (energy_grad * filtered).sum()
        elif self.compat_grad.ndim == 1:
            self.compat_grad += (energy_grad * filtered).sum(dim=0)
        else:
            outer = filtered.t() @ energy_grad
            self.compat_grad += 0.5 * (outer + outer.t())

    def to_features(self, features: Tensor, normalization: int) -> Tensor:
        """After the last step: the gradient to features (D, P)."""
        lattice, weights = self.kernel.lattice, self.weights
        factor = self.kernel.after if self.kernel.before is None else self.kernel.before
        if factor is not None:  # n^-1 or n^-1/2, where n is what filtering makes of ones
            derivative = -0.5 * factor**3 if normalization == NORMALIZE_SYMMETRIC else -(factor**2)
            weights = weights + filter_backward_weights(
                lattice, torch.ones_like(factor), derivative * self.normalization
            )
        return weights_backward_features(weights, features)
