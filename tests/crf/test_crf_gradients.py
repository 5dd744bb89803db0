"""Gradients of `permutohedral_filter` and `dense_crf`: numerical ones, autograd, compilation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from samples import CRFSample, FilterSample, Kernel, random
from torch import Tensor

import deeplab_fast
from deeplab_fast import reference

SMALL = CRFSample("small", size=(3, 5), labels=3, iterations=3)
FORMS = [
    (name, compat) for name in ("none", "before", "after", "symmetric") for compat in ("number", "vector", "matrix")
]


def scattered(features: Tensor) -> Tensor:
    """In float64 and away from where points change simplices: the grid of `positions` has many on the border."""
    noise = torch.rand(features.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return features.double() + 0.1 * noise


def leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def crf_inputs(kernels: tuple[Kernel, ...], **options) -> tuple[list[Tensor], Callable[..., Tensor]]:
    """Float64 leaves (unary, then features and compat of each kernel), and `dense_crf` as a function of them."""
    sample = CRFSample("", size=(3, 5), labels=3, iterations=3, kernels=kernels)
    unary, features, compat, iterations, normalization = sample.inputs()
    tensors = leaves([unary.double(), *map(scattered, features), *(c.double() for c in compat)])

    def infer(unary: Tensor, *rest: Tensor) -> Tensor:
        features, compat = list(rest[: len(kernels)]), list(rest[len(kernels) :])
        return deeplab_fast.dense_crf(unary, features, compat, iterations, normalization, **options)

    return tensors, infer


# --- Against numerical gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4, 5])
def test_filter_gradcheck(dimensions: int):
    values, features = FilterSample("", size=(3, 5), dimensions=dimensions).inputs()
    inputs = leaves([values.double(), scattered(features)])
    assert torch.autograd.gradcheck(deeplab_fast.permutohedral_filter, inputs, fast_mode=dimensions > 2)


@pytest.mark.parametrize(("normalization", "compat"), FORMS)
def test_crf_gradcheck(normalization: str, compat: str):
    number = ["none", "before", "after", "symmetric"].index(normalization)
    tensors, infer = crf_inputs((Kernel(3, 2.0 if compat == "number" else compat, number),))
    assert torch.autograd.gradcheck(infer, tensors, fast_mode=True)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "kernels",
    [
        (),
        (Kernel(1, 2.0, 3),),
        (Kernel(5, "matrix", 3), Kernel(2, 1.5, 3)),
        (Kernel(4, "vector", 1), Kernel(2, "matrix", 2), Kernel(1, 1.0, 0)),
    ],
    ids=lambda kernels: f"{len(kernels)}",
)
def test_crf_gradcheck_of_several_kernels(kernels: tuple[Kernel, ...], recompute: bool):
    tensors, infer = crf_inputs(kernels, recompute=recompute)
    assert torch.autograd.gradcheck(infer, tensors, fast_mode=True)


# --- Written out, and by autograd ----------------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", [0, 1, 2, 5, 9, 10])
def test_written_out_gradient_is_that_of_autograd(iterations: int):
    kernels = (Kernel(3, "matrix", 3), Kernel(2, 2.0, 1), Kernel(2, "vector", 2))
    unary, features, compat, _, normalization = CRFSample("", size=(4, 5), kernels=kernels).inputs()
    unary, features, compat = unary.double(), [scattered(f) for f in features], [c.double() for c in compat]
    grad = random(8, *unary.shape).double()
    tensors = leaves([unary, *features, *compat])
    Q = reference.dense_crf(tensors[0], tensors[1:4], tensors[4:], iterations, normalization)
    expected = torch.autograd.grad(Q, tensors, grad, materialize_grads=True)

    Q, history = reference.dense_crf_history(unary, features, compat, iterations, normalization)
    assert history.shape == (iterations, 2, 20, 4)
    for held in (history, None):
        gradients = reference.dense_crf_backward(
            grad, unary, features, compat, iterations, normalization, held, True, True
        )
        # In float64; sums are taken in another order.
        torch.testing.assert_close(gradients, list(expected), rtol=1e-9, atol=1e-12)


# --- Autograd and compile ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("needed", ["unary", "features", "compat"])
def test_only_what_is_asked_for(needed: str, backend: str):
    unary, features, compat, iterations, normalization = SMALL.inputs()
    wanted = {"unary": [unary], "features": features[1:], "compat": compat[:1]}[needed]
    for tensor in wanted:
        tensor.requires_grad_()
    deeplab_fast.dense_crf(unary, features, compat, iterations, normalization).square().sum().backward()
    for tensor in [unary, *features, *compat]:
        assert (tensor.grad is not None) == any(tensor is other for other in wanted)
    assert all(tensor.grad.abs().sum() > 0 for tensor in wanted)


def test_gradients_to_sigmas_and_image(backend: str):
    """What layers do: features are made of an image and of standard deviations that learn."""
    generator = torch.Generator().manual_seed(0)
    image = 255 * torch.rand(1, 3, 6, 7, generator=generator)
    position = torch.stack(torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij"))[None]
    tensors = leaves([image, torch.tensor(30.0), torch.tensor(4.0), random(3, 1, 4, 6, 7)])
    image, sigma_rgb, sigma_xy, prob = tensors
    features = torch.cat([position / sigma_xy, image / sigma_rgb], dim=1)
    deeplab_fast.dense_crf(-prob.clamp(min=1e-5).log(), features, 3.0, 4).square().sum().backward()
    assert all(torch.isfinite(tensor.grad).all() and tensor.grad.abs().sum() > 0 for tensor in tensors)


def test_one_label_has_no_gradient(backend: str):
    """Its belief is 1, whatever the inputs."""
    kernels = (Kernel(3, "matrix", 3), Kernel(2, 2.0, 1))
    unary, features, compat, iterations, normalization = CRFSample("", labels=1, kernels=kernels).inputs()
    tensors = leaves([unary, *features, *compat])
    Q = deeplab_fast.dense_crf(tensors[0], tensors[1:3], tensors[3:], iterations, normalization)
    torch.testing.assert_close(Q, torch.ones_like(Q))
    for grad in torch.autograd.grad(Q, tensors, random(8, *Q.shape)):
        torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_have_their_inputs_dtypes(dtype: torch.dtype, backend: str):
    unary, features, compat, iterations, normalization = SMALL.inputs()
    unary, *rest = leaves([unary.to(dtype), *(f.to(dtype) for f in features), *compat])
    deeplab_fast.dense_crf(unary, rest[:2], rest[2:], iterations, normalization).square().sum().backward()
    for tensor in [unary, *rest]:
        assert tensor.grad.dtype == tensor.dtype
        assert torch.isfinite(tensor.grad).all()


def test_collapse_is_ignored_where_a_gradient_is_needed(backend: str):
    unary, features, compat, iterations, normalization = SMALL.inputs()
    arguments = (features, compat, iterations, normalization)
    expected = deeplab_fast.dense_crf(unary.requires_grad_(), *arguments)
    torch.testing.assert_close(deeplab_fast.dense_crf(unary, *arguments, collapse=0.5), expected, rtol=0, atol=0)
    assert (deeplab_fast.dense_crf(unary.detach(), *arguments) - expected).abs().max() < 1e-6


def test_recompute_holds_no_history(backend: str):
    unary, features, compat, iterations, normalization = SMALL.inputs()
    held = {}
    for recompute in (False, True):
        leaf = unary.clone().requires_grad_()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.shape) or t, lambda t: t):
            Q = deeplab_fast.dense_crf(leaf, features, compat, iterations, normalization, recompute=recompute)
            Q.square().sum().backward()
        held[recompute] = ((3, 2, 15, 3) in sizes, leaf.grad)
    assert held[False][0]
    assert not held[True][0]
    torch.testing.assert_close(held[True][1], held[False][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("recompute", [False, True])
def test_compiles_without_a_graph_break(recompute: bool, backend: str):
    torch.compiler.reset()
    unary, features, compat, iterations, normalization = SMALL.inputs()

    def infer(unary: Tensor, features: list[Tensor], compat: list[Tensor]) -> Tensor:
        return deeplab_fast.dense_crf(unary, features, compat, iterations, normalization, recompute=recompute)

    results = []
    for function in (torch.compile(infer, fullgraph=True, backend="aot_eager"), infer):
        tensors = leaves([unary, *features, *compat])
        Q = function(tensors[0], tensors[1:3], tensors[3:])
        Q.square().sum().backward()
        results.append([Q, *(tensor.grad for tensor in tensors)])
    torch.testing.assert_close(*results)


def test_opcheck(backend: str):
    unary, features, compat, iterations, normalization = SMALL.inputs()
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    grad = random(8, *unary.shape)

    def check(name: str, *arguments: object) -> None:
        torch.library.opcheck(getattr(torch.ops.deeplab_fast, name).default, arguments, test_utils=tests)

    leaf, *rest = leaves([unary, *features, *compat])
    arguments = (iterations, normalization)
    check("dense_crf", leaf, rest[:2], rest[2:], *arguments)
    check("dense_crf", leaf, rest[:2], rest[2:], *arguments, 0.1)
    check("dense_crf_history", leaf, rest[:2], rest[2:], *arguments)
    history = torch.ops.deeplab_fast.dense_crf_history(unary, features, compat, *arguments)[1]
    for held, need_features, need_compat in ((history, True, True), (None, False, True), (history, True, False)):
        check("dense_crf_backward", grad, unary, features, compat, *arguments, held, need_features, need_compat)
    check("permutohedral_filter_backward_features", grad, unary, features[0])
    check("permutohedral_filter", leaf, rest[0])


def test_empty_batch(backend: str):
    unary, features, compat, iterations, normalization = CRFSample("", batch=0).inputs()
    tensors = leaves([unary, *features, *compat])
    deeplab_fast.dense_crf(tensors[0], tensors[1:3], tensors[3:], iterations, normalization).sum().backward()
    assert [tensor.grad.shape for tensor in tensors] == [tensor.shape for tensor in tensors]
    assert all((tensor.grad == 0).all() for tensor in tensors[3:])
