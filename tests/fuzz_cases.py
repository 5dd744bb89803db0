"""What tests/fuzz.py draws: arguments of every op at random, and the checks of results against float64.

An op has two functions: one draws a case, a dict that prints well; the other makes tensors of it, calls the op, forward
and backward, and raises AssertionError where the result is not accurate (the policy of conv_samples.py and samples.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import torch
from conv_samples import ROUNDINGS, centred, in_format, stock_aspp, stock_atrous, worst_error
from samples import assert_crf_accurate, assert_filter_accurate, positions
from test_crf_backward_kernels import assert_close, crf_gradients, filter_gradients
from test_upsample import assert_argmax_accurate, assert_gradient_accurate, assert_softmax_accurate
from torch import Tensor

import deeplab_fast
from deeplab_fast import ops, reference
from deeplab_fast._arguments import sum_dtype

Case = dict[str, object]
SINGLE, DOUBLE, BFLOAT, HALF = torch.float32, torch.float64, torch.bfloat16, torch.float16
CHANNELS = (1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 32, 33, 48, 64, 70)
LENGTHS = (1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 16, 17)


# --- Tensors -------------------------------------------------------------------------------------------------------


def relaid(draw: Random, tensor: Tensor) -> Tensor:
    """The same shape with other strides: permuted, of a larger tensor, expanded, and so on; twice over at times."""
    for _ in range(draw.choice((0, 1, 1, 2))):
        tensor = draw.choice((_last, _permuted, _strided, _surrounded, _expanded, _odd))(draw, tensor)
    return tensor


def _last(draw: Random, tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor.contiguous()


def _permuted(draw: Random, tensor: Tensor) -> Tensor:
    order = draw.sample(range(tensor.ndim), tensor.ndim)
    return tensor.permute(order).contiguous().permute([order.index(axis) for axis in range(tensor.ndim)])


def _strided(draw: Random, tensor: Tensor) -> Tensor:
    steps = [draw.choice((1, 1, 2, 3)) for _ in tensor.shape]
    larger = tensor.new_full([size * step for size, step in zip(tensor.shape, steps, strict=True)], math.nan)
    return larger[tuple(slice(None, None, step) for step in steps)].copy_(tensor)


def _surrounded(draw: Random, tensor: Tensor) -> Tensor:
    before = [draw.choice((0, 0, 1, 5)) for _ in tensor.shape]
    larger = tensor.new_full([size + 2 * b for size, b in zip(tensor.shape, before, strict=True)], math.nan)
    return larger[tuple(slice(b, b + size) for size, b in zip(tensor.shape, before, strict=True))].copy_(tensor)


def _expanded(draw: Random, tensor: Tensor) -> Tensor:
    axis = draw.randrange(tensor.ndim) if tensor.ndim else 0
    return tensor.narrow(axis, 0, 1).expand_as(tensor) if tensor.ndim and tensor.numel() else tensor


def _odd(draw: Random, tensor: Tensor) -> Tensor:
    """Any stride along axes of length 1."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.as_strided(tensor.shape, [draw.choice((0, 1, 7, 640)) if n == 1 else stride for n, stride in sizes])


def _tensor(draw: Random, dtype: torch.dtype, *shape: int) -> Tensor:
    return relaid(draw, centred(draw.randrange(2**31), *shape).to(dtype))


def _dtypes(draw: Random) -> tuple[torch.dtype, torch.dtype]:
    """Of maps and of weights."""
    dtype = draw.choice((SINGLE, SINGLE, SINGLE, BFLOAT, BFLOAT, HALF, DOUBLE))
    return dtype, SINGLE if dtype.itemsize == 2 and draw.random() < 0.3 else dtype


# --- Convolutions --------------------------------------------------------------------------------------------------


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


def _pair(draw: Random, choices: tuple[int, ...]) -> tuple[int, int]:
    return draw.choice(choices), draw.choice(choices)


def _any_convolution(draw: Random) -> Case:
    return {
        "size": _pair(draw, LENGTHS), "kernel": _pair(draw, (1, 1, 2, 3, 3, 4, 5)), "stride": _pair(draw, (1, 1, 2, 3)),
        "padding": _pair(draw, (0, 0, 1, 2, 3, 5)), "dilation": _pair(draw, (1, 1, 2, 3, 5)),
    }  # fmt: skip


def _padded_beyond_reach(draw: Random) -> Case:
    """Outputs that see nothing but padding, beside the map or in its middle."""
    return {
        "size": _pair(draw, (1, 1, 2, 3, 5, 9)), "kernel": _pair(draw, (1, 1, 2, 3)),
        "stride": _pair(draw, (1, 2, 3, 4, 7)), "padding": _pair(draw, (0, 1, 2, 6, 13, 20)),
        "dilation": _pair(draw, (1, 2, 6, 10, 19)),
    }  # fmt: skip


def _dilated(draw: Random) -> Case:
    """As in oneDNN's list of dilated convolutions: 3x3, from ResNets and from detectors, padded to the same size."""
    rate = draw.choice((1, 2, 3, 4, 6, 12, 18, 24, 31))
    kernel = draw.choice((3, 3, 3, 5, 7))
    size = _pair(draw, (*LENGTHS, 14, 19, 28, 38))
    dilation = (rate, draw.choice((rate, rate, 1, 2)))
    padding = tuple(rate * (kernel // 2) for rate in dilation)
    stride = draw.choice(((1, 1), (1, 1), (1, 1), (2, 2)))
    return {"size": size, "kernel": (kernel, kernel), "stride": stride, "padding": padding, "dilation": dilation}


def _strided_convolution(draw: Random) -> Case:
    kernel = draw.choice((1, 1, 2, 3, 7))
    return {
        "size": _pair(draw, (*LENGTHS, 24, 40)), "kernel": (kernel, draw.choice((kernel, kernel, 1, 3))),
        "stride": _pair(draw, (1, 2, 2, 3, 4)), "padding": _pair(draw, (0, 0, kernel // 2)), "dilation": (1, 1),
    }  # fmt: skip


def check_atrous(case: Case) -> None:
    draw, (dtype, weight_dtype) = Random(case["seed"]), (case["dtype"], case["weight_dtype"])
    channels, out_channels, geometry = case["channels"], case["out_channels"], [case[name] for name in _GEOMETRY]
    x = _tensor(draw, dtype, case["batch"], channels, *case["size"])
    weight = _tensor(draw, weight_dtype, out_channels, channels, *case["kernel"])
    bias, scale = (_tensor(draw, weight_dtype, out_channels) if case[name] else None for name in ("bias", "scale"))
    size = [
        (case["size"][a] + 2 * case["padding"][a] - case["dilation"][a] * (case["kernel"][a] - 1) - 1)
        // case["stride"][a] + 1 for a in range(2)
    ]  # fmt: skip
    residual = _tensor(draw, dtype, case["batch"], out_channels, *size) if case["residual"] else None

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
        "classes": draw.choice((1, 2, 3, 5, 8, 21, 24, 33)), "size": _pair(draw, LENGTHS),
        "rates": [draw.choice((1, 2, 3, 5, 6, 12, 18, 24, 10**6)) for _ in range(draw.choice((1, 2, 3, 4, 4, 5)))],
        "kernel": draw.choice(((3, 3), (3, 3), (3, 3), (1, 1), (5, 3), (1, 7))), "bias": draw.random() < 0.5,
        "gradients": draw.random() < 0.5, "dtype": dtype, "weight_dtype": weight_dtype, "seed": draw.randrange(2**31),
    }  # fmt: skip


def check_aspp(case: Case) -> None:
    draw, weight_dtype, classes = Random(case["seed"]), case["weight_dtype"], case["classes"]
    x = _tensor(draw, case["dtype"], case["batch"], case["channels"], *case["size"])
    weights = [_tensor(draw, weight_dtype, classes, case["channels"], *case["kernel"]) for _ in case["rates"]]
    bias = _tensor(draw, weight_dtype, classes) if case["bias"] else None

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
        grad = _tensor(draw, out.dtype, *out.shape)
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
        "size": _pair(draw, LENGTHS), "to": _pair(draw, (1, 2, 3, 5, 8, 11, 17, 24, 33, 40)),
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


# --- Lattice and CRF -----------------------------------------------------------------------------------------------


def _points(draw: Random) -> tuple[int, ...]:
    return draw.choice(((draw.randint(1, 40),), _pair(draw, (1, 2, 3, 5, 8, 9)), (2, draw.randint(1, 4), 3)))


def _spread(draw: Random) -> float:
    return 3 * 10 ** draw.uniform(-2, 2)


def draw_filter(draw: Random) -> Case:
    return {
        "batch": draw.choice((0, 1, 1, 2)), "channels": draw.choice((1, 2, 3, 4, 5, 8, 9, 17, 31, 32, 33, 40)),
        "size": _points(draw), "dimensions": draw.choice((1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 11)), "spread": _spread(draw),
        "dtype": draw.choice((SINGLE, SINGLE, BFLOAT, HALF, DOUBLE)),
        "feature_dtype": draw.choice((SINGLE, SINGLE, SINGLE, BFLOAT, HALF, DOUBLE)),
        "not_finite": draw.choice((None, None, None, math.nan, math.inf)), "seed": draw.randrange(2**31),
    }  # fmt: skip


def check_filter(case: Case) -> None:
    draw = Random(case["seed"])
    values = _tensor(draw, case["dtype"], case["batch"], case["channels"], *case["size"])
    features = _features(draw, case, case["dimensions"], case["spread"])
    if case["not_finite"] is not None and values.numel() > 0:
        _check_spreading(values.contiguous(), features, case["not_finite"], draw)
        return
    assert_filter_accurate(deeplab_fast.permutohedral_filter(values, features), values, features)
    if DOUBLE in (case["dtype"], case["feature_dtype"]):
        return
    leaf, grad = values.detach().requires_grad_(), _tensor(draw, case["dtype"], *values.shape)
    reverse = torch.ops.deeplab_fast.permutohedral_filter_reference
    (to_values,) = torch.autograd.grad(deeplab_fast.permutohedral_filter(leaf, features), leaf, grad)
    exact, own, terms = (reverse(g, features.float(), True) for g in (grad.double(), grad, grad.double().abs()))
    assert_close([to_values], [own], [exact], [terms.max().item() if terms.numel() else 0])
    assert_close(*filter_gradients(grad, values, features, draw.random() < 0.5))


def _check_spreading(values: Tensor, features: Tensor, value: float, draw: Random) -> None:
    values.view(-1)[draw.randrange(values.numel())] = value
    result = deeplab_fast.permutohedral_filter(values, features)
    expected = reference.permutohedral_filter(values, features)
    assert torch.equal(result.isfinite(), expected.isfinite()), f"{value} spreads otherwise than in the reference"


def _features(draw: Random, case: Case, dimensions: int, spread: float) -> Tensor:
    features = positions(case["size"], case["batch"], dimensions, spread, draw.randrange(2**31))
    return relaid(draw, features.to(case["feature_dtype"]))


def draw_crf(draw: Random) -> Case:
    kernels = [
        (
            draw.choice((1, 2, 3, 5, 5, 6)),
            draw.choice(("number", "vector", "matrix")),
            draw.randint(0, 3),
            _spread(draw),
        )
        for _ in range(draw.choice((0, 1, 1, 2, 3)))
    ]
    return {
        "batch": draw.choice((0, 1, 1, 2)), "labels": draw.choice((1, 2, 2, 3, 4, 5, 8, 9, 17, 33, 40)),
        "size": _points(draw), "kernels": kernels, "iterations": draw.choice((0, 1, 2, 3, 5)),
        "dtype": draw.choice((SINGLE, SINGLE, BFLOAT, HALF, DOUBLE)),
        "feature_dtype": draw.choice((SINGLE, SINGLE, SINGLE, BFLOAT, HALF, DOUBLE)),
        "alike": draw.choice((0, 0, 3)), "seed": draw.randrange(2**31),
    }  # fmt: skip


def check_crf(case: Case) -> None:
    draw, labels = Random(case["seed"]), case["labels"]
    unary = 2 + 2 * centred(draw.randrange(2**31), case["batch"], labels, *case["size"])
    unary[:, : min(case["alike"], labels)] = 1
    unary = relaid(draw, unary.to(case["dtype"]))
    features = [_features(draw, case, dimensions, spread) for dimensions, _, _, spread in case["kernels"]]
    shapes = {"number": (), "vector": (labels,), "matrix": (labels, labels)}
    compat = [3 * _tensor(draw, SINGLE, *shapes[kind]) for _, kind, _, _ in case["kernels"]]
    compat = [relaid(draw, c) for c in compat]
    inputs = (unary, features, compat, case["iterations"], [number for _, _, number, _ in case["kernels"]])
    assert_crf_accurate(deeplab_fast.dense_crf(*inputs), *inputs)
    if DOUBLE not in (case["dtype"], case["feature_dtype"]):
        results, own, exact, floors = crf_gradients(*inputs)
        # Where all cancels, what remains are roundings of terms of these sizes.
        sizes = [
            case["iterations"] * c.abs().max().item() * (1 + f.shape[1]) for f, c in zip(features, compat, strict=True)
        ]
        terms = [1.0, *sizes, *(0.0 for _ in compat)]
        assert_close(results, own, exact, [floor + term for floor, term in zip(floors, terms, strict=True)])


def draw_pairwise(draw: Random) -> Case:
    return {
        "batch": draw.choice((0, 1, 1, 2)), "channels": draw.choice((1, 2, 3, 5, 21, 33, 40)),
        "size": _pair(draw, (2, 3, 5, 8, 9, 13)), "factor": draw.choice((1.0, 1.0, 0.5, 0.5, 0.75, 1.5, 2.0)),
        "dimensions": draw.choice((1, 2, 3, 5, 5, 6)), "spread": _spread(draw), "inside": draw.random() < 0.5,
        "dtype": draw.choice((SINGLE, SINGLE, BFLOAT, HALF)), "seed": draw.randrange(2**31),
    }  # fmt: skip


def check_pairwise(case: Case) -> None:
    draw, factor = Random(case["seed"]), case["factor"]
    size = tuple(int(length * factor) for length in case["size"])
    values = _tensor(draw, case["dtype"], case["batch"], case["channels"], *case["size"])
    features = positions(size, case["batch"], case["dimensions"], case["spread"], draw.randrange(2**31))
    features = relaid(draw, features.to(case["dtype"]))
    inside = (_tensor(draw, case["dtype"], case["batch"], 1, *size) > 0).to(case["dtype"]) if case["inside"] else None
    weights = _tensor(draw, SINGLE, case["batch"])
    leaf = values.detach().requires_grad_()
    energy = ops.pairwise_energy(leaf, features, inside, factor)
    (to_values,) = torch.autograd.grad(energy, leaf, weights)

    def run(change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        changed = change(values)
        region = None if inside is None else inside.to(changed.dtype)
        lattice = features.to(SINGLE)
        of_images, gradient = reference.pairwise_energy(changed, lattice, region, factor)
        times = weights.to(changed.dtype).abs() if change is terms else weights.to(changed.dtype)
        back = reference.pairwise_energy_backward(times, gradient, values.shape[2:], factor)
        return [of_images, back]

    def terms(t: Tensor) -> Tensor:
        return t.double().abs()

    exact, own, absolute = run(Tensor.double), run(lambda t: t.to(sum_dtype(t))), run(terms)
    own[1] = own[1].to(values.dtype)
    floors = [part.abs().max().item() if part.numel() else 0.0 for part in absolute]
    assert_close([energy.detach(), to_values], own, exact, floors)


OPS: dict[str, tuple[Callable[[Random], Case], Callable[[Case], None]]] = {
    "atrous_conv2d": (draw_atrous, check_atrous),
    "aspp_sum": (draw_aspp, check_aspp),
    "upsample_argmax": (draw_upsample, check_argmax),
    "upsample_softmax": (draw_upsample, check_softmax),
    "permutohedral_filter": (draw_filter, check_filter),
    "dense_crf": (draw_crf, check_crf),
    "pairwise_energy": (draw_pairwise, check_pairwise),
}
