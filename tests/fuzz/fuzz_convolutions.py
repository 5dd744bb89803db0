"""What tests/fuzz/fuzz.py draws of the convolution and upsampling ops, and its checks: as fuzz_cases.py says."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
from conv_samples import ROUNDINGS, centred, in_format, stock_aspp, stock_atrous, worst_error
from fuzz_tensors import BFLOAT, DOUBLE, HALF, LENGTHS, SINGLE, Case, pair_of, random_tensor, relaid
from torch import Tensor
from upsample_checks import assert_argmax_accurate, assert_gradient_accurate, assert_softmax_accurate

import deeplab_fast
from deeplab_fast import reference

CHANNELS = (1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 32, 33, 48, 64, 70)


def _dtypes(draw: Random) -> tuple[torch.dtype, torch.dtype]:
    """Of maps and of weights."""
    dtype = draw.choice((SINGLE, SINGLE, SINGLE, BFLOAT, BFLOAT, HALF, DOUBLE))
    return dtype, SINGLE if dtype.itemsize == 2 and draw.random() < 0.3 else dtype


def draw_atrous(draw: Random) -> Case:
    while True:
        case = draw.choice((_any_convolution, _padded_beyond_reach, _dilated, _strided_convolution))(draw)
        reach = [case["dilation"][a] * (case["kernel"][a] - 1) + 1 for a in range(2)]
        size = [(case["size"][a] + 2 * case["padding"][a] - reach[a]) // case["stride"][a] + 1 for a in range(2)]
        if min(size) >= 1 and size[0] * size[1] <= 1500:
            break
    dtype, weight_dtype = _dtypes(draw)
    parts = {name: draw.random() < 0.5 for name in ("bias", "scale", "residual", "relu", "gradients")}
    batch = draw.choice((0, 1, 1, 1, 2, 2, 3)) if draw.random() < 0.9 else 17
    return {
        "batch": batch, "channels": draw.choice(CHANNELS), "out_channels": draw.choice(CHANNELS), **case, **parts,
        "dtype": dtype, "weight_dtype": weight_dtype, "seed": draw.randrange(2**31),
    }  # fmt: skip


def _any_convolution(draw: Random) -> Case:
    return {
        "size": pair_of(draw, LENGTHS), "kernel": pair_of(draw, (1, 1, 2, 3, 3, 4, 5)),
        "stride": pair_of(draw, (1, 1, 2, 3)), "padding": pair_of(draw, (0, 0, 1, 2, 3, 5)),
        "dilation": pair_of(draw, (1, 1, 2, 3, 5)),
    }  # fmt: skip


def _padded_beyond_reach(draw: Random) -> Case:
    """Outputs that see nothing but padding, beside the map or in its middle."""
    return {
        "size": pair_of(draw, (1, 1, 2, 3, 5, 9)), "kernel": pair_of(draw, (1, 1, 2, 3)),
        "stride": pair_of(draw, (1, 2, 3, 4, 7)), "padding": pair_of(draw, (0, 1, 2, 6, 13, 20)),
        "dilation": pair_of(draw, (1, 2, 6, 10, 19)),
    }  # fmt: skip


def _dilated(draw: Random) -> Case:
    """As in oneDNN's list of dilated convolutions: 3x3, from ResNets and from detectors, padded to the same size."""
    rate = draw.choice((1, 2, 3, 4, 6, 12, 18, 24, 31))
    kernel = draw.choice((3, 3, 3, 5, 7))
    size = pair_of(draw, (*LENGTHS, 14, 19, 28, 38))
    dilation = (rate, draw.choice((rate, rate, 1, 2)))
    padding = tuple(rate * (kernel // 2) for rate in dilation)
    stride = draw.choice(((1, 1), (1, 1), (1, 1), (2, 2)))
    return {"size": size, "kernel": (kernel, kernel), "stride": stride, "padding": padding, "dilation": dilation}


def _strided_convolution(draw: Random) -> Case:
    kernel = draw.choice((1, 1, 2, 3, 7))
    return {
        "size": pair_of(draw, (*LENGTHS, 24, 40)), "kernel": (kernel, draw.choice((kernel, kernel, 1, 3))),
        "stride": pair_of(draw, (1, 2, 2, 3, 4)), "padding": pair_of(draw, (0, 0, kernel // 2)), "dilation": (1, 1),
    }  # fmt: skip


def check_atrous(case: Case) -> None:
    draw, (dtype, weight_dtype) = Random(case["seed"]), (case["dtype"], case["weight_dtype"])
    channels, out_channels, geometry = case["channels"], case["out_channels"], [case[name] for name in _GEOMETRY]
    x = random_tensor(draw, dtype, case["batch"], channels, *case["size"])
    weight = random_tensor(draw, weight_dtype, out_channels, channels, *case["kernel"])
    bias, scale = (
        random_tensor(draw, weight_dtype, out_channels) if case[name] else None for name in ("bias", "scale")
    )
    size = [
        (case["size"][a] + 2 * case["padding"][a] - case["dilation"][a] * (case["kernel"][a] - 1) - 1)
        // case["stride"][a] + 1 for a in range(2)
    ]  # fmt: skip
    residual = random_tensor(draw, dtype, case["batch"], out_channels, *size) if case["residual"] else None

    def run(op: Callable[..., Tensor], relu: bool) -> Callable[..., Tensor]:
        return lambda x, weight, bias, scale, residual: op(
            x, weight, bias, *geometry, scale=scale, residual=residual, relu=relu
        )

    tensors = [x, weight, bias, scale, residual]
    ours = run(deeplab_fast.atrous_conv2d, case["relu"])
    linear, stock = run(reference.atrous_conv2d, False), stock_atrous(*geometry, False)
    longest = max(weight[0].numel(), weight[:, 0].numel(), case["batch"] * size[0] * size[1])
    _check_linear(draw, ours, linear, stock, tensors, longest, case["relu"], case["gradients"])


_GEOMETRY = ("stride", "padding", "dilation")


def draw_aspp(draw: Random) -> Case:
    dtype, weight_dtype = _dtypes(draw)
    return {
        "batch": draw.choice((0, 1, 1, 2, 3, 9)), "channels": draw.choice(CHANNELS),
        "classes": draw.choice((1, 2, 3, 5, 8, 21, 24, 33)), "size": pair_of(draw, LENGTHS),
        "rates": [draw.choice((1, 2, 3, 5, 6, 12, 18, 24, 10**6)) for _ in range(draw.choice((1, 2, 3, 4, 4, 5)))],
        "kernel": draw.choice(((3, 3), (3, 3), (3, 3), (1, 1), (5, 3), (1, 7))), "bias": draw.random() < 0.5,
        "gradients": draw.random() < 0.5, "dtype": dtype, "weight_dtype": weight_dtype, "seed": draw.randrange(2**31),
    }  # fmt: skip


def check_aspp(case: Case) -> None:
    draw, weight_dtype, classes = Random(case["seed"]), case["weight_dtype"], case["classes"]
    x = random_tensor(draw, case["dtype"], case["batch"], case["channels"], *case["size"])
    weights = [random_tensor(draw, weight_dtype, classes, case["channels"], *case["kernel"]) for _ in case["rates"]]
    bias = random_tensor(draw, weight_dtype, classes) if case["bias"] else None

    def run(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, bias, *weights: op(x, weights, bias, case["rates"])

    tensors = [x, bias, *weights]
    ours, linear, stock = run(deeplab_fast.aspp_sum), run(reference.aspp_sum), stock_aspp(case["rates"])
    longest = max(len(weights) * max(weights[0][0].numel(), weights[0][:, 0].numel()), x[:, 0].numel())
    _check_linear(draw, ours, linear, stock, tensors, longest, False, case["gradients"])


Convolution = Callable[..., Tensor]


def _check_linear(
    draw: Random,
    ours: Convolution,
    linear: Convolution,
    stock: Convolution,
    tensors: list[Tensor | None],
    longest: int,
    relu: bool,
    gradients: bool,
) -> None:
    """`ours` is relu(linear) of the tensors, to the policy of conv_samples.py, and so are its gradients to all of them.

    linear: of the reference. It is the quicker to compute, and as a rule less off than stock PyTorch: only a result
    that is too far off for twice the reference's error is compared with stock's. longest: the terms of the longest sum.
    """
    before = [None if t is None else t.clone() for t in tensors]
    with torch.no_grad():
        results = {"result of inference": ours(*tensors)}
    open_ = grad = None
    if gradients:
        leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
        out = ours(*leaves)
        grad = random_tensor(draw, out.dtype, *out.shape)
        # At a result that is all but 0, rounding decides whether the ReLU is open: take our decision for all.
        open_ = out.detach() > 0 if relu else torch.ones_like(out, dtype=torch.bool)
        results["result"] = out.detach()
        results |= _gradients(out, leaves, grad)
    unchanged = (a is None or torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
    assert all(unchanged), "an input was changed"

    def reference_of(convolution: Convolution, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        changed = [None if t is None else change(t.detach()).requires_grad_(gradients) for t in tensors]
        value = convolution(*changed)
        result = value.detach().relu() if relu else value.detach()
        found = {"result of inference": result, "result": result}
        return found | (_gradients(value, changed, torch.where(open_, change(grad), 0)) if gradients else {})

    lowest = results["result of inference"].dtype
    # The worst order of a sum of `longest` random terms is off by 0.2·sqrt(longest) roundings, the worst of many by 4
    # times that; stock may take a better order here, and at other sizes this one.
    roundings = max(ROUNDINGS, 0.8 * longest**0.5)
    exact, own, squares = (
        reference_of(linear, change) for change in (Tensor.double, lambda t: t.clone(), lambda t: t.double() ** 2)
    )

    def stock_error(name: str) -> float:
        terms = reference_of(linear, lambda t: t.double().abs())[name].abs().max().item()
        errors = [
            _off(reference_of(stock, lambda t: in_format(t.to(lowest), memory_format))[name], exact[name])  # noqa: B023
            for memory_format in (torch.contiguous_format, torch.channels_last)
        ]
        return worst_error(errors, lowest, terms)

    for name, result in results.items():
        assert (result.shape, result.dtype) == (exact[name].shape, own[name].dtype), name
        if result.numel() == 0:
            continue
        size = max(exact[name].abs().max().item(), squares[name].abs().max().item() ** 0.5)
        error, own_error = _off(result, exact[name]), _off(own[name].to(lowest), exact[name])
        floor = max(roundings * torch.finfo(result.dtype).eps, torch.finfo(lowest).eps) * size
        if not error <= 2 * own_error + floor:
            own_error = max(own_error, stock_error(name))
        allowed = 2 * own_error + floor
        assert error <= allowed, f"{name}: error {error:.2e}; stock PyTorch's {own_error:.2e}, allowed {allowed:.2e}"


def _gradients(out: Tensor, leaves: list[Tensor | None], grad: Tensor) -> dict[str, Tensor]:
    present = [k for k, leaf in enumerate(leaves) if leaf is not None]
    found = torch.autograd.grad(out, [leaves[k] for k in present], grad)
    return {f"gradient to tensor {k}": gradient for k, gradient in zip(present, found, strict=True)}


def _off(result: Tensor, exact: Tensor) -> float:
    return (result.double() - exact).abs().max().item() if result.numel() else 0.0


# --- Upsampling ----------------------------------------------------------------------------------------------------


def draw_upsample(draw: Random) -> Case:
    return {
        "batch": draw.choice((0, 1, 1, 2, 3)), "classes": draw.choice((1, 2, 3, 5, 8, 9, 21, 33, 91)),
        "size": pair_of(draw, LENGTHS), "to": pair_of(draw, (1, 2, 3, 5, 8, 11, 17, 24, 33, 40)),
        "dtype": draw.choice((SINGLE, SINGLE, BFLOAT, HALF, DOUBLE)), "scale": draw.choice((0.1, 1, 8, 8, 40)),
        "seed": draw.randrange(2**31),
    }  # fmt: skip


def _logits(case: Case) -> Tensor:
    draw = Random(case["seed"])
    logits = case["scale"] * centred(draw.randrange(2**31), case["batch"], case["classes"], *case["size"])
    return relaid(draw, logits.to(case["dtype"]))


def check_argmax(case: Case) -> None:
    logits = _logits(case)
    assert_argmax_accurate(deeplab_fast.upsample_argmax(logits, case["to"]), logits, case["to"])


def check_softmax(case: Case) -> None:
    logits = _logits(case)
    assert_softmax_accurate(deeplab_fast.upsample_softmax(logits, case["to"]), logits, case["to"])
    assert_gradient_accurate(logits, case["to"])
