"""The torch-free CRF on numpy: presets, parameters, probabilities from scores and from labels, inference."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from deeplab_fast import crf
from deeplab_fast.crf.parameters import NORMALIZATIONS


def scene(height=40, width=50, classes=3, seed=0):
    """A picture of a bright square on dark ground and noisy probabilities for it."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((height, width), int)
    truth[10:30, 15:40] = 1
    image = np.where(truth[..., None] == 1, [220, 180, 60], [20, 40, 90]) + rng.integers(-5, 6, (height, width, 3))
    logits = rng.normal(0, 1.0, (classes, height, width))
    logits[0] += 1.5 * (truth == 0)
    logits[1] += 1.5 * (truth == 1)
    prob = np.exp(logits) / np.exp(logits).sum(axis=0)
    return image.clip(0, 255).astype(np.uint8), prob.astype(np.float32), truth


# ------------------------------------------------------------------------------------------------ parameters


def test_presets_are_the_published_ones():
    values = {name: dataclasses.astuple(params) for name, params in crf.PRESETS.items()}
    assert values == {
        "deeplab": (3, 1, 4, 67, 3, 10, "symmetric"),
        "irn": (3, 3, 10, 50, 5, 10, "symmetric"),
        "psa": (3, 3, 10, 80, 13, 10, "symmetric"),
        "afa": (3, 3, 4, 64, 5, 10, "symmetric"),
        "toco": (1, 1, 4, 121, 5, 10, "symmetric"),
        "toco-cam": (3, 3, 4, 36, 3, 10, "symmetric"),
        "cutler": (7, 3, 10, 50, 5, 10, "symmetric"),
        "mctformer": (3, 4, 3, 83, 5, 10, "symmetric"),
        "fma": (2, 2, 4, 65, 3, 10, "symmetric"),
        "stego": (3, 1, 4, 67, 3, 10, "symmetric"),
        "scenedino": (3, 0.3, 4, 20, 3, 10, "symmetric"),
        "manga": (3, 1, 20, 23, 7, 5, "none"),
    }


@pytest.mark.parametrize("name", crf.PRESETS)
def test_every_preset_names_its_source(name):
    assert f'"{name}"' in crf.parameters.__doc__


@pytest.mark.parametrize("name", crf.PRESETS)
def test_presets_are_pydensecrfs_calls(name):
    peer = pytest.importorskip("pydensecrf.densecrf")
    from agreement import assert_agree

    image, prob, _ = scene(41, 51, classes=3)
    params = crf.PRESETS[name]
    options = {"normalization": NORMALIZATIONS.index(params.normalization)}
    theirs = peer.DenseCRF2D(51, 41, 3)
    theirs.setUnaryEnergy(-np.log(prob.clip(1e-5, 1)).reshape(3, -1))
    theirs.addPairwiseGaussian(params.pos_xy_std, params.pos_w, **options)
    theirs.addPairwiseBilateral(params.bi_xy_std, params.bi_rgb_std, image, params.bi_w, **options)
    expected = np.array(theirs.inference(params.iterations))
    assert_agree(crf.refine(image, prob, name).reshape(3, -1), expected, worst=5e-3)


def test_parameters_take_overrides_and_leave_out_none():
    params = crf.parameters("irn", bi_w=7.0, iterations=3, pos_w=None)
    assert (params.bi_w, params.iterations, params.pos_w, params.bi_xy_std) == (7, 3, 3, 50)
    assert crf.parameters(params) is not None
    with pytest.raises(ValueError, match="preset: is 'voc', should be deeplab, irn, psa, afa, toco"):
        crf.parameters("voc")


@pytest.mark.parametrize("name", ["pos_xy_std", "bi_xy_std", "bi_rgb_std"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_sigmas_must_be_positive(name, value):
    with pytest.raises(ValueError, match=f"{name}: is .*, should be a positive number"):
        crf.CRFParameters(**{name: value})


def test_other_parameters_are_checked():
    with pytest.raises(ValueError, match="bi_w: is nan, should be a finite number"):
        crf.CRFParameters(bi_w=float("nan"))
    with pytest.raises(ValueError, match="iterations: is -1, should be at least 0"):
        crf.CRFParameters(iterations=-1)
    with pytest.raises(TypeError, match=r"iterations: is 2\.5, should be a whole number"):
        crf.CRFParameters(iterations=2.5)
    with pytest.raises(ValueError, match="normalization: is 'both', should be none, before, after or symmetric"):
        crf.CRFParameters(normalization="both")


# ------------------------------------------------------------------------------------------------- inference


def test_refined_labels_follow_the_picture():
    image, prob, truth = scene()
    Q = crf.refine(image, prob, crf.parameters("psa", bi_xy_std=20))
    assert Q.shape == prob.shape
    assert Q.dtype == np.float32
    assert Q.flags.c_contiguous
    np.testing.assert_allclose(Q.sum(axis=0), 1, atol=1e-5)
    before, after = (prob.argmax(0) == truth).mean(), (Q.argmax(0) == truth).mean()
    assert before < 0.85
    assert after > 0.99


def test_former_name():
    image, prob, _ = scene()
    with pytest.warns(DeprecationWarning, match="is now called refine"):
        Q = crf.densecrf(image, prob, "irn")
    np.testing.assert_array_equal(Q, crf.refine(image, prob, "irn"))


def test_agrees_with_pydensecrf():
    peer = pytest.importorskip("pydensecrf.densecrf")
    from pydensecrf import utils

    image, prob, _ = scene(41, 51, classes=4)
    params = crf.PRESETS["irn"]
    theirs = peer.DenseCRF2D(51, 41, 4)
    theirs.setUnaryEnergy(utils.unary_from_softmax(prob))
    theirs.addPairwiseGaussian(sxy=params.pos_xy_std, compat=params.pos_w)
    theirs.addPairwiseBilateral(sxy=params.bi_xy_std, srgb=params.bi_rgb_std, rgbim=image, compat=params.bi_w)
    expected = np.array(theirs.inference(10)).reshape(prob.shape)
    np.testing.assert_allclose(crf.refine(image, prob, "irn"), expected, atol=1e-3)


def test_built_crf_can_be_used_again():
    image, prob, _ = scene()
    built = crf.build(image, prob, "afa")
    np.testing.assert_array_equal(built.infer(), built.infer(10))
    np.testing.assert_allclose(built.infer(0), prob, atol=1e-5)


def test_kernels_of_weight_zero_leave_the_probabilities():
    image, prob, _ = scene()
    Q = crf.refine(image, prob, crf.CRFParameters(pos_w=0, bi_w=0))
    np.testing.assert_allclose(Q, prob, atol=1e-5)


def test_accepts_any_strides_and_float_types():
    image, prob, _ = scene()
    expected = crf.refine(image, prob)
    mirrored = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
    wide = np.ascontiguousarray(prob.transpose(1, 2, 0)).transpose(2, 0, 1)
    np.testing.assert_array_equal(crf.refine(mirrored, wide), expected)
    np.testing.assert_allclose(crf.refine(image, prob.astype(np.float64)), expected, atol=1e-6)


def test_input_is_left_alone():
    image, prob, _ = scene()
    kept = image.copy(), prob.copy()
    crf.refine(image, prob)
    np.testing.assert_array_equal(image, kept[0])
    np.testing.assert_array_equal(prob, kept[1])


def test_bad_images_and_probabilities():
    image, prob, _ = scene()
    with pytest.raises(TypeError, match="image: dtype is float64, should be uint8"):
        crf.refine(image / 255, prob)
    with pytest.raises(ValueError, match=r"image: shape is \(40, 50\), should be \(H, W, C\), not empty"):
        crf.refine(image[..., 0], prob)
    with pytest.raises(ValueError, match=r"prob: shape is \(3, 50, 40\), should be \(K, 40, 50\), as the image"):
        crf.refine(image, prob.transpose(0, 2, 1))
    with pytest.raises(ValueError, match=r"prob: values are -2\.998 to"):
        crf.refine(image, prob - 3)
    prob[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match=r"prob: values are nan"):
        crf.refine(image, prob)


# --------------------------------------------------------------------------------- probabilities from scores


def test_score_kind_is_recognised():
    _, prob, _ = scene()
    assert crf.score_kind(prob) == "probabilities"
    assert crf.score_kind(prob.astype(np.float16)) == "probabilities"
    assert crf.score_kind(np.log(prob)) == "logits"
    assert crf.score_kind(prob[:1]) == "sigmoid"


def test_logits_become_probabilities():
    _, prob, _ = scene()
    np.testing.assert_allclose(crf.probabilities_from_scores(np.log(prob) + 7), prob, atol=1e-6)
    np.testing.assert_array_equal(crf.probabilities_from_scores(prob), prob)
    huge = crf.probabilities_from_scores(np.array([1e30, -1e30]).reshape(2, 1, 1))
    np.testing.assert_array_equal(huge.ravel(), [1, 0])
    # Taken as logits on request, although they look like probabilities.
    assert crf.probabilities_from_scores(prob, "logits").max() < 0.6


def test_scores_do_not_change_their_input():
    scores = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    kept = scores.copy()
    crf.probabilities_from_scores(scores)
    np.testing.assert_array_equal(scores, kept)


def test_bad_scores():
    scores = np.zeros((2, 3, 4))
    with pytest.raises(TypeError, match="scores: dtype is int64, should be floating"):
        crf.probabilities_from_scores(np.zeros((2, 3, 4), np.int64))
    with pytest.raises(ValueError, match=r"scores: shape is \(3, 4\), should be \(K, H, W\), not empty"):
        crf.probabilities_from_scores(scores[0])
    with pytest.raises(ValueError, match=r"shape is \(0, 3, 4\)"):
        crf.probabilities_from_scores(scores[:0])
    with pytest.raises(ValueError, match="kind: is 'odds', should be auto, logits, probabilities or sigmoid"):
        crf.probabilities_from_scores(scores, "odds")
    with pytest.raises(ValueError, match=r"values are 3 to 3, should be in 0\.\.1"):
        crf.probabilities_from_scores(scores + 3, "probabilities")
    scores[0, 0, :2] = np.nan, np.inf
    with pytest.raises(ValueError, match="scores: values are NaN or Inf in 2 of 24 places, should be finite"):
        crf.probabilities_from_scores(scores)


def test_resize_matches_half_pixel_bilinear():
    scores = np.array([[[0.0, 4.0]]])
    np.testing.assert_allclose(crf.resize_scores(scores, (2, 4)), [[[0, 1, 3, 4]] * 2])
    assert crf.resize_scores(scores, (1, 2)).dtype == np.float32


def test_resize_matches_torch():
    torch = pytest.importorskip("torch")
    scores = np.random.default_rng(0).normal(size=(3, 11, 17)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(scores)[None], size=(83, 131), mode="bilinear")
    np.testing.assert_allclose(crf.resize_scores(scores, (83, 131)), expected[0].numpy(), atol=1e-5)


# --------------------------------------------------------------------------------- probabilities from labels


def test_labels_become_probabilities():
    prob = crf.probabilities_from_labels(np.array([[0, 2, 255]]), 3, 0.8)
    np.testing.assert_allclose(prob[:, 0].T, [[0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [1 / 3] * 3], rtol=1e-6)
    assert prob.dtype == np.float32


def test_unsure_class_is_no_class():
    prob = crf.probabilities_from_labels(np.array([[0, 1, 2]]), 3, 0.8, unsure=0)
    np.testing.assert_allclose(prob[:, 0].T, [[0, 0.5, 0.5], [0, 0.8, 0.2], [0, 0.2, 0.8]], rtol=1e-6)


def test_labels_agree_with_the_drop_in():
    from deeplab_fast.pydensecrf.utils import unary_from_labels

    labels = np.random.default_rng(0).integers(0, 4, (5, 6))
    ours = crf.probabilities_from_labels(labels, 4, 0.7)
    np.testing.assert_allclose(-np.log(ours).reshape(4, -1), unary_from_labels(labels, 4, 0.7, zero_unsure=False), 1e-5)
    shifted = crf.probabilities_from_labels(labels, 4, 0.7, unsure=0)[1:]
    np.testing.assert_allclose(-np.log(shifted).reshape(3, -1), unary_from_labels(labels, 3, 0.7), rtol=1e-5)


def test_one_class_is_certain():
    np.testing.assert_array_equal(crf.probabilities_from_labels(np.zeros((2, 2), int), 1, 0.7), np.ones((1, 2, 2)))


def test_bad_labels():
    labels = np.array([[0, 5], [1, 255]])
    with pytest.raises(ValueError, match=r"labels: values are 5, should be in 0\.\.2, there being 3 classes"):
        crf.probabilities_from_labels(labels, 3)
    with pytest.raises(ValueError, match="values are -1, 254"):
        crf.probabilities_from_labels(labels - 1, 6)
    with pytest.raises(TypeError, match="labels: dtype is float64, should be integers"):
        crf.probabilities_from_labels(labels.astype(float), 6)
    with pytest.raises(ValueError, match="gt_prob: is 1, should be strictly between 0 and 1"):
        crf.probabilities_from_labels(labels, 6, 1)
    with pytest.raises(ValueError, match="classes: is 0, should be at least 1"):
        crf.probabilities_from_labels(labels, 0)
    with pytest.raises(ValueError, match=r"shape is \(4,\)"):
        crf.probabilities_from_labels(labels.ravel(), 6)
    with pytest.raises(ValueError, match=r"unsure: is \[0\], should be such that one"):
        crf.probabilities_from_labels(np.zeros((2, 2), int), 1, unsure=0)


def test_works_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np; from deeplab_fast import crf\n"
        "Q = crf.refine(np.zeros((4, 5, 3), np.uint8), np.full((2, 4, 5), 0.5))\n"
        "assert Q.shape == (2, 4, 5)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
