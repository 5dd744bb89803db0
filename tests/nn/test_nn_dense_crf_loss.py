"""`nn.DenseCRFLoss`: the formula by brute force, its gradient, and how it is called."""

from __future__ import annotations

import pytest
import torch
from samples import random
from torch import Tensor
from torch.nn.functional import interpolate

import deeplab_fast
from deeplab_fast import nn

SIGMAS = {"sigma_rgb": 25.0, "sigma_xy": 4.0}


def inputs(batch: int = 2, labels: int = 3, size: tuple[int, int] = (8, 9)) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth images with some noise, probabilities, and regions of interest with holes."""
    coarse = 200 * random(0, batch, 3, 3, 3)
    image = interpolate(coarse, size, mode="bilinear") + 20 * random(3, batch, 3, *size)
    prob = torch.softmax(4 * random(1, batch, labels, *size), dim=1)
    return image, prob, (random(2, batch, *size) > 0.2).float()


def features_of(image: Tensor, sigma_rgb: float | Tensor = SIGMAS["sigma_rgb"]) -> Tensor:
    """(N, 2 + C, H, W), written out once more."""
    y, x = torch.meshgrid(*(torch.arange(float(n)) for n in image.shape[2:]), indexing="ij")
    position = torch.stack([x, y]).expand(len(image), -1, -1, -1)
    return torch.cat([position / SIGMAS["sigma_xy"], image / sigma_rgb], dim=1)


def lattice_kernels(image: Tensor, sigma_rgb: float | Tensor = SIGMAS["sigma_rgb"]) -> Tensor:
    """The filter as matrices (N, P, P), a column for each unit vector."""
    points = image[0, 0].numel()
    units = torch.eye(points).reshape(1, points, *image.shape[2:]).expand(len(image), -1, -1, -1)
    filtered = deeplab_fast.reference.permutohedral_filter(units.double(), features_of(image, sigma_rgb))
    return filtered.flatten(2).transpose(1, 2)


def gaussian_kernels(image: Tensor) -> Tensor:
    """What the filter stands for: exp(-|f_i - f_j|²/2), (N, P, P)."""
    points = features_of(image).double().flatten(2).transpose(1, 2)
    return torch.exp(-torch.cdist(points, points).square() / 2)


def energy(kernels: Tensor, prob: Tensor, roi: Tensor, normalized: bool) -> Tensor:
    """The formulas of the docstring, with matrices."""
    S, m = (prob * roi[:, None]).double().flatten(2), roi.double().flatten(1)
    if not normalized:
        return -torch.einsum("nki,nij,nkj->", S, kernels, S) / len(S)
    root = kernels.sum(dim=2).rsqrt()
    kernels = root[:, :, None] * kernels * root[:, None]
    difference = torch.einsum("nij,nj->ni", kernels, m)[:, None] - torch.einsum("nij,nkj->nki", kernels, S)
    return (S * difference).sum() / m.sum()


@pytest.mark.parametrize("normalized", [False, True])
def test_is_the_formula(normalized: bool, backend: str):
    image, prob, roi = inputs()
    loss = nn.DenseCRFLoss(0.3, **SIGMAS, scale_factor=1, normalized=normalized)(image, prob, roi)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(0.3 * energy(lattice_kernels(image), prob, roi, normalized).item(), rel=1e-5)


@pytest.mark.parametrize("normalized", [False, True])
def test_is_the_gaussian_formula_within_the_lattices_error(normalized: bool):
    """|sum S'(A - G)S| is at most sum S'|A - G|S, with A the lattice's kernel and G the Gaussian one. Without
    normalisation A is that up to a constant factor: the least squares one."""
    image, prob, roi = inputs()
    lattice, exact = lattice_kernels(image), gaussian_kernels(image)
    lattice_loss, exact_loss = (energy(kernels, prob, roi, normalized) for kernels in (lattice, exact))
    loss = nn.DenseCRFLoss(1.0, **SIGMAS, scale_factor=1, normalized=normalized)(image, prob, roi)
    torch.testing.assert_close(loss.double(), lattice_loss, rtol=1e-5, atol=0)
    if normalized:
        assert abs(loss - exact_loss) < 0.15 * exact_loss
        return
    factor = (lattice * exact).sum() / exact.square().sum()
    bound = -energy((lattice - factor * exact).abs(), prob, roi, False)
    assert abs(loss - factor * exact_loss) <= bound
    assert bound < 0.35 * abs(factor * exact_loss)


@pytest.mark.parametrize("normalized", [False, True])
def test_gradient_is_exact(normalized: bool, backend: str):
    """Of -S'AS it is -(A + A')S: the lattice's A is not symmetric."""
    image, prob, roi = inputs()
    kernels = lattice_kernels(image)
    exact = prob.double().requires_grad_()
    expected = torch.autograd.grad(0.3 * energy(kernels, exact, roi, normalized), exact)[0]
    prob.requires_grad_()
    nn.DenseCRFLoss(0.3, **SIGMAS, scale_factor=1, normalized=normalized)(image, prob, roi).backward()
    torch.testing.assert_close(prob.grad.double(), expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())
    assert (prob.grad[roi[:, None].expand_as(prob) == 0] == 0).all()


@pytest.mark.parametrize("normalized", [False, True])
def test_gradient_is_a_numerical_one(normalized: bool):
    image, prob, roi = inputs(size=(12, 10))
    loss = nn.DenseCRFLoss(1.0, **SIGMAS, scale_factor=0.5, normalized=normalized)
    prob.requires_grad_()
    loss(image, prob, roi).backward()
    direction, step = random(7, *prob.shape) - 0.5, 1e-2
    with torch.no_grad():
        up, down = (loss(image, (prob + sign * step * direction).clamp(0, 1), roi).double() for sign in (1, -1))
    # The loss is quadratic, so the difference has no error but rounding's and the clamp's.
    assert (prob.grad * direction).sum().item() == pytest.approx(((up - down) / (2 * step)).item(), rel=2e-3)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 4, 12])
def test_any_number_of_channels(channels: int, normalized: bool, backend: str):
    """The formula on images of channels in different units, each with its own deviation."""
    _, prob, roi = inputs()
    stds = [0.1 * 3**channel for channel in range(channels)]
    sigma_rgb = torch.tensor(stds)[:, None, None]
    image = (3 * random(8, 2, channels, 8, 9) - 1) * sigma_rgb
    kernels = lattice_kernels(image, sigma_rgb)
    loss = nn.DenseCRFLoss(0.3, stds, SIGMAS["sigma_xy"], 1, normalized)
    expected = 0.3 * energy(kernels, prob, roi, normalized).item()
    assert loss(image, prob, roi).item() == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match=rf"sigma_rgb: is \(.*\), should be one number, or {channels + 1}, "):
        loss(torch.zeros(2, channels + 1, 8, 9), prob, roi)


def test_one_deviation_is_the_same_for_each():
    image, prob, roi = inputs()
    one, three = (nn.DenseCRFLoss(1.0, sigma, 4.0, 0.5)(image, prob, roi) for sigma in (25.0, [25.0] * 3))
    assert one == three


def test_scaling_is_that_of_the_implementations_in_use():
    """Images and regions to the nearest pixel, probabilities bilinearly, the standard deviation in position too."""
    image, prob, roi = inputs(size=(15, 18))
    scaled = (
        interpolate(image, scale_factor=0.5),
        interpolate(prob, scale_factor=0.5, mode="bilinear", align_corners=False),
        interpolate(roi[:, None], scale_factor=0.5)[:, 0],
    )
    whole = nn.DenseCRFLoss(1.0, sigma_rgb=25, sigma_xy=8, scale_factor=0.5)(image, prob, roi)
    torch.testing.assert_close(whole, nn.DenseCRFLoss(1.0, sigma_rgb=25, sigma_xy=4, scale_factor=1)(*scaled))


@pytest.mark.parametrize("normalized", [False, True])
def test_extremes(normalized: bool, backend: str):
    image, prob, roi = inputs()
    loss = nn.DenseCRFLoss(1.0, **SIGMAS, scale_factor=1, normalized=normalized)
    prob.requires_grad_()
    empty = loss(image, prob, torch.zeros_like(roi))
    empty.backward()
    assert empty == 0
    assert (prob.grad == 0).all()
    certain = torch.zeros_like(prob)
    certain[:, 1] = 1
    chance = loss(image, certain)
    assert abs(chance) < 1e-5 if normalized else chance < -10
    assert loss(image, certain, None) == loss(image, certain, torch.ones_like(roi))
    assert loss(image[:0], prob[:0], roi[:0]) == 0


def test_normalized_is_a_chance(backend: str):
    """Independent of the image's size, 0 for one class, and below 1 for labels at random."""
    loss = nn.DenseCRFLoss(1.0, **SIGMAS, scale_factor=1, normalized=True)
    values = []
    for size in ((20, 20), (40, 40)):
        labels = (4 * random(4, 1, *size)).long()
        prob = torch.nn.functional.one_hot(labels, 4).permute(0, 3, 1, 2).float()
        values.append(loss(torch.full((1, 3, *size), 90.0), prob).item())
    assert values == pytest.approx([0.7, 0.7], abs=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_and_autocast(dtype: torch.dtype):
    image, prob, roi = inputs()
    loss = nn.DenseCRFLoss(1.0, **SIGMAS, scale_factor=0.5)
    expected = loss(image, prob, roi)
    leaf = prob.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = loss(image.to(torch.uint8), leaf, roi.bool())
    result.backward()
    assert result.dtype == torch.float32
    assert leaf.grad.dtype == dtype
    assert result.item() == pytest.approx(expected.item(), rel=2e-2)


@pytest.mark.parametrize("normalized", [False, True])
def test_compiles_without_a_graph_break(normalized: bool, backend: str):
    torch.compiler.reset()
    image, prob, roi = inputs()
    loss = nn.DenseCRFLoss(1.0, **SIGMAS, scale_factor=0.5, normalized=normalized)
    results = []
    for call in (torch.compile(loss, fullgraph=True, backend="aot_eager"), loss):
        leaf = prob.clone().requires_grad_()
        value = call(image, leaf, roi)
        value.backward()
        results.append([value.detach(), leaf.grad])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma_rgb": 0}, "sigma_rgb: is 0, should be positive and finite"),
        ({"sigma_rgb": (3, float("inf"))}, "sigma_rgb: is inf, should be positive and finite"),
        ({"sigma_xy": -1}, "sigma_xy: is -1, should be positive and finite"),
        ({"scale_factor": float("nan")}, "scale_factor: is nan, should be positive and finite"),
        ({"weight": float("inf")}, "weight: is inf, should be finite"),
    ],
)
def test_refuses_parameters(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        nn.DenseCRFLoss(**{"weight": 1, **SIGMAS, "scale_factor": 1, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"images": torch.zeros(2, 0, 8, 9)},
            ValueError,
            r"images: shape is \(2, 0, 8, 9\), should be .*\(N, C, H, W\) for a tensor, with C at least 1",
        ),
        ({"images": torch.zeros(1, 3, 8, 9)}, ValueError, r"segmentations: shape .* width of images, whose shape is"),
        (
            {"images": torch.full((2, 3, 8, 9), -90.0)},
            ValueError,
            r"images: values are -90 to -90, should be in 0\.\.255",
        ),
        ({"segmentations": torch.zeros(3, 8, 9)}, ValueError, r"segmentations: shape .* should be \(N, K, H, W\)"),
        ({"segmentations": torch.zeros(2, 3, 8, 9).long()}, TypeError, "segmentations: dtype is torch.int64"),
        ({"segmentations": torch.full((2, 3, 8, 9), 2.0)}, ValueError, "segmentations: values are 2 to 2"),
        ({"rois": torch.zeros(2, 1, 8, 9)}, ValueError, r"rois: shape is \(2, 1, 8, 9\), should be \(2, 8, 9\)"),
        ({"rois": "everything"}, TypeError, "rois: is a str, should be a tensor or None"),
        ({"rois": torch.zeros(2, 8, 9, device="meta")}, ValueError, "rois: device is meta, should be cpu"),
    ],
    ids=str,
)
def test_refuses(changes: dict, error: type[Exception], message: str):
    arguments = dict(zip(("images", "segmentations", "rois"), inputs(), strict=True)) | changes
    with pytest.raises(error, match=message):
        nn.DenseCRFLoss(1.0, **SIGMAS, scale_factor=1)(**arguments)


def test_refuses_a_scale_that_leaves_nothing():
    with pytest.raises(ValueError, match=r"segmentations: shape .* scaling by 0\.1 leaves nothing"):
        nn.DenseCRFLoss(1.0, **SIGMAS, scale_factor=0.1)(*inputs())
