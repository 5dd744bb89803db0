"""The CUDA kernels of the dense CRF, compiled for and run on the host: all but the launch, without a GPU."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_headers import tools_for_the_host
from host_kernels import build, filter_on_host, photo_features, pointer, run_crf
from photos import photo, scores
from samples import CRF_SAMPLES, FILTER_SAMPLES, CRFSample, FilterSample, Kernel, by_name, positions, random
from torch import Tensor

import deeplab_fast
from deeplab_fast import ops, reference
from deeplab_fast._arguments import lattice_dtype

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
SMALL = [s for s in CRF_SAMPLES if s.dtype == s.feature_dtype == torch.float32 and s.batch > 0]
FILTERS = [s for s in FILTER_SAMPLES if s.dtype in FLOATS and s.feature_dtype in FLOATS and s.batch > 0]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    flags = os.environ.get("CRF_CUDA_FLAGS", "").split()
    return build(tmp_path_factory.mktemp("cuda"), *flags)


def test_under_address_sanitizer():
    """A few of these tests, in a process that AddressSanitizer watches."""
    compiler, _ = tools_for_the_host()
    libraries = [
        subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    # g++ repeats the name of a library it does not have; some distributions package the sanitizers apart.
    if not all(Path(library).is_absolute() for library in libraries):
        pytest.skip("AddressSanitizer's library is not there")
    environment = dict(
        os.environ, CRF_CUDA_FLAGS="-fsanitize=address -g", LD_PRELOAD=" ".join(libraries),
        ASAN_OPTIONS="detect_leaks=0:use_sigaltstack=0:detect_stack_use_after_return=0",
    )  # fmt: skip
    chosen = [
        "test_gradients[mixed_kernels-1]",
        "test_mean_field[one_pixel]",
        "test_filter[image-True]",
        "test_pairwise_energy",
    ]
    arguments = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*arguments, *(f"{__file__}::{name}" for name in chosen)], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(chosen)} passed" in result.stdout


# --- The lattice ---------------------------------------------------------------------------------------------------


LATTICES = {sample.name: sample.inputs()[1].float() for sample in FILTERS} | {
    "photo": photo_features(40, 50, 67, 3),
    "photo_odd": photo_features(23, 33, 80, 13),
    "noise": 40 * random(3, 1, 5, 9, 11),
    "nine_dimensions": positions((6, 5), 2, 9, 4),
}


@pytest.mark.parametrize("name", LATTICES)
def test_lattice_is_that_of_the_reference(name: str, kernels: ctypes.CDLL):
    """The same vertices, weights and neighbours, bit for bit, whatever the vertices' numbers."""
    features = LATTICES[name].contiguous()
    images, dimensions, points, taps = (
        features.shape[0],
        features.shape[1],
        features[0, 0].numel(),
        features.shape[1] + 1,
    )
    room = (points + 1) * images * taps
    count = ctypes.c_int64()
    vertex = torch.full((images, points, taps), -1, dtype=torch.int32)
    weight = torch.full((images, points, taps), float("nan"))
    neighbour = torch.full((2 * taps * room,), -2, dtype=torch.int32)
    status = kernels.lattice(
        pointer(features), dimensions, ctypes.c_int64(images), ctypes.c_int64(points), ctypes.byref(count),
        pointer(vertex), pointer(weight), pointer(neighbour),
    )  # fmt: skip
    assert status == 0
    expected = [reference.build_lattice(image.flatten(1)) for image in features]
    assert count.value == sum(lattice.vertex_count for lattice in expected)
    neighbour = neighbour[: 2 * taps * count.value].reshape(taps, 2, count.value)
    for n, lattice in enumerate(expected):
        assert torch.equal(weight[n], lattice.barycentric)
        # Which of our vertices is each of theirs: by the points that touch it, then along the axes.
        ours = torch.full((lattice.vertex_count,), -1, dtype=torch.long)
        ours[lattice.vertices.flatten()] = vertex[n].flatten().long()
        assert torch.equal(ours[lattice.vertices], vertex[n].long())
        theirs = lattice.neighbours
        known = (ours >= 0).nonzero().flatten()
        assert len(ours[known].unique()) == len(known)
        for axis in range(taps):
            for side in range(2):
                next_theirs, next_ours = theirs[axis, side][known], neighbour[axis, side][ours[known]].long()
                assert torch.equal(next_theirs == lattice.vertex_count, next_ours == -1)
                there = next_theirs < lattice.vertex_count
                touched = ours[next_theirs[there]]
                assert torch.equal(touched[touched >= 0], next_ours[there][touched >= 0])


@pytest.mark.parametrize(("value", "status"), [(float("nan"), 1), (float("inf"), 1), (3e4, 2), (-1e20, 2)])
@pytest.mark.parametrize("capturing", [False, True])
def test_features_that_are_not_valid(value: float, status: int, capturing: bool, kernels: ctypes.CDLL):
    unary, features, *rest = CRFSample("").inputs()
    features[0][1, 2, 3, 4] = value
    found, (Q,) = run_crf(kernels, (unary, features, *rest), capturing=capturing)
    assert found == (0 if capturing else status)
    if capturing:
        assert Q[1].isnan().any()
        assert not Q[0].isnan().any()


# --- The filter ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sample", FILTERS, ids=by_name)
def test_filter(sample: FilterSample, reverse: bool, kernels: ctypes.CDLL):
    values, features = (tensor.float() for tensor in sample.inputs())
    grad = random(8, *values.shape)
    exact = reference.permutohedral_filter(values.double(), features, reverse)
    result = filter_on_host(kernels, values, features, int(reverse)).double()
    torch.testing.assert_close(result, exact, rtol=1e-5, atol=1e-5 * exact.abs().max().item())
    exact = reference.permutohedral_filter_backward_features(grad.double(), values.double(), features, reverse).double()
    result = filter_on_host(kernels, values, features, int(reverse), grad)
    assert (result - exact).abs().max() <= 1e-4 * exact.abs().max() + 1e-4


@pytest.mark.parametrize("sample", FILTERS, ids=by_name)
def test_both_ways_on_one_lattice_are_one_way_and_the_other(sample: FilterSample, kernels: ctypes.CDLL):
    values, features = sample.inputs()
    there, back, both = (filter_on_host(kernels, values, features, way) for way in range(3))
    torch.testing.assert_close(both, there + back, rtol=1e-6, atol=1e-6 * both.abs().max().item())


def test_pairwise_energy(kernels: ctypes.CDLL):
    """As the op puts it together on a GPU, beside the CPU's kernel."""
    values, features = random(0, 2, 21, 33, 26), 4 * random(1, 2, 5, 16, 13)
    inside = (random(2, 2, 1, 16, 13) > 0.3).float()
    results = reference.pairwise_energy(
        values, features, inside, 0.5, lambda S, features: filter_on_host(kernels, S, features, way=2)
    )
    for result, expected in zip(results, ops.define.OPS["pairwise_energy"](values, features, inside, 0.5), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


# --- Mean field ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", SMALL, ids=by_name)
def test_mean_field(sample: CRFSample, kernels: ctypes.CDLL):
    inputs = sample.inputs()
    status, (Q,) = run_crf(kernels, inputs)
    assert status == 0
    assert (Q - deeplab_fast.dense_crf(*inputs)).abs().max() <= 1e-4


@pytest.mark.parametrize("labels", [40, 70, 182, 200])
@pytest.mark.parametrize("compat", [1.0, "vector", "matrix"])
def test_many_labels(labels: int, compat: float | str, kernels: ctypes.CDLL):
    inputs = CRFSample("", labels=labels, size=(5, 6), kernels=(Kernel(compat=compat),), iterations=2).inputs()
    _, (Q,) = run_crf(kernels, inputs)
    assert (Q - deeplab_fast.dense_crf(*inputs)).abs().max() <= 1e-4


@pytest.mark.parametrize("preset", [(67, 3, 4, 1, 3), (80, 13, 10, 3, 3)], ids=["deeplab", "psa"])
def test_photo(preset: tuple[float, ...], kernels: ctypes.CDLL):
    bi_xy, bi_rgb, bi_w, xy, w = preset
    prob = torch.from_numpy(scores(photo("coffee", 31, 42), 21)).clamp(1e-5, 1)[None]
    features = [photo_features(31, 42, xy, 1)[:, :2], photo_features(31, 42, bi_xy, bi_rgb)]
    inputs = (-prob.log(), features, [torch.tensor(float(w)), torch.tensor(float(bi_w))], 10, [3, 3])
    expected = deeplab_fast.dense_crf(*inputs)
    for rows, tolerance in ((torch.float32, 1e-4), (torch.float16, 2e-2), (torch.bfloat16, 6e-2)):
        _, (Q,) = run_crf(kernels, inputs, rows=rows)
        assert (Q - expected).abs().max() <= tolerance
        assert np.isclose(Q.sum(dim=1), 1, atol=1e-5).all()


def test_batch_is_as_single_images(kernels: ctypes.CDLL):
    unary, features, *rest = CRFSample("", batch=3, size=(13, 9)).inputs()
    _, (together,) = run_crf(kernels, (unary, features, *rest))
    for n in range(3):
        _, (alone,) = run_crf(kernels, (unary[n : n + 1], [f[n : n + 1] for f in features], *rest))
        assert torch.equal(alone[0], together[n])


def test_same_bits_every_time(kernels: ctypes.CDLL):
    """Threads and warps come by in another order each time; so they would while a graph is captured."""
    inputs = CRFSample("").inputs()
    grad = random(8, *inputs[0].shape)
    _, expected = run_crf(kernels, inputs, grad)
    for options in ({}, {"capturing": 1}, {"recompute": 1}):
        _, again = run_crf(kernels, inputs, grad, **options)
        assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


# --- Gradients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [0, 1])
@pytest.mark.parametrize("sample", SMALL, ids=by_name)
def test_gradients(sample: CRFSample, recompute: int, kernels: ctypes.CDLL):
    inputs = unary, features, compat, iterations, normalization = sample.inputs()
    grad = random(8, *unary.shape) - 0.5
    status, (_, *gradients) = run_crf(kernels, inputs, grad, recompute=recompute)
    assert status == 0
    lattices = [f.to(lattice_dtype(f, unary)) for f in features]

    def backward(dtype: torch.dtype) -> list[Tensor]:
        return reference.dense_crf_backward(
            grad.to(dtype), unary.to(dtype), lattices, [c.to(dtype) for c in compat], iterations, normalization, None,
            True, True,
        )  # fmt: skip

    points = unary[0, 0].numel()
    for result, own, exact in zip(gradients, backward(torch.float32), backward(torch.float64), strict=True):
        error, own_error = ((g.double() - exact).abs().max().item() for g in (result, own))
        # Gradients to compat are sums over all points, of both signs.
        terms = exact.abs().max().item() + (iterations * points) ** 0.5 * (exact.ndim < 3)
        assert error <= 2 * own_error + 16 * torch.finfo(torch.float32).eps * terms
