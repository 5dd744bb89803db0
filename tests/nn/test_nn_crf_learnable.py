"""`nn.DenseCRF` with gradients, and as a layer that learns (CRF as RNN)."""

from __future__ import annotations

import pytest
import torch
from samples import random
from torch import Tensor
from torch.nn.functional import interpolate, nll_loss

from deeplab_fast import nn

SMALL = {"iterations": 3, "bi_xy_std": 10, "bi_rgb_std": 20}


def inputs(batch: int = 2, labels: int = 3, size: tuple[int, int] = (9, 11)) -> tuple[Tensor, Tensor]:
    """Images in 0..255, and probabilities."""
    return 255 * random(0, batch, 3, *size), torch.softmax(3 * random(1, batch, labels, *size), dim=1)


def learnable(**options) -> nn.DenseCRF:
    return nn.DenseCRF(**{**SMALL, "learnable": True, "num_classes": 3, **options})


def test_starts_as_the_fixed_layer(backend: str):
    image, prob = inputs()
    torch.testing.assert_close(learnable()(image, prob), nn.DenseCRF(**SMALL)(image, prob), rtol=0, atol=1e-5)


def test_parameters():
    layer = nn.DenseCRF.preset("irn", learnable=True, num_classes=3, iterations=2)
    identity = torch.eye(3)
    expected = {"spatial_weight": 3 * identity, "bilateral_weight": 10 * identity, "compatibility": -identity}
    assert {name: p.shape for name, p in layer.named_parameters()} == {name: (3, 3) for name in expected}
    assert all(torch.equal(layer.state_dict()[name], value) for name, value in expected.items())
    assert "learnable=True, num_classes=3" in repr(layer)
    layer.load_state_dict(learnable().state_dict())


def test_weight_zero_can_learn(backend: str):
    image, prob = inputs()
    layer = learnable(bi_w=0)
    layer(image, prob)[:, 0].sum().backward()
    assert layer.bilateral_weight.grad.abs().sum() > 0


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_numerical_ones(recompute: bool):
    """The layer is float32, so by differences over steps that its rounding does not hide."""
    image, prob = inputs(batch=1, size=(5, 6))
    layer = learnable(recompute=recompute, bi_w=1, pos_w=1)
    grad = random(9, *prob.shape) - 0.5
    prob.requires_grad_()
    (layer(image, prob) * grad).sum().backward()
    tensors = [prob, layer.spatial_weight, layer.bilateral_weight, layer.compatibility]
    for seed, tensor in enumerate(tensors):
        direction, step = random(20 + seed, *tensor.shape) - 0.5, 1e-2
        values = []
        with torch.no_grad():
            for sign in (1, -1):
                tensor += sign * step * direction
                values.append((layer(image, prob).double() * grad).sum())
                tensor -= sign * step * direction
        numerical = (values[0] - values[1]) / (2 * step)
        assert (tensor.grad * direction).sum().item() == pytest.approx(numerical.item(), rel=2e-3, abs=1e-4)


def test_gradient_to_the_image(backend: str):
    image, prob = inputs()
    image.requires_grad_()
    nn.DenseCRF(**SMALL)(image, prob)[:, 0].sum().backward()
    assert image.grad.abs().sum() > 0
    assert torch.isfinite(image.grad).all()


@pytest.mark.parametrize("channels", [1, 4])
def test_learns_on_any_number_of_channels(channels: int, backend: str):
    """The gradient to the image is a numerical one: each channel is divided by its own deviation."""
    _, prob = inputs(size=(5, 6))
    image = 100 * random(5, 2, channels, 5, 6) - 50
    stds = [20.0 + 10 * channel for channel in range(channels)]
    layer, scaled = learnable(bi_rgb_std=stds), learnable(bi_rgb_std=1)
    unit = image / torch.tensor(stds)[:, None, None]
    image.requires_grad_()
    unit.requires_grad_()
    for layer_, leaf in ((layer, image), (scaled, unit)):
        layer_(leaf, prob)[:, 0].square().sum().backward()
    torch.testing.assert_close(image.grad * torch.tensor(stds)[:, None, None], unit.grad)
    torch.testing.assert_close(layer.bilateral_weight.grad, scaled.bilateral_weight.grad)
    assert layer.bilateral_weight.grad.abs().sum() > 0


def test_arrays_come_back_without_gradients():
    image, prob = inputs(batch=1)
    Q = learnable()(image[0].permute(1, 2, 0).numpy(), prob[0].numpy())
    torch.testing.assert_close(torch.from_numpy(Q), learnable()(image, prob)[0].detach())


def test_refuses_another_number_of_classes():
    with pytest.raises(ValueError, match=r"prob: shape is \(2, 4, 9, 11\), should be that of the layer's 3 classes"):
        learnable()(*inputs(labels=4))


class Model(torch.nn.Module):
    """A network with the layer at its end."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.crf = learnable()

    def forward(self, image: Tensor) -> Tensor:
        return self.crf(image, torch.softmax(self.conv(image / 255), dim=1))


@pytest.mark.parametrize("recompute", [False, True])
def test_model_compiles_without_a_graph_break(recompute: bool, backend: str):
    torch.compiler.reset()
    torch.manual_seed(0)
    model, (image, _) = Model(), inputs()
    model.crf.recompute = recompute
    results = []
    for call in (torch.compile(model, fullgraph=True, backend="aot_eager"), model):
        model.zero_grad()
        Q = call(image)
        Q[:, 0].square().sum().backward()
        results.append([Q.detach(), *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*results)


# --- It learns -----------------------------------------------------------------------------------------------------


def made_set(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images of three coloured regions, their labels, and probabilities of a network that finds class 2 too rarely."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 3, 3, generator=generator)
    labels = interpolate(coarse, (24, 24), mode="bilinear").argmax(dim=1)
    colours = torch.tensor([[60.0, 60, 150], [90, 140, 60], [190, 120, 60]])
    noise = torch.randn(count, 24, 24, 3, generator=generator)
    image = (colours[labels] + 12 * noise).clamp(0, 255).permute(0, 3, 1, 2)
    logits = 1.2 * torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2).float()
    logits = logits + torch.randn(logits.shape, generator=generator) - torch.tensor([0, 0, 0.7])[:, None, None]
    return image.contiguous(), torch.softmax(logits, dim=1), labels


def mean_iou(Q: Tensor, labels: Tensor) -> float:
    found = Q.argmax(dim=1)
    ious = [((found == k) & (labels == k)).sum() / ((found == k) | (labels == k)).sum().clamp(min=1) for k in range(3)]
    return float(torch.stack(ious).mean())


def test_learns():
    """Weights and compatibility that start too weak are found, on images that were not trained on."""
    fixed = nn.DenseCRF(iterations=3, pos_w=0.3, bi_w=0.3, bi_xy_std=8, bi_rgb_std=30)
    layer = nn.DenseCRF(iterations=3, pos_w=0.3, bi_w=0.3, bi_xy_std=8, bi_rgb_std=30, learnable=True, num_classes=3)
    image, prob, labels = made_set(8, seed=1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        nll_loss(layer(image, prob).clamp(min=1e-6).log(), labels).backward()
        optimizer.step()

    image, prob, labels = made_set(8, seed=2)
    with torch.no_grad():
        before, after = fixed(image, prob), layer(image, prob)
    losses = [nll_loss(Q.clamp(min=1e-6).log(), labels).item() for Q in (before, after)]
    assert losses[1] < 0.7 * losses[0]
    assert mean_iou(after, labels) > mean_iou(before, labels) + 0.02
