"""What the ops accept: checks of shapes, dtypes and devices, with errors that name the argument.

Nothing here looks at elements, so the checks also run on the tensors without data that `torch.compile` traces with;
checks elsewhere that do look first ask `may_look_at_values`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from deeplab_fast.errors import ArgumentError, ArgumentTypeError

NO_NORMALIZATION, NORMALIZE_BEFORE, NORMALIZE_AFTER, NORMALIZE_SYMMETRIC = range(4)  # pydensecrf's numbers
NORMALIZATIONS = {
    "none": NO_NORMALIZATION,
    "before": NORMALIZE_BEFORE,
    "after": NORMALIZE_AFTER,
    "symmetric": NORMALIZE_SYMMETRIC,
}

Features = Tensor | Sequence[Tensor]
# One kernel's (number, vector, matrix; a tensor or an array), or a list or tuple of such, one a kernel.
Compat = Any
Normalization = int | str | Sequence[int | str]


def sum_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype to compute in: float64 for float64, else float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def lattice_dtype(features: Tensor, maps: Tensor) -> torch.dtype:
    """The dtype to place points in the lattice in: float64 if features and values are both float64, else float32."""
    return torch.float64 if features.dtype == maps.dtype == torch.float64 else torch.float32


def check_filter_arguments(values: Tensor, features: Tensor) -> None:
    """Raise TypeError or ValueError for what `permutohedral_filter` cannot take; values of elements aside."""
    _check_maps("values", values, "C")
    _check_features("features", features, "values", values)


def check_query_features(query_features: Tensor, features: Tensor) -> None:
    """Raise TypeError or ValueError for what cannot be queried of points with these features; values aside."""
    check_floating("query_features", query_features)
    fits = query_features.ndim >= 3 and query_features.shape[:2] == features.shape[:2]
    if not fits or 0 in query_features.shape[2:]:
        wanted = f"({features.shape[0]}, {features.shape[1]}, *T) with every axis of T at least 1, to go with features"
        raise ArgumentError("query_features", shape_of(query_features), wanted, what="shape")
    check_device("query_features", query_features, "features", features)


def check_crf_arguments(
    unary: Tensor,
    features: Features,
    compat: Compat,
    iterations: int,
    normalization: Normalization,
    collapse: float,
) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Raise TypeError or ValueError for what `dense_crf` cannot take; values of elements aside.

    Returns:
        features in the dtype of their lattices, compats in the dtype of sums and on the unary's device, and
        normalization numbers: one of each a kernel.
    """
    _check_maps("unary", unary, "K")
    if isinstance(features, Tensor):
        features = [features]
    names = ["features"] if len(features) == 1 else [f"features[{k}]" for k in range(len(features))]
    for name, kernel_features in zip(names, features, strict=True):
        _check_features(name, kernel_features, "unary", unary)

    compats = compat if isinstance(compat, list | tuple) else [compat]
    if len(compats) != len(features):
        few = f"has {len(compats)} entries for {len(features)} features, should have one for each; a list counts as "
        text = few + "one compat a kernel, so a vector should be a tensor or an array"
        raise ArgumentError("compat", len(compats), str(len(features)), what="length", text=text)
    if isinstance(normalization, int | str):
        normalization = [normalization] * len(features)
    if len(normalization) != len(features):
        text = f"has {len(normalization)} entries for {len(features)} features, should have one for each"
        raise ArgumentError("normalization", len(normalization), str(len(features)), what="length", text=text)
    if isinstance(iterations, bool) or not hasattr(iterations, "__index__"):
        raise ArgumentTypeError("iterations", iterations, "an integer")
    if iterations < 0:
        raise ArgumentError("iterations", iterations, "0 or more")
    if not 0 <= collapse < 1:
        raise ArgumentError("collapse", collapse, "at least 0 and less than 1")
    return (
        [kernel_features.to(lattice_dtype(kernel_features, unary)) for kernel_features in features],
        [_checked_compat(value, unary) for value in compats],
        [_normalization_number(value) for value in normalization],
    )


def may_look_at_values(tensor: Tensor) -> bool:
    """Whether the tensor's values are there, and the host may wait for them.

    They are not while torch.compile or torch.export traces, nor in fake and meta tensors, which may lie on a GPU that
    this machine does not have: whether a CUDA graph is being captured, when nothing may wait, is the driver's to say.
    """
    if torch.compiler.is_compiling() or tensor.is_meta or is_fake(tensor):
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def check_floating(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise ArgumentTypeError(name, type(tensor), "a tensor")
    if not tensor.is_floating_point():
        raise ArgumentTypeError(name, tensor.dtype, "floating", what="dtype")


def check_device(name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    if tensor.device != like.device:
        raise ArgumentError(name, tensor.device, f"{like.device}, that of {like_name}", what="device")


def _check_maps(name: str, maps: Tensor, channels: str) -> None:
    check_floating(name, maps)
    if maps.ndim < 3 or 0 in maps.shape[1:]:
        wanted = f"(N, {channels}, *S) with {channels} and every axis of S at least 1"
        raise ArgumentError(name, shape_of(maps), wanted, what="shape")


def _check_features(name: str, features: Tensor, maps_name: str, maps: Tensor) -> None:
    check_floating(name, features)
    fits = features.ndim == maps.ndim and features.shape[1] > 0
    if not fits or features.shape[0] != maps.shape[0] or features.shape[2:] != maps.shape[2:]:
        wanted = ", ".join(["D" if axis == 1 else str(size) for axis, size in enumerate(maps.shape)])
        wanted = f"({wanted}) with D at least 1, to go with {maps_name}"
        raise ArgumentError(name, shape_of(features), wanted, what="shape")
    check_device(name, features, maps_name, maps)


def _checked_compat(compat: Any, unary: Tensor) -> Tensor:
    if isinstance(compat, int | float):  # filled in on the device: a copy to it could not be captured in a CUDA graph
        compat = torch.full((), compat, dtype=sum_dtype(unary), device=unary.device)
    if not isinstance(compat, Tensor):
        try:
            compat = torch.as_tensor(compat, dtype=sum_dtype(unary), device=unary.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ArgumentTypeError("compat", compat, "a number, a vector or a matrix") from error
    check_floating("compat", compat)
    labels = unary.shape[1]
    if compat.ndim > 2 or any(size != labels for size in compat.shape):
        wanted = f"(), ({labels},) or ({labels}, {labels}) for {labels} labels"
        raise ArgumentError("compat", shape_of(compat), wanted, what="shape")
    if compat.ndim > 0:
        check_device("compat", compat, "unary", unary)
    return compat.to(device=unary.device, dtype=sum_dtype(unary))


def _normalization_number(normalization: int | str) -> int:
    number = NORMALIZATIONS.get(normalization, -1) if isinstance(normalization, str) else int(normalization)
    if not 0 <= number <= 3:
        raise ArgumentError("normalization", normalization, f"one of {', '.join(NORMALIZATIONS)}, or 0 to 3")
    return number
