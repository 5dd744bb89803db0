"""Other projects' functions: what comes back, and what they refuse. Their labels: tests/drop_in/test_pipelines.py."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from fresh_python import python
from photos import photo, scores

from deeplab_fast.compat import irn, toco

IMAGE = photo("coffee", 30, 40)
PROB = scores(IMAGE, 4)


def test_tocos_class():
    crf = toco.DenseCRF(iter_max=3, pos_w=1, pos_xy_std=1, bi_w=4, bi_xy_std=121, bi_rgb_std=5)
    Q = crf(IMAGE, PROB)
    assert (Q.shape, Q.dtype) == (PROB.shape, np.float32)
    np.testing.assert_allclose(Q.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(crf))(IMAGE, PROB), Q)
    strided = np.asfortranarray(IMAGE), np.ascontiguousarray(PROB.transpose(1, 2, 0)).transpose(2, 0, 1)
    np.testing.assert_array_equal(crf(*strided), Q)
    crf.iter_max = 0  # as scripts that try several set it
    np.testing.assert_allclose(crf(IMAGE, PROB), PROB.clip(1e-5) / PROB.clip(1e-5).sum(axis=0), atol=1e-5)


def test_irns_functions():
    labels = irn.crf_inference_label(IMAGE, PROB.argmax(axis=0), t=3, n_labels=5)
    assert (labels.shape, labels.dtype) == (IMAGE.shape[:2], np.int64)
    for function in (irn.crf_inference, irn.crf_inference_inf):
        Q = function(IMAGE, PROB, t=3, labels=4)
        assert (Q.shape, Q.dtype) == (PROB.shape, np.float32)
        assert np.abs(function(IMAGE, PROB, 3, 2, 4) - Q).max() > 1e-3  # the scale counts


def test_activations_that_are_no_probabilities_are_clipped_as_there():
    np.testing.assert_array_equal(
        irn.crf_inference(IMAGE, 3 * PROB - 1, labels=4),
        irn.crf_inference(IMAGE, (3 * PROB - 1).clip(1e-5, 1), labels=4),
    )


def test_bad_input():
    crf = toco.DenseCRF(3, 1, 1, 4, 121, 5)
    with pytest.raises(TypeError, match="image: dtype is float64, should be uint8"):
        crf(IMAGE / 255, PROB)
    with pytest.raises(ValueError, match=r"probmap: shape is \(4, 40, 30\), should be \(K, 30, 40\), of the image's"):
        crf(IMAGE, PROB.transpose(0, 2, 1))
    with pytest.raises(ValueError, match=r"img: shape is \(30, 40\), should be \(H, W, 3\)"):
        irn.crf_inference(IMAGE[..., 0], PROB)
    with pytest.raises(ValueError, match="labels: is 21, should be 4, the number of classes in probs"):
        irn.crf_inference(IMAGE, PROB)
    with pytest.raises(ValueError, match="scale_factor: is 0, should be a positive number"):
        irn.crf_inference(IMAGE, PROB, scale_factor=0, labels=4)
    with pytest.raises(ValueError, match="probs: values are NaN in places"):
        irn.crf_inference(IMAGE, PROB * np.nan, labels=4)
    with pytest.raises(ValueError, match=r"labels: shape is \(4, 30, 40\), should be \(30, 40\), as img"):
        irn.crf_inference_label(IMAGE, PROB)
    with pytest.raises(ValueError, match="iterations: is -1"):
        toco.DenseCRF(-1, 1, 1, 4, 121, 5)


def test_torch_is_not_imported():
    code = """
        import sys
        sys.modules["torch"] = None
        import numpy as np
        import deeplab_fast
        image = np.zeros((4, 5, 3), np.uint8)
        print(deeplab_fast.compat.irn.crf_inference_label(image, np.eye(4, 5, dtype=int), n_labels=2).shape)
    """
    assert python(code) == "(4, 5)"


# --- STEGO's ---------------------------------------------------------------------------------------------------------


def test_stegos_functions():
    torch = pytest.importorskip("torch")
    from deeplab_fast.compat import stego

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 30, 40, generator=generator)
    logits = torch.randn(2, 5, 7, 9, generator=generator, requires_grad=True)
    one = stego.dense_crf(images[1], logits[1])
    assert isinstance(one, np.ndarray)
    assert (one.shape, one.dtype) == ((5, 30, 40), np.float32)
    both = stego.batched_crf(None, images, logits)
    assert isinstance(both, torch.Tensor)
    assert not both.requires_grad
    assert both.shape == (2, 5, 30, 40)
    np.testing.assert_array_equal(both[1], one)
    with pytest.raises(TypeError, match=r"image_tensor: dtype is torch\.uint8, should be floating"):
        stego.dense_crf(images[0].byte(), logits[0])
    with pytest.raises(ValueError, match=r"output_logits: shape is \(2, 5, 7, 9\), should be \(K, h, w\)"):
        stego.dense_crf(images[0], logits)
    with pytest.raises(ValueError, match="output_logits: values are NaN or Inf in places"):
        stego.dense_crf(images[0], logits[0] / 0)
    with pytest.raises(ValueError, match="prob_tensor: length is 1, should be 2, that of img_tensor"):
        stego.batched_crf(None, images, logits[:1])
