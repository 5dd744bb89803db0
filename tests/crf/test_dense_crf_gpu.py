"""The dense CRF on a GPU: agreement with the CPU, the same bits every time, graphs, streams, memory."""

from __future__ import annotations

import pytest
import torch
from samples import CRF_SAMPLES, FILTER_SAMPLES, CRFSample, FilterSample, Kernel, by_name, positions, random
from torch import Tensor

import deeplab_fast
from deeplab_fast import nn, reference

pytestmark = pytest.mark.cuda

CRFS = [s for s in CRF_SAMPLES if torch.float64 not in (s.dtype, s.feature_dtype)]
FILTERS = [s for s in FILTER_SAMPLES if torch.float64 not in (s.dtype, s.feature_dtype)]
# Large enough for many blocks of threads in every kernel, and for vertices whose entries are cut into pieces.
LARGE = CRFSample(
    "large", labels=21, batch=2, size=(123, 165), kernels=(Kernel(5, spread=9), Kernel(2, spread=60)), iterations=10
)


def on_gpu(arguments: tuple) -> tuple:
    unary, features, compat, *rest = arguments
    return unary.cuda(), [f.cuda() for f in features], [c.cuda() for c in compat], *rest


def tolerance(unary: Tensor) -> float:
    return 1e-4 if unary.dtype == torch.float32 else 2e-2


@pytest.mark.parametrize("sample", [*CRFS, LARGE], ids=by_name)
def test_agrees_with_the_cpu(sample: CRFSample):
    inputs = sample.inputs()
    Q = deeplab_fast.dense_crf(*on_gpu(inputs))
    expected = deeplab_fast.dense_crf(*inputs)
    assert Q.dtype == expected.dtype
    assert Q.numel() == 0 or (Q.cpu().float() - expected.float()).abs().max() <= tolerance(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_storage(dtype: torch.dtype):
    unary, *rest = LARGE.inputs()
    Q = deeplab_fast.dense_crf(*on_gpu((unary.to(dtype), *rest)))
    expected = deeplab_fast.dense_crf(unary.to(dtype).float(), *rest)
    assert (Q.cpu().float() - expected).abs().max() <= (2e-2 if dtype == torch.float16 else 6e-2)


@pytest.mark.parametrize("sample", FILTERS, ids=by_name)
def test_filter_and_its_gradients(sample: FilterSample):
    results = []
    for device in ("cpu", "cuda"):
        values, features = (t.detach().requires_grad_() for t in sample.inputs(device))
        out = deeplab_fast.permutohedral_filter(values, features)
        out.backward(random(8, *out.shape).to(out))
        results.append([t.float().cpu() for t in (out.detach(), values.grad, features.grad)])
    for here, there in zip(*results, strict=True):
        scale = here.abs().max().item() if here.numel() else 0
        limit = 1e-4 if sample.dtype == torch.float32 else 2e-2
        torch.testing.assert_close(there, here, rtol=0, atol=limit * scale + 1e-6)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("sample", CRFS, ids=by_name)
def test_gradients(sample: CRFSample, recompute: bool):
    results = []
    for device in ("cpu", "cuda"):
        unary, features, compat, *rest = sample.inputs(device)
        leaves = [t.detach().clone().requires_grad_() for t in (unary, *features, *compat)]
        n = len(features)
        Q = deeplab_fast.dense_crf(leaves[0], leaves[1 : 1 + n], leaves[1 + n :], *rest, recompute=recompute)
        Q.backward(random(8, *Q.shape).to(Q))
        results.append([leaf.grad.float().cpu() for leaf in leaves])
    for here, there in zip(*results, strict=True):
        scale = here.abs().max().item() if here.numel() else 0
        limit = 1e-3 if sample.dtype == torch.float32 else 5e-2
        torch.testing.assert_close(there, here, rtol=0, atol=limit * scale + 1e-5)


def results_of(inputs: tuple) -> list[Tensor]:
    unary, features, compat, *rest = inputs
    leaf = unary.detach().requires_grad_()
    Q = deeplab_fast.dense_crf(leaf, features, compat, *rest)
    Q.square().sum().backward()
    return [Q.detach(), leaf.grad]


def test_same_bits_every_time():
    inputs = on_gpu(LARGE.inputs())
    first = results_of(inputs)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(results_of(inputs), first, strict=True))


def test_batch_is_as_single_images():
    unary, features, *rest = on_gpu(LARGE.inputs())
    together = results_of((unary, features, *rest))
    for n in range(len(unary)):
        alone = results_of((unary[n : n + 1], [f[n : n + 1] for f in features], *rest))
        assert all(torch.equal(a[0], b[n]) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("layer", [False, True])
def test_in_a_cuda_graph(layer: bool):
    if layer:
        module = nn.DenseCRF.preset("psa", iterations=3)
        inputs = [255 * random(0, 1, 3, 40, 50).cuda(), torch.softmax(3 * random(1, 1, 5, 40, 50), dim=1).cuda()]
        run = lambda: module(*inputs)  # noqa: E731
    else:
        unary, features, compat, *rest = on_gpu(CRFSample("").inputs())
        inputs = [unary]
        run = lambda: deeplab_fast.dense_crf(inputs[0], features, compat, *rest)  # noqa: E731
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        Q = run()
    for _ in range(3):
        changed = inputs[-1].flip(-1) if layer else inputs[0] + 0.5 * random(3, *inputs[0].shape).cuda()
        inputs[-1].copy_(changed)
        graph.replay()
        assert torch.equal(Q, run())


def test_features_that_are_not_valid():
    unary, features, *rest = on_gpu(CRFSample("").inputs())
    for value, message in ((float("nan"), "NaN or infinite"), (3e4, "key range overflow")):
        broken = [f.clone() for f in features]
        broken[0][0, 0, 0, 0] = value
        with pytest.raises(ValueError, match=message):
            deeplab_fast.dense_crf(unary, broken, *rest)
    assert deeplab_fast.dense_crf(unary, features, *rest).isfinite().all()


def test_on_another_stream():
    inputs = on_gpu(LARGE.inputs())
    expected = deeplab_fast.dense_crf(*inputs)
    streams = [torch.cuda.Stream() for _ in range(3)]
    found = []
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found.append(deeplab_fast.dense_crf(*inputs))
    torch.cuda.synchronize()
    assert all(torch.equal(Q, expected) for Q in found)


def test_memory_returns():
    inputs = on_gpu(LARGE.inputs())
    results_of(inputs)
    before = torch.cuda.memory_allocated()
    for _ in range(10):
        results_of(inputs)
    assert torch.cuda.memory_allocated() == before


def test_random_shapes():
    """A thousand small problems of every kind."""
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    compats = (1.5, "vector", "matrix")
    for number in range(1000):
        kernels = tuple(
            Kernel(draw(1, 7), compats[draw(0, 2)], draw(0, 3), spread=float(draw(1, 30))) for _ in range(draw(1, 3))
        )
        sample = CRFSample(
            "", labels=draw(1, 40), batch=draw(1, 3), size=(draw(1, 12), draw(1, 40)), kernels=kernels,
            iterations=draw(0, 3),
        )  # fmt: skip
        inputs = sample.inputs()
        unary = inputs[0] + random(number, *inputs[0].shape)
        inputs = (unary, *inputs[1:])
        error = (deeplab_fast.dense_crf(*on_gpu(inputs)).cpu() - deeplab_fast.dense_crf(*inputs)).abs().max()
        assert error <= 1e-3, sample  # attractive matrices magnify rounding


@pytest.mark.parametrize("labels", [182, 300])
def test_many_labels(labels: int):
    inputs = CRFSample("", labels=labels, size=(40, 50)).inputs()
    error = (deeplab_fast.dense_crf(*on_gpu(inputs)).cpu() - deeplab_fast.dense_crf(*inputs)).abs().max()
    assert error <= 1e-4


def test_flat_image():
    """One simplex for all points: every sum over a vertex is cut into pieces."""
    unary, compat = 3 * random(1, 1, 21, 200, 300), [torch.tensor(3.0)]
    features = [torch.zeros(1, 5, 200, 300)]
    inputs = (unary, features, compat, 5, [3])
    error = (deeplab_fast.dense_crf(*on_gpu(inputs)).cpu() - deeplab_fast.dense_crf(*inputs)).abs().max()
    assert error <= 1e-4


def test_as_many_vertices():
    """The filter of ones depends on every vertex and neighbour."""
    features = positions((90, 110), 1, 5, 40)
    ones = torch.ones(1, 1, 90, 110)
    here = deeplab_fast.permutohedral_filter(ones, features)
    there = deeplab_fast.permutohedral_filter(ones.cuda(), features.cuda()).cpu()
    assert reference.build_lattice(features[0].flatten(1)).vertex_count > 1000
    torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-6)


def test_layer_and_loss():
    image, prob = 255 * random(0, 2, 3, 61, 50), torch.softmax(3 * random(1, 2, 5, 61, 50), dim=1)
    results = []
    for device in ("cpu", "cuda"):
        layer = nn.DenseCRF(iterations=3, bi_xy_std=20, bi_rgb_std=20, learnable=True, num_classes=5).to(device)
        loss = nn.DenseCRFLoss(1e-3, 15, 40, 0.5)
        leaf = prob.to(device).requires_grad_()
        value = layer(image.to(device), leaf)[:, 0].sum() + loss(image.to(device), leaf)
        value.backward()
        results.append([t.detach().cpu() for t in (value, leaf.grad, *(p.grad for p in layer.parameters()))])
    for here, there in zip(*results, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3 * here.abs().max().item())
