"""`permutohedral_filter` slicing at other positions than it splats."""

from __future__ import annotations

import pytest
import torch
from samples import positions, random

import deeplab_fast
from deeplab_fast import permutohedral_filter, reference

SIZES = [((13, 11), (5, 6, 7)), ((8, 12), (40,)), ((1, 1), (3, 3)), ((101,), (1,)), ((5, 6, 7), (7, 9))]


def inputs(size: tuple, query_size: tuple, dimensions: int = 3, dtype: torch.dtype = torch.float32) -> tuple:
    values = random(1, 2, 3, *size) - 0.3
    features = positions(size, 2, dimensions, 5)
    query_features = positions(query_size, 2, dimensions, 6, seed=3) - 0.5
    return values.to(dtype), features.to(dtype), query_features.to(dtype)


@pytest.mark.parametrize("dimensions", [1, 2, 3, 5, 8])
@pytest.mark.parametrize(("size", "query_size"), SIZES)
def test_it_is_the_reference(size: tuple, query_size: tuple, dimensions: int, backend: str):
    values, features, queries = inputs(size, query_size, dimensions)
    out = permutohedral_filter(values, features, query_features=queries)
    assert (out.shape, out.dtype) == ((2, 3, *query_size), torch.float32)
    assert out.is_contiguous()
    exact = reference.permutohedral_filter(values.double(), features, query_features=queries)
    torch.testing.assert_close(out.double(), exact, atol=1e-5 * exact.abs().max().item(), rtol=1e-5)


def test_queries_where_the_values_are_give_what_they_give_without(backend: str):
    values, features, _ = inputs((8, 12), (1,))
    queries = features[:, :, 2:6].contiguous()
    found = permutohedral_filter(values, features, queries)
    torch.testing.assert_close(found, permutohedral_filter(values, features)[:, :, 2:6])


def test_it_is_about_the_gaussian_sum():
    """The lattice's blur is not exactly Gaussian: the sum's order of magnitude, and its order."""
    values, features, queries = inputs((30, 30), (50,), 2)
    found = permutohedral_filter(values.abs(), features, queries).flatten(2)
    distances = torch.cdist(queries.flatten(2).mT, features.flatten(2).mT)
    expected = ((-0.5 * distances**2).exp() @ values.abs().flatten(2).mT).mT
    for one, other in zip(found.flatten(0, 1), expected.flatten(0, 1), strict=True):
        assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.98


def test_far_queries_get_nothing(backend: str):
    values, features, queries = inputs((8, 12), (6,))
    assert torch.equal(permutohedral_filter(values, features, queries + 50), torch.zeros(2, 3, 6))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype, backend: str):
    values, features, queries = inputs((7, 8), (9,), dtype=dtype)
    out = permutohedral_filter(values, features, queries)
    assert out.dtype == dtype
    exact = reference.permutohedral_filter(values.double(), features.float(), query_features=queries.float())
    largest = exact.abs().max().item()
    if dtype != torch.float64:
        torch.testing.assert_close(out.double(), exact, atol=2 * torch.finfo(dtype).eps * largest, rtol=0)


def test_memory_formats_and_strides(backend: str):
    values, features, queries = inputs((8, 12), (5, 6))
    expected = permutohedral_filter(values, features, queries)
    last = torch.channels_last
    arguments = (tensor.contiguous(memory_format=last) for tensor in (values, features, queries))
    assert torch.equal(permutohedral_filter(*arguments), expected)
    assert permutohedral_filter(values[:0], features[:0], queries[:0]).shape == (0, 3, 5, 6)


def test_gradients():
    shapes = (1, 3, 3, 4), (1, 2, 3, 4), (1, 2, 5)  # at random: on a grid points lie between simplices, where it breaks
    arguments = [(2 * random(seed, *shape)).double().requires_grad_() for seed, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(permutohedral_filter, arguments, fast_mode=True)


def test_gradients_are_the_references(backend: str):
    gradients = []
    for function in (permutohedral_filter, reference.permutohedral_filter):
        values, features, queries = (t.requires_grad_() for t in inputs((6, 7), (4, 5)))
        out = function(values, features, query_features=queries)
        gradients.append(torch.autograd.grad((out * random(9, *out.shape)).sum(), [values, features, queries]))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_compiles_without_a_graph_break(backend: str):
    torch.compiler.reset()
    arguments = inputs((6, 7), (4, 5))
    compiled = torch.compile(permutohedral_filter, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), permutohedral_filter(*arguments))


@pytest.mark.cuda
def test_on_a_gpu():
    arguments = inputs((13, 11), (5, 6))
    found = permutohedral_filter(*(tensor.cuda() for tensor in arguments))
    torch.testing.assert_close(found.cpu(), permutohedral_filter(*arguments))


@pytest.mark.parametrize(
    ("queries", "error", "message"),
    [
        (torch.ones(2, 4, 5), ValueError, r"query_features: shape is \(2, 4, 5\), should be \(2, 3, \*T\)"),
        (torch.ones(1, 3, 5), ValueError, r"query_features: shape is \(1, 3, 5\), should be \(2, 3, \*T\)"),
        (torch.ones(2, 3), ValueError, r"query_features: shape is \(2, 3\)"),
        (torch.ones(2, 3, 0), ValueError, r"query_features: shape is \(2, 3, 0\)"),
        (torch.ones(2, 3, 4).int(), TypeError, r"query_features: dtype is torch\.int32, should be floating"),
        ([1.0], TypeError, "query_features: is a list, should be a tensor"),
        (torch.full((2, 3, 4), torch.nan), ValueError, r"features: .* NaN or infinite value"),
        (torch.full((2, 3, 4), 3e4), ValueError, "features: key range overflow"),
        (torch.ones(2, 3, 4, device="meta"), ValueError, "query_features: device is meta, should be cpu, that of feat"),
    ],
)
def test_refuses(queries: object, error: type, message: str, backend: str):
    values, features, _ = inputs((6, 7), (1,))
    for function in (permutohedral_filter, deeplab_fast.reference.permutohedral_filter):
        with pytest.raises(error, match=message):
            function(values, features, query_features=queries)
