"""`nn.DenseCRF`: parameters, kinds of input, agreement with pydensecrf, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from photos import photo, scores

from deeplab_fast import crf, nn
from deeplab_fast.crf.parameters import NORMALIZATIONS

HEIGHT, WIDTH, CLASSES = 45, 62, 4
QUICK = {"bi_xy_std": 20, "bi_rgb_std": 20, "iterations": 3}


def scene(n: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A photo (H, W, 3), uint8, and class probabilities for it (K, H, W)."""
    image = np.ascontiguousarray(photo()[40 * n : 40 * n + HEIGHT, 50 * n : 50 * n + WIDTH])
    return image, scores(image, CLASSES, seed=n)


def tensors(*numbers: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The scenes as a batch."""
    images, probs = zip(*(scene(n) for n in numbers), strict=True)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.from_numpy(np.stack(probs))


# --- Parameters ----------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_deeplab_preset():
    assert nn.DenseCRF().params == nn.DenseCRF.preset("deeplab").params == crf.PRESETS["deeplab"]


@pytest.mark.parametrize(
    ("name", "bilateral", "spatial"),
    [
        ("deeplab", (67, 3, 4), (1, 3)),
        ("irn", (50, 5, 10), (3, 3)),
        ("psa", (80, 13, 10), (3, 3)),
        ("afa", (64, 5, 4), (3, 3)),
    ],
)
def test_presets(name: str, bilateral: tuple, spatial: tuple):
    params = nn.DenseCRF.preset(name).params
    assert (params.bi_xy_std, params.bi_rgb_std, params.bi_w) == bilateral
    assert (params.pos_xy_std, params.pos_w) == spatial
    assert params.iterations == 10


def test_preset_takes_overrides():
    module = nn.DenseCRF.preset("irn", iterations=3, bi_w=7.5)
    assert module.params == crf.CRFParameters(3, 3, 7.5, 50, 5, 3)
    assert repr(module) == "DenseCRF(pos_w=3, pos_xy_std=3, bi_w=7.5, bi_xy_std=50, bi_rgb_std=5, iterations=3)"
    assert not module.state_dict()
    assert "iterations=5, normalization='none')" in repr(nn.DenseCRF.preset("manga"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"pos_xy_std": 0}, ValueError, "pos_xy_std: is 0, should be a positive number"),
        ({"bi_xy_std": -1}, ValueError, "bi_xy_std: is -1, should be a positive number"),
        ({"bi_rgb_std": float("nan")}, ValueError, "bi_rgb_std: is nan, should be a positive number"),
        ({"bi_rgb_std": (3, 0)}, ValueError, r"bi_rgb_std: is 0\.0, should be a positive number"),
        ({"bi_rgb_std": ()}, TypeError, r"bi_rgb_std: is \(\), should be a number or one for each channel"),
        ({"bi_rgb_std": "3"}, TypeError, "bi_rgb_std: is '3', should be a number or one for each channel"),
        ({"bi_w": float("inf")}, ValueError, "bi_w: is inf, should be a finite number"),
        ({"iterations": -1}, ValueError, "iterations: is -1, should be at least 0"),
        ({"iterations": 2.5}, TypeError, r"iterations: is 2\.5, should be a whole number"),
        ({"learnable": True}, ValueError, "num_classes: is None, should be the number of classes, at least 1"),
        ({"learnable": True, "num_classes": 0}, ValueError, "num_classes: is 0, should be the number of classes"),
        ({"num_classes": 3}, ValueError, "num_classes: is 3, should be left out"),
    ],
    ids=str,
)
def test_refuses_parameters(arguments: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        nn.DenseCRF(**arguments)
    with pytest.raises(error, match=message):
        nn.DenseCRF.preset("irn", **arguments)


def test_refuses_unknown_presets():
    with pytest.raises(ValueError, match="name: is 'voc', should be one of 'deeplab', 'irn', 'psa', 'afa'"):
        nn.DenseCRF.preset("voc")


# --- Inference -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", crf.PRESETS)
def test_agrees_with_pydensecrf(name: str, backend: str):
    peer = pytest.importorskip("pydensecrf.densecrf")
    image, prob = scene()
    params = crf.PRESETS[name]
    theirs = peer.DenseCRF2D(WIDTH, HEIGHT, CLASSES)
    theirs.setUnaryEnergy(-np.log(prob.clip(1e-5, 1)).reshape(CLASSES, -1))
    options = {"normalization": NORMALIZATIONS.index(params.normalization)}
    theirs.addPairwiseGaussian(params.pos_xy_std, params.pos_w, **options)
    theirs.addPairwiseBilateral(params.bi_xy_std, params.bi_rgb_std, image.copy(), params.bi_w, **options)
    expected = np.array(theirs.inference(params.iterations)).reshape(prob.shape)
    difference = np.abs(nn.DenseCRF.preset(name)(image, prob) - expected)
    assert difference.max() <= 1e-3
    assert difference.mean() <= 1e-6


@pytest.mark.parametrize("weights", [{"pos_w": 0}, {"bi_w": 0}, {"pos_w": 0, "bi_w": 0}, {"pos_w": -1}])
def test_agrees_with_the_numpy_interface(weights: dict, backend: str):
    image, prob = scene()
    params = crf.parameters("psa", iterations=5, **weights)
    expected = crf.refine(image, prob, params)
    np.testing.assert_allclose(nn.DenseCRF(**vars(params))(image, prob), expected, atol=1e-5)


def test_tensors_and_arrays_alike(backend: str):
    module = nn.DenseCRF(**QUICK)
    image, prob = tensors(0)
    Q = module(image[0], prob[0])
    assert isinstance(Q, torch.Tensor)
    assert Q.shape == prob[0].shape
    as_array = module(*scene())
    assert isinstance(as_array, np.ndarray)
    assert as_array.dtype == np.float32
    np.testing.assert_array_equal(as_array, Q.numpy())
    np.testing.assert_array_equal(module(image[0], scene()[1]), as_array)  # as `prob` is
    assert torch.equal(module(scene()[0], prob[0]), Q)


def test_batch_is_each_image_by_itself(backend: str):
    module = nn.DenseCRF(**QUICK)
    image, prob = tensors(0, 1, 2)
    Q = module(image, prob)
    for n in range(3):
        assert torch.equal(module(image[n], prob[n]), Q[n])
    arrays = [np.stack(parts) for parts in zip(*(scene(n) for n in range(3)), strict=True)]
    np.testing.assert_array_equal(module(*arrays), Q.numpy())
    assert module(image[:0], prob[:0]).shape == (0, CLASSES, HEIGHT, WIDTH)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(dtype: torch.dtype, backend: str):
    module = nn.DenseCRF(**QUICK)
    image, prob = tensors(0)
    prob = prob.to(dtype)
    Q = module(image, prob)
    assert Q.dtype == dtype
    assert torch.equal(Q, module(image.to(torch.float64), prob.float()).to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(image, prob), Q)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ">f4"])
def test_array_dtypes(dtype, backend: str):
    module = nn.DenseCRF(**QUICK)
    image, prob = scene()
    Q = module(image, prob.astype(dtype))
    assert Q.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_allclose(Q, module(image, prob), atol=2e-2 if dtype == np.float16 else 1e-6)


def test_any_memory_layout(backend: str):
    module = nn.DenseCRF(**QUICK)
    image, prob = scene()
    expected = module(image, prob)
    image.flags.writeable = prob.flags.writeable = False
    np.testing.assert_array_equal(module(image, prob), expected)
    np.testing.assert_array_equal(module(image[::-1].copy()[::-1], prob[:, ::-1].copy()[:, ::-1]), expected)
    np.testing.assert_array_equal(module(image, np.asfortranarray(prob)), expected)
    image, prob = tensors(0)
    Q = module(image, prob.contiguous(memory_format=torch.channels_last))
    assert Q.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(Q[0].numpy(), expected)


def test_without_kernels_it_is_the_softmax():
    prob = torch.rand(1, 3, 5, 4).softmax(dim=1).requires_grad_()
    crf = nn.DenseCRF(pos_w=0, bi_w=0)
    Q = crf(torch.zeros(1, 3, 5, 4), prob)
    torch.testing.assert_close(Q, prob)
    (Q * Q.detach()).sum().backward()
    assert prob.grad.isfinite().all()


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (6, 1)])
@pytest.mark.parametrize("classes", [1, 2])
def test_small_images(size: tuple[int, int], classes: int, backend: str):
    Q = nn.DenseCRF()(np.zeros((*size, 3), np.uint8), np.full((classes, *size), 1 / classes, np.float32))
    np.testing.assert_allclose(Q, 1 / classes, rtol=1e-6)


def test_compiles_without_a_graph_break(backend: str):
    torch.compiler.reset()
    module = nn.DenseCRF(**QUICK)
    image, prob = tensors(0, 1)
    assert torch.equal(torch.compile(module, fullgraph=True, backend="aot_eager")(image, prob), module(image, prob))


@pytest.mark.cuda
@pytest.mark.parametrize("name", crf.PRESETS)
def test_same_on_a_gpu(name: str):
    module = nn.DenseCRF.preset(name)
    image, prob = tensors(0, 1)
    Q = module(image.cuda(), prob.cuda())
    assert Q.is_cuda
    torch.testing.assert_close(Q.cpu(), module(image, prob), atol=1e-3, rtol=0)


# --- Channels ------------------------------------------------------------------------------------------------------


def many_channels(channels: int) -> tuple[np.ndarray, list[float]]:
    """An image (H, W, C) of values of different units, float32, and their standard deviations."""
    photo_channels = scene()[0].astype(np.float32)
    units = np.array([0.01, 1, 30, 2.5] * 3, np.float32)[:channels]
    return photo_channels[..., np.arange(channels) % 3] * units - 7 * units, [float(20 * unit) for unit in units]


@pytest.mark.parametrize("channels", [1, 2, 4, 12])
def test_any_number_of_channels(channels: int, backend: str):
    """As with features set up by hand in pydensecrf's interface for any number of dimensions."""
    from deeplab_fast.pydensecrf import densecrf as dcrf
    from deeplab_fast.pydensecrf import utils

    (image, stds), (_, prob) = many_channels(channels), scene()
    y, x = np.indices((HEIGHT, WIDTH), np.float32)
    colours = image.transpose(2, 0, 1) / np.array(stds, np.float32)[:, None, None]
    bilateral = np.concatenate([np.stack([x, y]) / np.float32(20), colours]).reshape(2 + channels, -1)
    peer = dcrf.DenseCRF(HEIGHT * WIDTH, CLASSES)
    peer.setUnaryEnergy(np.ascontiguousarray(utils.unary_from_softmax(prob, clip=1e-5)))
    peer.addPairwiseEnergy(np.stack([x, y]).reshape(2, -1), compat=3)
    peer.addPairwiseEnergy(bilateral, compat=4)
    expected = np.array(peer.inference(3)).reshape(prob.shape)
    module = nn.DenseCRF(iterations=3, bi_xy_std=20, bi_rgb_std=stds)
    assert module.params.bi_rgb_std == tuple(stds)
    Q = module(image, prob)
    np.testing.assert_allclose(Q, expected, atol=1e-3)
    assert np.abs(Q - expected).mean() < 1e-6
    as_tensor = module(torch.from_numpy(image).movedim(-1, 0)[None], torch.from_numpy(prob)[None])
    np.testing.assert_array_equal(as_tensor[0].numpy(), Q)


def test_one_deviation_is_the_same_for_each(backend: str):
    image, prob = scene()
    expected = nn.DenseCRF(**QUICK)(image, prob)
    np.testing.assert_array_equal(nn.DenseCRF(**{**QUICK, "bi_rgb_std": np.full(3, 20)})(image, prob), expected)
    grey = nn.DenseCRF(**QUICK)(image[..., :1], prob)
    np.testing.assert_array_equal(grey, nn.DenseCRF(**{**QUICK, "bi_rgb_std": [20]})(image[..., :1], prob))
    assert np.abs(grey - expected).max() > 1e-3
    params = crf.CRFParameters(iterations=3, bi_xy_std=20, bi_rgb_std=(10, 20, 30))
    np.testing.assert_allclose(nn.DenseCRF(**vars(params))(image, prob), crf.densecrf(image, prob, params), atol=1e-5)
    assert "bi_rgb_std=(10, 20, 30)" in repr(nn.DenseCRF(**vars(params)))


def test_refuses_deviations_of_other_channels():
    image, prob = scene()
    message = r"bi_rgb_std: is \(1\.0, 2\.0\), should be one number, or 3, one for each channel of the image"
    with pytest.raises(ValueError, match=message):
        nn.DenseCRF(bi_rgb_std=(1, 2))(image, prob)
    with pytest.raises(
        ValueError, match=r"bi_rgb_std: is .*, should be one number, or 3, one for each channel of the image"
    ):
        crf.refine(image, prob, crf.CRFParameters(bi_rgb_std=(1, 2)))


# --- Errors --------------------------------------------------------------------------------------------------------

IMAGE, PROB = np.zeros((4, 5, 3), np.uint8), np.full((2, 4, 5), 0.5, np.float32)


@pytest.mark.parametrize(
    ("image", "prob", "message"),
    [
        (IMAGE[..., :0], PROB, r"image: shape is \(4, 5, 0\), should be .* for an array, with C at least 1"),
        (IMAGE[..., 0], PROB, r"image: shape is \(4, 5\), should be \(H, W, C\) or \(N, H, W, C\) for an array"),
        (torch.zeros(4, 5), PROB, r"image: shape is \(4, 5\), should be \(C, H, W\) or \(N, C, H, W\) for a tensor"),
        (torch.zeros(4, 5, 3), PROB, r"prob: .* of image, whose shape is \(4, 5, 3\) with channels before height"),
        (IMAGE, PROB[0], r"prob: shape is \(4, 5\), should be \(K, H, W\) or \(N, K, H, W\)"),
        (IMAGE, PROB[:0], r"prob: shape is \(0, 4, 5\), should be .* with K, H and W at least 1"),
        (IMAGE[:0], PROB[:, :0], r"prob: shape is \(2, 0, 5\), should be .* with K, H and W at least 1"),
        (IMAGE, PROB.transpose(0, 2, 1), r"prob: shape is \(2, 5, 4\), should be of the batch, height and width"),
        (IMAGE[None], PROB, r"prob: shape is \(2, 4, 5\), should be of the batch"),
        (IMAGE[None], np.stack([PROB] * 2), r"prob: shape is \(2, 2, 4, 5\), should be of the batch"),
        (IMAGE, 3 * PROB, r"prob: values are 1\.5 to 1\.5, should be probabilities in 0\.\.1"),
        (IMAGE, PROB - 1, r"prob: values are -0\.5 to -0\.5, should be probabilities"),
        (IMAGE, PROB * np.nan, r"prob: values are nan to nan, should be probabilities"),
        (IMAGE - 1.0, PROB, r"image: values are -1 to -1, should be in 0\.\.255, not normalised"),
        (IMAGE + 256.0, PROB, r"image: values are 256 to 256, should be in 0\.\.255"),
        (IMAGE + np.inf, PROB, r"image: values are inf to inf, should be in 0\.\.255"),
        (IMAGE[..., :1] + np.nan, PROB, r"image: values are nan to nan, should be finite"),
        (IMAGE, torch.zeros(2, 4, 5, device="meta"), r"prob: device is meta, should be cpu, that of image"),
    ],
)
def test_refuses_values(image, prob, message: str):
    with pytest.raises(ValueError, match=message):
        nn.DenseCRF()(image, prob)


@pytest.mark.parametrize(
    ("image", "prob", "message"),
    [
        (IMAGE.tolist(), PROB, "image: is a list, should be a tensor or a numpy array"),
        (IMAGE, PROB.tolist(), "prob: is a list, should be a tensor or a numpy array"),
        (IMAGE.astype(np.int32), PROB, r"image: dtype is torch\.int32, should be uint8 or floating"),
        (IMAGE, PROB.astype(np.uint8), r"prob: dtype is torch\.uint8, should be floating"),
        (IMAGE.astype(object), PROB, "image: dtype is object, should be"),
        (IMAGE, PROB.astype(np.longdouble), "prob: dtype is .*float.*, should be floating"),
        (IMAGE, PROB.astype(complex), r"prob: dtype is torch\.complex128, should be floating"),
    ],
)
def test_refuses_types(image, prob, message: str):
    with pytest.raises(TypeError, match=message):
        nn.DenseCRF()(image, prob)


def test_refuses_deviations_that_overflow_keys(backend: str):
    with pytest.raises(ValueError, match="features: key range overflow"):
        nn.DenseCRF(pos_xy_std=1e-4)(IMAGE, PROB)


def test_warns_of_images_in_0_to_1():
    with pytest.warns(UserWarning, match="image: no value is above 0.5; colours are expected in 0..255, not in 0..1"):
        nn.DenseCRF()(IMAGE + 0.5, PROB)
