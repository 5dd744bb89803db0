"""Beyond photos: volumes with voxel spacing, any number of modalities, any number of channels."""

from __future__ import annotations

import numpy as np
import pytest
from volumes import SPACING, generic_interface, volume

from deeplab_fast import crf

# The layer and `refine` have the same features, to the bit (a test below), but add up in an order of their own: as far
# apart as elsewhere, tests/nn/test_nn_dense_crf.py.
LAYER = 1e-5
PARAMS = crf.CRFParameters(pos_w=3, pos_xy_std=2, bi_w=5, bi_xy_std=9)


@pytest.mark.parametrize("size", [(12, 15, 10), (1, 7, 9)])
@pytest.mark.parametrize("modalities", [1, 2, 4])
def test_a_volume_is_that_of_pydensecrfs_generic_interface(size, modalities):
    dcrf = pytest.importorskip("pydensecrf.densecrf")
    from agreement import assert_agree
    from pydensecrf import utils

    image, deviations, prob = volume(size, modalities)
    params = crf.parameters(PARAMS, bi_rgb_std=deviations)
    expected = generic_interface(dcrf, utils, image, prob, params, SPACING)
    Q = crf.refine(image, prob, params, spacing=SPACING)
    assert Q.shape == prob.shape
    assert_agree(Q.reshape(len(prob), -1), expected)
    assert size[0] == 1 or np.abs(Q - crf.refine(image, prob, params)).max() > 0.1  # spacing counts


def test_the_crf_mends_a_volume():
    image, deviations, prob = volume((10, 30, 30), 2)
    clean = volume((10, 30, 30), 2, seed=0)[2].argmax(0)
    Q = crf.refine(image, prob, crf.parameters(PARAMS, bi_rgb_std=deviations), spacing=SPACING)
    # Of neighbours along a row, more have one label.
    changes = [(labels[..., 1:] != labels[..., :-1]).mean() for labels in (clean, Q.argmax(0))]
    assert changes[1] < 0.3 * changes[0]


def test_one_modality_needs_no_axis_and_any_dtype_will_do():
    image, _, prob = volume(modalities=1)
    whole = np.round(image)
    expected = crf.refine(whole, prob, PARAMS)
    np.testing.assert_array_equal(crf.refine(whole[0].astype(np.int16), prob, PARAMS), expected)
    np.testing.assert_array_equal(crf.refine(whole.astype(np.float64), prob.astype(np.float64), PARAMS), expected)


def test_a_batch_of_volumes():
    volumes = [volume(seed=seed) for seed in range(2)]
    images, probs = np.stack([one[0] for one in volumes]), np.stack([one[2] for one in volumes])
    params = crf.parameters(PARAMS, bi_rgb_std=volumes[0][1])
    Q = crf.refine(images, probs, params, spacing=SPACING)
    for n, (image, _, prob) in enumerate(volumes):
        np.testing.assert_array_equal(Q[n], crf.refine(image, prob, params, spacing=SPACING))
    with pytest.raises(
        ValueError, match=r"image: shape is \(1, 2, 12, 15, 10\), should be \(N, C, D, H, W\) with N = 2"
    ):
        crf.refine(images[:1], probs, params)


def photo_and_scores(channels: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    prob = np.ascontiguousarray(rng.dirichlet([1, 1, 1], (11, 14)).transpose(2, 0, 1), np.float32)
    return rng.integers(0, 256, (11, 14, channels)).astype(np.uint8), prob


def test_spacing_of_photos():
    """Twice as high pixels are pixels two apart; the deviations are in units of the spacing."""
    dcrf = pytest.importorskip("pydensecrf.densecrf")
    from agreement import assert_agree

    image, prob = photo_and_scores(3)
    params = crf.parameters("irn", bi_rgb_std=30)
    theirs = dcrf.DenseCRF2D(14, 11, 3)
    theirs.setUnaryEnergy(-np.log(prob.clip(1e-5, 1)).reshape(3, -1))
    theirs.addPairwiseGaussian((3, 1.5), 3)
    theirs.addPairwiseBilateral((50, 25), 30, image, 10)
    Q = crf.refine(image, prob, params, spacing=(2, 1))
    assert_agree(Q.reshape(3, -1), np.array(theirs.inference(10)))
    np.testing.assert_array_equal(crf.refine(image, prob, params, spacing=(1, 1)), crf.refine(image, prob, params))


@pytest.mark.parametrize("channels", [1, 2, 7])
def test_photos_of_other_channels(channels):
    dcrf = pytest.importorskip("pydensecrf.densecrf")
    from agreement import assert_agree

    image, prob = photo_and_scores(channels)
    deviations = tuple(range(20, 20 + channels))
    y, x = np.mgrid[:11, :14]
    features = np.stack([x / 50, y / 50, *(image.transpose(2, 0, 1) / np.reshape(deviations, (-1, 1, 1)))])
    theirs = dcrf.DenseCRF2D(14, 11, 3)
    theirs.setUnaryEnergy(-np.log(prob.clip(1e-5, 1)).reshape(3, -1))
    theirs.addPairwiseGaussian(3, 3)
    theirs.addPairwiseEnergy(features.reshape(len(features), -1).astype(np.float32), 10)
    Q = crf.refine(image, prob, crf.parameters("irn", bi_rgb_std=deviations))
    assert_agree(Q.reshape(3, -1), np.array(theirs.inference(10)))
    half = crf.refine(-0.5 * image, prob, crf.parameters("irn", bi_rgb_std=tuple(one / 2 for one in deviations)))
    assert half.shape == prob.shape  # in any unit


def test_bad_volumes():
    image, _, prob = volume()
    with pytest.raises(
        ValueError, match=r"prob: shape is \(3, 15, 10, 12\), should be \(K, 12, 15, 10\), as the image"
    ):
        crf.refine(image, prob.transpose(0, 2, 3, 1))
    with pytest.raises(ValueError, match=r"image: shape is \(2, 15\), should be \(C, D, H, W\) or \(D, H, W\)"):
        crf.refine(image[:, 0, :, 0], prob)
    with pytest.raises(
        ValueError, match=r"spacing: is \(1, 1\), should be 3 positive numbers, one for each spatial axis"
    ):
        crf.refine(image, prob, spacing=(1, 1))
    for wrong in ((1, 1, 0), (1, 1, float("nan")), (1, 1, -2)):
        with pytest.raises(ValueError, match="spacing: is"):
            crf.refine(image, prob, spacing=wrong)
    with pytest.raises(
        ValueError, match=r"bi_rgb_std: is \(1\.0, 2\.0, 3\.0\), should be one number, or 2, one for each"
    ):
        crf.refine(image, prob, crf.parameters(PARAMS, bi_rgb_std=(1, 2, 3)))
    with pytest.raises(TypeError, match="image: dtype is complex64, should be one of real numbers"):
        crf.refine(image.astype(np.complex64), prob)
    image[1, 2, 3, 4] = np.inf
    with pytest.raises(ValueError, match="image: values are NaN or Inf in places, should be finite"):
        crf.refine(image, prob)


# --- The layer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modalities", [1, 3])
def test_the_layer_gives_the_same(modalities):
    torch = pytest.importorskip("torch")
    from deeplab_fast import nn

    cases = [volume(modalities=modalities, seed=seed) for seed in range(2)]
    layer = nn.DenseCRF(10, 3, 2, 5, 9, cases[0][1], spacing=SPACING)
    params = crf.parameters(PARAMS, bi_rgb_std=cases[0][1])
    expected = [crf.refine(image, prob, params, spacing=SPACING) for image, _, prob in cases]
    images, probs = (torch.from_numpy(np.stack([one[k] for one in cases])) for k in (0, 2))
    batch = layer(images, probs)
    for n, Q in enumerate(expected):
        np.testing.assert_allclose(batch[n].numpy(), Q, atol=LAYER)
        np.testing.assert_allclose(layer(images[n], probs[n]).numpy(), Q, atol=LAYER)
        np.testing.assert_allclose(layer(cases[n][0], cases[n][2]), Q, atol=LAYER)
    if modalities == 3:  # no RGB
        assert (images > 255).any()
    plain = nn.DenseCRF(10, 3, 2, 5, 9, cases[0][1])  # five axes are a batch of volumes, without more words
    expected = crf.refine(cases[1][0], cases[1][2], params)
    np.testing.assert_allclose(plain(images, probs)[1].numpy(), expected, atol=LAYER)
    assert repr(nn.DenseCRF(spacing=SPACING)).endswith("spacing=(3, 1, 1))")


def test_the_layer_on_photos_with_spacing():
    torch = pytest.importorskip("torch")
    from deeplab_fast import nn

    image, prob = photo_and_scores(3)
    params = crf.parameters("irn", bi_rgb_std=30)
    Q = nn.DenseCRF.preset("irn", bi_rgb_std=30, spacing=(2, 1))(image, prob)
    np.testing.assert_allclose(Q, crf.refine(image, prob, params, spacing=(2, 1)), atol=LAYER)
    for spacing in ((1, 1, 1, 1), (1,)):
        with pytest.raises(ValueError, match=r"spacing: is .*, should be two positive numbers for photos, or three"):
            nn.DenseCRF(spacing=spacing)
    with pytest.raises(ValueError, match=r"spacing: is \(1, 0, 1\), should be 3 positive numbers"):
        nn.DenseCRF(spacing=(1, 0, 1))
    volumes = nn.DenseCRF(spacing=(1, 1, 1))
    with pytest.raises(ValueError, match=r"image: shape is \(2, 3\), should be \(C, D, H, W\) or \(N, C, D, H, W\)"):
        volumes(torch.ones(2, 3), torch.ones(1, 2, 3, 4))
    with pytest.raises(ValueError, match=r"prob: shape is \(1, 2, 3\), should be \(K, D, H, W\) or \(N, K, D, H, W\)"):
        volumes(torch.ones(2, 3, 4, 5), torch.ones(1, 2, 3))
    with pytest.raises(ValueError, match=r"prob: shape is .* of the batch, depth, height and width of image"):
        volumes(torch.ones(2, 3, 4, 5), torch.ones(2, 3, 4, 6))


def test_gradients_of_a_volume():
    torch = pytest.importorskip("torch")
    from deeplab_fast import nn

    image, deviations, prob = volume((3, 4, 5))
    image, prob = (torch.from_numpy(one).requires_grad_() for one in (image, prob))
    Q = nn.DenseCRF(2, 3, 2, 5, 9, deviations, spacing=SPACING)(image, prob)
    to_image, to_prob = torch.autograd.grad(Q[0].square().sum(), [image, prob])
    assert to_image.abs().max() > 0
    assert to_prob.abs().max() > 0


def test_normalizations_have_one_number_everywhere():
    pytest.importorskip("torch")
    from deeplab_fast import _arguments
    from deeplab_fast.crf.parameters import NORMALIZATIONS
    from deeplab_fast.pydensecrf.densecrf import NormalizationType

    assert {name: number for number, name in enumerate(NORMALIZATIONS)} == _arguments.NORMALIZATIONS
    named = ["NO_NORMALIZATION" if name == "none" else f"NORMALIZE_{name.upper()}" for name in NORMALIZATIONS]
    assert [one.name for one in NormalizationType] == named


def test_the_layers_features_are_the_bits_of_pydensecrfs():
    torch = pytest.importorskip("torch")
    from deeplab_fast.crf.features import bilateral_features, spatial_features
    from deeplab_fast.pydensecrf import utils

    image, deviations, _ = volume()
    tensor = torch.from_numpy(image)[None]
    sdims = [7 / one for one in SPACING]
    expected = utils.create_pairwise_bilateral(sdims, deviations, image, chdim=0)
    np.testing.assert_array_equal(bilateral_features(tensor, 7, deviations, SPACING)[0].flatten(1).numpy(), expected)
    expected = utils.create_pairwise_gaussian(sdims, image.shape[1:])
    np.testing.assert_array_equal(spatial_features(tensor, 7, SPACING)[0].flatten(1).numpy(), expected)
    photo = torch.from_numpy(photo_and_scores(3)[0]).permute(2, 0, 1)[None]
    expected = utils.create_pairwise_gaussian([25, 50], photo.shape[2:])[::-1]  # x before y
    np.testing.assert_array_equal(spatial_features(photo, 50, (2, 1))[0].flatten(1).numpy(), expected)
