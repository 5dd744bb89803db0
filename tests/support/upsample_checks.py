"""What the tests of upsampling compare with, and how closely."""

from __future__ import annotations

import torch
from conv_samples import ROUNDINGS, assert_accurate, centred, stock_upsample
from torch import Tensor

import deeplab_fast
from deeplab_fast.ops import define


def stock_softmax(size: int | tuple[int, int]):
    upsample = stock_upsample(size)
    return lambda logits: upsample(logits).softmax(dim=1)


def stock_gradient(size: int | tuple[int, int]):
    """Gradient to the logits, of (logits, gradient to the result)."""

    def run(logits: Tensor, grad: Tensor) -> Tensor:
        leaf = logits.detach().requires_grad_()
        return torch.autograd.grad(stock_softmax(size)(leaf), leaf, grad)[0]

    return run


ROUNDING = ROUNDINGS * torch.finfo(torch.float32).eps


def score_error(logits: Tensor, size: int | tuple[int, int]) -> float:
    """How far stock PyTorch's scores are off, in float32. By chance less of it may show in the softmax of its own."""
    scores = stock_upsample(size)(logits.double())
    return (stock_upsample(size)(logits.float()).double() - scores).abs().max().item()


def gradient_squares(logits: Tensor, grad: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Sums of the squares of the terms of the gradient to the logits, as it is computed: p·(grad - sum p·grad).

    What is subtracted may be all but equal; and the squares of bilinear weights are less than the weights. Relative to
    its size, p is off by what scores are off.
    """
    leaf = logits.detach().double().requires_grad_()
    p, grad = stock_softmax(size)(leaf.detach()), grad.double().abs()
    terms = p * (grad + (p * grad).sum(dim=1, keepdim=True)) * max(1.0, score_error(logits, size) / ROUNDING)
    return torch.autograd.grad(stock_upsample(size)(leaf), leaf, terms**2)[0]


def assert_argmax_accurate(chosen: Tensor, logits: Tensor, size: int | tuple[int, int]) -> None:
    """The class chosen has the largest score, to the rounding of scores in float32 (float64 for float64)."""
    exact = stock_upsample(size)(logits.double())
    assert chosen.dtype == torch.int64
    assert chosen.shape == (exact.shape[0], *exact.shape[2:])
    assert chosen.is_contiguous()
    if chosen.numel() == 0:
        return
    dtype = torch.promote_types(logits.dtype, torch.float32)
    own_error = (stock_upsample(size)(logits.to(dtype)).double() - exact).abs().max().item()
    rounding = 2 * own_error + ROUNDINGS * torch.finfo(dtype).eps * exact.abs().max().item()
    missing = exact.max(dim=1).values - exact.gather(1, chosen[:, None])[:, 0]
    assert missing.max().item() <= 2 * rounding  # of the score chosen, and of the largest


def assert_softmax_accurate(result: Tensor, logits: Tensor, size: int | tuple[int, int]) -> None:
    assert result.dtype == logits.dtype
    if result.numel() > 0:
        squares = torch.tensor(max(1.0, score_error(logits, size) / ROUNDING)).square()
        assert_accurate(result, stock_softmax(size), [logits], "softmax", squares)
    assert result.shape[:2] == logits.shape[:2]
    assert result.is_contiguous(memory_format=define.format_of(logits))


def assert_gradient_accurate(logits: Tensor, size: int | tuple[int, int]) -> None:
    leaf = logits.detach().requires_grad_()
    out = deeplab_fast.upsample_softmax(leaf, size)
    grad = centred(8, *out.shape).to(out.device, out.dtype)
    (result,) = torch.autograd.grad(out, leaf, grad)
    assert result.dtype == logits.dtype
    assert result.shape == logits.shape
    if result.numel() > 0:
        assert_accurate(result, stock_gradient(size), [logits, grad], "gradient", gradient_squares(logits, grad, size))
