"""`ops.pairwise_energy`: what it computes, its gradients, and that kernels and reference agree."""

from __future__ import annotations

import pytest
import torch
from samples import random
from torch import Tensor
from torch.nn.functional import interpolate

from deeplab_fast import ops, reference

# (N, C, H, W), D, factor: odd sizes, enlarged, sizes that 0.3 leaves little of, more channels than go at once
CASES = [
    ((2, 3, 9, 11), 5, 0.5),
    ((1, 1, 8, 8), 2, 1.0),
    ((3, 4, 13, 10), 3, 0.75),
    ((2, 2, 5, 6), 5, 2.0),
    ((1, 40, 17, 9), 5, 0.3),
    ((0, 3, 9, 11), 5, 0.5),
    ((2, 3, 7, 1), 1, 1.5),
    ((1, 3, 12, 9), 14, 0.75),  # position and twelve channels
]


def inputs(case: tuple, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, float]:
    (batch, channels, height, width), dimensions, factor = case
    size = int(height * factor), int(width * factor)
    values, features = random(0, batch, channels, height, width), 4 * random(1, batch, dimensions, *size)
    return values.to(dtype), features.to(dtype), (random(2, batch, 1, *size) > 0.3).to(dtype), factor


@pytest.mark.parametrize("with_inside", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_is_the_quadratic_form_and_its_gradient(case: tuple, with_inside: bool, backend: str):
    values, features, inside, factor = inputs(case)
    inside = inside if with_inside else None
    exact = values.double().requires_grad_()
    S = exact if factor == 1 else interpolate(exact, scale_factor=factor, mode="bilinear", align_corners=False)
    S = S if inside is None else S * inside.double()
    expected = (S * reference.permutohedral_filter(S, features)).flatten(1).sum(dim=1)
    weights = torch.arange(1.0, 1 + len(values))
    (expected * weights).sum().backward()

    values.requires_grad_()
    energy = ops.pairwise_energy(values, features, inside, factor)
    (energy * weights).sum().backward()
    torch.testing.assert_close(energy.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(values.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", [((2, 2, 5, 4), 3, 0.5), ((1, 2, 4, 3), 2, 1.0), ((1, 1, 2, 3), 5, 1.5)])
def test_gradcheck(case: tuple):
    values, features, inside, factor = inputs(case, torch.float64)
    torch.autograd.gradcheck(
        lambda v, f: ops.pairwise_energy(v, f, inside, factor),
        (values.requires_grad_(), features.requires_grad_()),
        eps=1e-7,
        atol=1e-4,
        fast_mode=True,
    )


def test_a_batch_is_its_images_and_any_number_of_threads_gives_the_same_bits():
    values, features, inside, factor = inputs(((3, 21, 90, 121), 5, 0.5))
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaf = values.clone().requires_grad_()
            energy = ops.pairwise_energy(leaf, features, inside, factor)
            energy.sum().backward()
            results.append((energy.detach(), leaf.grad))
    finally:
        torch.set_num_threads(before)
    for energy, grad in results[1:]:
        assert torch.equal(energy, results[0][0])
        assert torch.equal(grad, results[0][1])
    single = [ops.pairwise_energy(values[n : n + 1], features[n : n + 1], inside[n : n + 1], factor) for n in range(3)]
    assert torch.equal(torch.cat(single), results[0][0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_summed_in_float32(dtype: torch.dtype, backend: str):
    values, features, inside, factor = inputs(CASES[0])
    values = values.to(dtype).requires_grad_()
    energy = ops.pairwise_energy(values, features, inside, factor)
    assert energy.dtype == torch.float32
    torch.testing.assert_close(energy, ops.pairwise_energy(values.detach().float(), features, inside, factor))
    energy.sum().backward()
    assert values.grad.dtype == dtype


@pytest.mark.parametrize("case", [CASES[0], CASES[1]])
def test_opcheck(case: tuple):
    values, features, inside, factor = inputs(case)
    arguments = (values.requires_grad_(), features, inside, factor)
    torch.library.opcheck(torch.ops.deeplab_fast.pairwise_energy.default, arguments)
    gradient = random(3, *features.shape[:1], values.shape[1], *features.shape[2:])
    torch.library.opcheck(
        torch.ops.deeplab_fast.pairwise_energy_backward.default,
        (random(4, len(values)), gradient, list(values.shape[2:]), factor),
    )


def test_refuses_what_does_not_fit():
    values, features, inside, factor = inputs(CASES[0])
    with pytest.raises(ValueError, match=r"features: shape is .* should be \(2, D, 9, 11\)"):
        ops.pairwise_energy(values, features, inside, 1.0)
    op = torch.ops.deeplab_fast
    with pytest.raises((ValueError, RuntimeError), match="inside: should be"):
        op.pairwise_energy(values, features, inside[..., :-1], factor)
    with pytest.raises((ValueError, RuntimeError), match="factor"):
        op.pairwise_energy(values, features, inside, -1.0)
    with pytest.raises((ValueError, RuntimeError), match="gradient: should be"):
        op.pairwise_energy_backward(torch.ones(2), torch.ones(2, 3, 4, 4), [9, 11], factor)
