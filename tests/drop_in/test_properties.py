"""Random inputs: the ops against the reference, in any shape, layout, dtype and range of features."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from samples import LAYOUTS, CRFSample, FilterSample, Kernel, assert_crf_accurate, assert_filter_accurate

import deeplab_fast
from deeplab_fast import reference

# Standard deviations over four decades: of features that range over 300, as pixels do.
spreads = st.floats(-2, 2).map(lambda exponent: 3 * 10**exponent)
sizes = st.one_of(
    st.tuples(st.integers(1, 60)),
    st.tuples(st.integers(1, 14), st.integers(1, 14)),
    st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)),
)
dtypes = st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64])
layouts = st.sampled_from(sorted(LAYOUTS))


def fits(layout: str, size: tuple[int, ...]) -> bool:
    return {"channels_last": len(size) == 2, "transposed": len(size) > 1}.get(layout, True)


@given(
    st.builds(
        FilterSample,
        name=st.just("random"),
        batch=st.integers(0, 3),
        channels=st.integers(1, 20),
        size=sizes,
        dimensions=st.integers(1, 9),
        spread=spreads,
        dtype=dtypes,
        feature_dtype=dtypes,
        layout=layouts,
    )
)
def test_permutohedral_filter(sample: FilterSample):
    assume(fits(sample.layout, sample.size))
    values, features = sample.inputs()
    assert_filter_accurate(deeplab_fast.permutohedral_filter(values, features), values, features)


kernels = st.builds(
    Kernel,
    dimensions=st.integers(1, 8),
    compat=st.one_of(st.floats(-3, 8), st.sampled_from(["vector", "matrix"])),
    normalization=st.integers(0, 3),
    spread=spreads,
)


@given(
    st.builds(
        CRFSample,
        name=st.just("random"),
        labels=st.one_of(st.integers(1, 9), st.integers(1, 60)),
        batch=st.integers(0, 2),
        size=sizes,
        kernels=st.lists(kernels, max_size=3).map(tuple),
        iterations=st.integers(0, 8),
        dtype=dtypes,
        feature_dtype=dtypes,
        layout=layouts,
        alike=st.one_of(st.just(0), st.integers(0, 60)),
    )
)
def test_dense_crf(sample: CRFSample):
    assume(fits(sample.layout, sample.size) and sample.alike <= sample.labels)
    inputs = sample.inputs()
    assert_crf_accurate(deeplab_fast.dense_crf(*inputs), *inputs)


@given(
    dimensions=st.integers(1, 8),
    dimension=st.integers(0, 7),
    exponent=st.floats(3, 38),
    sign=st.sampled_from([-1, 1]),
)
def test_key_overflow_raises_in_kernel_and_reference_alike(dimensions: int, dimension: int, exponent: float, sign: int):
    assume(dimension < dimensions)
    features = torch.zeros(1, dimensions, 6)
    features[0, dimension, 4] = sign * 10**exponent
    values = torch.ones(1, 1, 6)
    results, refusals = [], []
    for function in (deeplab_fast.permutohedral_filter, reference.permutohedral_filter):
        try:
            results.append(function(values, features))
        except ValueError as error:
            refusals.append("key range overflow" in str(error))
    if refusals:
        assert refusals == [True, True]
    else:
        torch.testing.assert_close(*results)
        assert exponent < 5


@given(
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    dimensions=st.integers(1, 6),
    position=st.integers(0, 10**6),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
)
def test_features_that_are_not_finite_raise(dtype: torch.dtype, dimensions: int, position: int, value: float):
    features = torch.zeros(2, dimensions, 7, dtype=dtype)
    features.view(-1)[position % features.numel()] = value
    unary = torch.zeros(2, 2, 7, dtype=dtype)
    with pytest.raises(ValueError, match=r"NaN or infinite"):
        deeplab_fast.permutohedral_filter(unary, features)
    with pytest.raises(ValueError, match=r"NaN or infinite"):
        deeplab_fast.dense_crf(unary, features, 1.0, 1)
