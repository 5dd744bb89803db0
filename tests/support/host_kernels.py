"""The CUDA kernels of the dense CRF compiled for the host (tests/native/dense_crf_host.cpp), and calls of them."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import torch
from cuda_headers import tools_for_the_host
from photos import photo
from places import CSRC, NATIVE
from torch import Tensor

ROWS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def build(folder: Path, *flags: str, counting: bool = False) -> ctypes.CDLL:
    """The library; one that counts what the kernels do (tests/native/counting.h) if wanted."""
    compiler, include = tools_for_the_host()
    common = [compiler, "-std=c++20", "-O1", "-fPIC", "-I", CSRC, "-I", NATIVE, "-isystem", include]
    sources = [(NATIVE / "dense_crf_host.cpp", ["-ffp-contract=off", *flags])]
    if counting:
        called_at_every_access = ["-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0", "-DCOUNTING"]
        called_at_every_access += ["-fno-tree-sra", "-fno-ipa-sra"]  # which make several stores of a store of 16 bytes
        sources = [(sources[0][0], [*sources[0][1], *called_at_every_access]), (NATIVE / "counting.cpp", [])]
    objects = []
    for source, own in sources:
        objects.append(folder / f"{source.stem}.o")
        subprocess.run([*common, *own, "-c", source, "-o", objects[-1]], check=True)
    library = folder / "check.so"
    subprocess.run([compiler, "-shared", *flags, *objects, "-o", library], check=True)
    return ctypes.CDLL(str(library))


class Call(ctypes.Structure):
    """As in dense_crf_host.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("images", "points")),
        *(
            (name, ctypes.c_int32)
            for name in (
                "labels", "iterations", "terms", "rows", "capturing", "recompute", "need_features", "need_compat"
            )
        ),
        ("features", ctypes.c_void_p * 4),
        ("dimensions", ctypes.c_int32 * 4),
        ("compat", ctypes.c_void_p * 4),
        ("compat_dimensions", ctypes.c_int32 * 4),
        ("normalization", ctypes.c_int32 * 4),
        *((name, ctypes.c_void_p) for name in ("unary", "grad", "q", "to_unary")),
        ("to_features", ctypes.c_void_p * 4),
        ("to_compat", ctypes.c_void_p * 4),
    )  # fmt: skip


def pointer(tensor: Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())


def four(tensors: list[Tensor]) -> ctypes.Array:
    return (ctypes.c_void_p * 4)(*(tensor.data_ptr() for tensor in tensors))


def run_crf(
    kernels: ctypes.CDLL, inputs: tuple, grad: Tensor | None = None, rows: torch.dtype = torch.float32, **options: int
) -> tuple[int, list[Tensor]]:
    """Status, and Q with, if a gradient is given, those to unary, features and compat."""
    unary, features, compat, iterations, normalization = inputs
    unary, features = unary.float().contiguous(), [f.float().contiguous() for f in features]
    compat = [c.float().contiguous() for c in compat]
    out = [torch.empty_like(unary), torch.empty_like(unary)]
    to_features, to_compat = [torch.empty_like(f) for f in features], [torch.empty_like(c) for c in compat]
    int4 = ctypes.c_int32 * 4
    call = Call(
        images=unary.shape[0], points=unary[0, 0].numel(), labels=unary.shape[1], iterations=iterations,
        terms=len(features), rows=ROWS[rows], need_features=1, need_compat=1, features=four(features),
        dimensions=int4(*(f.shape[1] for f in features)), compat=four(compat),
        compat_dimensions=int4(*(c.ndim for c in compat)), normalization=int4(*normalization), unary=unary.data_ptr(),
        grad=None if grad is None else grad.data_ptr(), q=out[0].data_ptr(), to_unary=out[1].data_ptr(),
        to_features=four(to_features), to_compat=four(to_compat),
    )  # fmt: skip
    for name, value in options.items():
        setattr(call, name, value)
    status = kernels.dense_crf(ctypes.byref(call))
    return status, out[:1] if grad is None else [*out, *to_features, *to_compat]


def photo_features(height: int, width: int, xy: float, rgb: float) -> Tensor:
    image = torch.from_numpy(photo("coffee", height, width).copy()).permute(2, 0, 1).float()
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    return torch.cat([torch.stack([x, y]) / xy, image / rgb])[None]


def filter_on_host(
    kernels: ctypes.CDLL,
    values: Tensor,
    features: Tensor,
    way: int,
    grad: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Ways: A, its adjoint, or A + Aᵀ; with a gradient, that to the features."""
    values, features = values.float().contiguous(), features.float().contiguous()
    out = torch.empty_like(values if grad is None else features) if out is None else out
    status = kernels.filter(
        pointer(values), pointer(grad), pointer(features), values.shape[1], features.shape[1],
        ctypes.c_int64(values.shape[0]), ctypes.c_int64(values[0, 0].numel()), way, pointer(out),
    )  # fmt: skip
    assert status == 0
    return out
