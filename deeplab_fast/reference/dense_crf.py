"""`dense_crf` and its gradient in plain PyTorch, to be read beside the paper.

Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011 (here:
Krähenbühl). All of it is differentiable by autograd, to features as well. The gradient written out, which is what
compiled kernels compute, equals that, but holds one Q per iteration instead of every intermediate.

Letters, and shapes of tables, are as in `deeplab_fast.reference.lattice`; K classes (labels).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deeplab_fast._arguments import (
    NO_NORMALIZATION,
    NORMALIZE_AFTER,
    NORMALIZE_BEFORE,
    NORMALIZE_SYMMETRIC,
    Compat,
    Features,
    Normalization,
    check_crf_arguments,
    sum_dtype,
)
from deeplab_fast.reference.lattice import Lattice, build_lattice
from deeplab_fast.reference.permutohedral_filter import (
    filter_backward_weights,
    in_shape_of,
    weights_backward_features,
)


@dataclass(frozen=True)
class PairwiseKernel:
    """One pairwise term: a normalised Gaussian kernel and a label compatibility (Krähenbühl, equation 2).

    Attributes:
        lattice: of the kernel's features.
        before, after: (P, 1), factors of the normalisation, or None for 1.
        compat: (), (K,) or (K, K), see `dense_crf`.
    """

    lattice: Lattice
    before: Tensor | None
    after: Tensor | None
    compat: Tensor

    def energy(self, Q: Tensor) -> Tensor:
        """Message passing and compatibility transform (Krähenbühl, algorithm 1): (P, K) -> (P, K)."""
        filtered = self.lattice.filter_rows(Q if self.before is None else self.before * Q)
        return self.transform(filtered if self.after is None else self.after * filtered)

    def transform(self, filtered: Tensor) -> Tensor:
        """The compatibility transform, (P, K) -> (P, K). It is symmetric, so its own adjoint."""
        if self.compat.ndim == 0:
            return -self.compat * filtered
        if self.compat.ndim == 1:
            return filtered * self.compat
        return filtered @ (0.5 * (self.compat + self.compat.t()))


def build_kernel(features: Tensor, compat: Tensor, normalization: int) -> PairwiseKernel:
    """Of features (D, P); `compat` is in the dtype to compute in."""
    lattice = build_lattice(features)
    before = after = None
    if normalization != NO_NORMALIZATION:
        factor = 1 / (lattice.filter_rows(compat.new_ones(features.shape[1], 1)) + 1e-20)
        if normalization == NORMALIZE_SYMMETRIC:
            factor = factor.sqrt()
        before = factor if normalization in (NORMALIZE_BEFORE, NORMALIZE_SYMMETRIC) else None
        after = factor if normalization in (NORMALIZE_AFTER, NORMALIZE_SYMMETRIC) else None
    return PairwiseKernel(lattice, before, after, compat)


def build_kernels(
    n: int, features: Sequence[Tensor], compats: Sequence[Tensor], normalizations: Sequence[int]
) -> list[PairwiseKernel]:
    """Those of image n; `features` are (N, D, *S)."""
    return [
        build_kernel(kernel_features[n].flatten(1), compat, number)
        for kernel_features, compat, number in zip(features, compats, normalizations, strict=True)
    ]


def mean_field_step(Q: Tensor, unary: Tensor, kernels: Sequence[PairwiseKernel]) -> Tensor:
    """One iteration of Krähenbühl's algorithm 1: Q, unary (P, K) -> Q (P, K)."""
    energy = unary
    for kernel in kernels:
        energy = energy + kernel.energy(Q)
    return torch.softmax(-energy, dim=1)


def dense_crf(
    unary: Tensor,
    features: Features,
    compat: Compat,
    iterations: int,
    normalization: Normalization = NORMALIZE_SYMMETRIC,
    collapse: float = 0.0,
    recompute: bool = False,
) -> Tensor:
    """Mean-field inference in a fully connected CRF with Gaussian pairwise terms, with pydensecrf's semantics.

    Q = softmax(-unary), then `iterations` times Q = softmax(-unary - sum_k compat_k(filter_k(Q))).

    Args:
        unary: (N, K, *S), floating: energies, that is, negative log probabilities.
        features: (N, D, *S), floating, in units of standard deviations; or a sequence of such, one a kernel. Lattices
            are built in float64 if unary and features are both float64, else in float32.
        compat: label compatibility of the kernel: a number w (Potts: energy -w·F, so positive attracts), a vector (K,)
            (energy +v_k·F_k, so positive repels) or a matrix (K, K) (energy +½(m+mᵀ)·F), F being the filtered Q.
            A list or a tuple holds one compat for each kernel; so a vector must be a tensor or an array.
        iterations: number of mean-field iterations, 0 or more.
        normalization: "symmetric", "before", "after", "none" or pydensecrf's number for it; or a sequence of such.
        collapse: labels that are proven to stay below this probability everywhere may be computed together; the
            reference never does. 0 to below 1.
        recompute: has no effect on the reference, whose gradients are autograd's.

    Returns:
        Q (N, K, *S), dtype and memory format of `unary`. Sums are in its dtype, but for 16-bit ones in float32.

    Raises:
        TypeError: for a tensor that is not floating, or iterations that are no integer.
        ValueError: for shapes or devices that do not fit, numbers out of range, NaN or infinite features, and lattice
            coordinates beyond ±32767.
    """
    features, compats, normalizations = check_crf_arguments(
        unary, features, compat, iterations, normalization, collapse
    )
    beliefs = []
    with torch.autocast(unary.device.type, enabled=False):
        for n, image_unary in enumerate(unary.flatten(2).transpose(1, 2).to(sum_dtype(unary))):
            kernels = build_kernels(n, features, compats, normalizations)
            Q = torch.softmax(-image_unary, dim=1)
            for _ in range(iterations):
                Q = mean_field_step(Q, image_unary, kernels)
            beliefs.append(Q.t())
    return in_shape_of(unary, beliefs)


# --- Gradient ------------------------------------------------------------------------------------------------------


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
        previous = next(beliefs, None)
        if previous is None:
            return unary_grad
        Q = previous
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
