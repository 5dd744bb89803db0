"""`crf.batched_crf`: batches of tensors and logits, alone, in workers, and in forked pools."""

from __future__ import annotations

import functools
import multiprocessing
import os

import numpy as np
import pytest
import torch
from photos import photo, scores

from deeplab_fast import compat, crf, nn
from deeplab_fast.crf.batched import IMAGENET_MEAN, IMAGENET_STD, batched_crf

PHOTOS = torch.from_numpy(np.stack([photo(name, 45, 60) for name in ("coffee", "rocket")])).permute(0, 3, 1, 2)
PROB = torch.from_numpy(np.stack([scores(photo(name, 45, 60), 4) for name in ("coffee", "rocket")]))
LOGITS = PROB.clamp(min=1e-4).log()[..., 4::8, 4::8].contiguous()


def normalised(photos: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    return (photos.float() / 255 - mean) / std


def expected(logits: torch.Tensor, preset: str = "irn") -> torch.Tensor:
    prob = torch.nn.functional.interpolate(logits, PHOTOS.shape[2:], mode="bilinear", align_corners=False).softmax(1)
    return nn.DenseCRF.preset(preset)(PHOTOS, prob)


# --- What it computes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["irn", "manga"])
def test_it_is_the_layer_after_upsampling(preset):
    Q = batched_crf(PHOTOS, LOGITS, preset)
    assert (Q.shape, Q.dtype) == ((2, 4, 45, 60), torch.float32)
    torch.testing.assert_close(Q, expected(LOGITS, preset), atol=1e-5, rtol=0)
    assert crf.batched_crf is batched_crf


def test_normalised_images_give_what_the_photos_give():
    Q = batched_crf(PHOTOS, LOGITS, "irn")
    for images, image_range in (
        (normalised(PHOTOS), "auto"),
        (normalised(PHOTOS).half().float(), "normalized"),
        (PHOTOS.float(), "auto"),
        (PHOTOS.double() / 255, "0..1"),
        (PHOTOS.half(), "0..255"),
    ):
        assert torch.equal(batched_crf(images, LOGITS, "irn", image_range=image_range), Q)


def test_probabilities_and_dtypes():
    Q = batched_crf(PHOTOS, PROB, crf.parameters("irn"), kind="probabilities")
    torch.testing.assert_close(Q, nn.DenseCRF.preset("irn")(PHOTOS, PROB), atol=1e-5, rtol=0)
    half = batched_crf(PHOTOS, LOGITS.half(), "irn")
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), expected(LOGITS.half().float()), atol=2e-3, rtol=0)
    assert batched_crf(PHOTOS, LOGITS.double(), "irn").dtype == torch.float64
    asking = batched_crf(PHOTOS, LOGITS.clone().requires_grad_(), "irn")
    assert not asking.requires_grad
    assert batched_crf(PHOTOS[:0], LOGITS[:0]).shape == (0, 4, 45, 60)


def test_maps_of_one_image_share_its_lattice(monkeypatch):
    """Stacked, or in a list where sizes or numbers of classes differ; each as if it were alone."""
    built = []
    from deeplab_fast.crf import batched

    monkeypatch.setattr(batched, "photo_model", lambda *args: built.append(args) or crf.refining.photo_model(*args))
    maps = torch.stack([LOGITS, 2 * LOGITS, LOGITS.flip(1)], dim=1)
    Q = batched_crf(PHOTOS, maps, "irn")
    assert len(built) == 2  # one an image
    assert Q.shape == (2, 3, 4, 45, 60)
    for m in range(3):
        assert torch.equal(Q[:, m], batched_crf(PHOTOS, maps[:, m].contiguous(), "irn"))
    built.clear()
    others = [LOGITS, LOGITS[:, :2], torch.nn.functional.interpolate(LOGITS, (45, 60)), maps]
    results = batched_crf(PHOTOS, others, "irn")
    assert len(built) == 2
    assert [one.shape[-3] for one in results] == [4, 2, 4, 4]
    for one, logits in zip(results, others, strict=True):
        torch.testing.assert_close(one, batched_crf(PHOTOS, logits, "irn"), atol=1e-6, rtol=0)


@pytest.mark.cuda
def test_on_a_gpu():
    Q = batched_crf(PHOTOS, [LOGITS.cuda(), LOGITS], "irn")
    assert Q[0].is_cuda
    assert not Q[1].is_cuda
    torch.testing.assert_close(Q[0].cpu(), Q[1], atol=1e-3, rtol=0)


def test_bad_input():
    for images, logits, options, error, message in (
        (PHOTOS.numpy(), LOGITS, {}, TypeError, "images: is a ndarray, should be a tensor"),
        (PHOTOS.long(), LOGITS, {}, TypeError, "images: dtype is torch.int64, should be uint8 or floating"),
        (PHOTOS[:, :1], LOGITS, {}, ValueError, r"images: shape is \(2, 1, 45, 60\), should be \(N, 3, H, W\)"),
        (
            PHOTOS / 255,
            LOGITS,
            {},
            ValueError,
            r"images: values are .*; image_range says which: 0\.\.255, 0\.\.1 or norm",
        ),
        (
            PHOTOS.float(),
            LOGITS,
            {"image_range": "0..1"},
            ValueError,
            r"images: values are .*, should be in 0\.\.1, being",
        ),
        (PHOTOS / 0, LOGITS, {}, ValueError, "images: values are nan"),
        (PHOTOS - 9.0, LOGITS, {}, ValueError, r"images: values are .*, should be in -3\.\.3\.5, being normalized"),
        (PHOTOS, LOGITS, {"image_range": "bytes"}, ValueError, r"image_range: is 'bytes', should be auto, 0\.\.255"),
        (PHOTOS, LOGITS, {"kind": "scores"}, ValueError, "kind: is 'scores', should be logits or probabilities"),
        (PHOTOS, LOGITS, {"kind": "probabilities"}, ValueError, r"logits: values are .*, should be probabilities in"),
        (
            PHOTOS,
            LOGITS[:1],
            {},
            ValueError,
            r"logits: shape is \(1, 4, 6, 7\), should be .* with N = 2, that of images",
        ),
        (PHOTOS, [LOGITS, LOGITS.int()], {}, TypeError, r"logits\[1\]: dtype is torch.int32, should be floating"),
        (PHOTOS, LOGITS * float("inf"), {}, ValueError, "logits: values are .*, should be finite"),
    ):
        with pytest.raises(error, match=message):
            batched_crf(images, logits, **options)
    dark = batched_crf(torch.zeros(1, 3, 5, 6), torch.zeros(1, 2, 5, 6))  # of one colour, whatever its range
    torch.testing.assert_close(dark, torch.full((1, 2, 5, 6), 0.5))


# --- Workers ---------------------------------------------------------------------------------------------------------

WAIT = 60  # seconds after which a child is taken for hanging


def use_torch() -> None:
    """Work that torch shares among threads."""
    large = torch.randn(400, 400)
    (large @ large).softmax(dim=0)


def _whole_batch(_: int) -> np.ndarray:
    return batched_crf(normalised(PHOTOS), LOGITS, "irn").numpy()


def _one_image(n: int) -> np.ndarray:
    (torch.ones(3) + n).sum()
    return compat.stego.dense_crf(normalised(PHOTOS)[n], LOGITS[n])


LARGE = torch.nn.functional.interpolate(normalised(PHOTOS), (300, 400))  # which torch shares among threads


def _large_images(n: int) -> np.ndarray:
    return compat.stego.batched_crf(None, LARGE[n : n + 1], LOGITS[n : n + 1]).numpy()


@pytest.fixture
def several_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    use_torch()
    yield
    torch.set_num_threads(before)


forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@forking
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking a process with threads, which is the point
@pytest.mark.parametrize("work", [_whole_batch, _one_image, _large_images])
def test_a_forked_pool_does_not_hang(several_threads, work):
    """Parent and children use torch, as in the scripts that hang."""
    expected = [work(n) for n in range(2)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map_async(work, range(2)).get(
            timeout=WAIT
        )  # TimeoutError where it hangs; leaving kills the children
        again = compat.stego.batched_crf(pool, normalised(PHOTOS), LOGITS)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(again, [compat.stego.dense_crf(normalised(PHOTOS)[n], LOGITS[n]) for n in range(2)])
    assert torch.get_num_threads() == 3


def _from_several_threads(_: int) -> tuple[bool, int]:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: batched_crf(LARGE, LOGITS, "irn").numpy(), range(8)))
    return all(np.array_equal(Q, found[0]) for Q in found), torch.get_num_threads()  # torch.equal would hang here


@forking
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_from_several_threads_of_a_forked_process(several_threads):
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map_async(_from_several_threads, [0]).get(timeout=WAIT) == [(True, 3)]


class Refined(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, n: int) -> torch.Tensor:
        return batched_crf(PHOTOS[n % 2 :][:1], LOGITS[n % 2 :][:1], "irn")[0]


@forking
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_in_workers_of_a_data_loader(several_threads):
    loader = torch.utils.data.DataLoader(Refined(), num_workers=2, timeout=WAIT, multiprocessing_context="fork")
    found = torch.cat(list(loader))
    assert torch.equal(found, batched_crf(PHOTOS, LOGITS, "irn").repeat(2, 1, 1, 1))


def test_in_threads_of_python():
    from concurrent.futures import ThreadPoolExecutor

    once = batched_crf(PHOTOS, LOGITS, "irn")
    with ThreadPoolExecutor(3) as pool:
        assert all(
            torch.equal(Q, once) for Q in pool.map(functools.partial(batched_crf, PHOTOS, params="irn"), [LOGITS] * 6)
        )
