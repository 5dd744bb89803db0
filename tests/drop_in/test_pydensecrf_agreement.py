"""The drop-in gives pydensecrf's answers."""

from __future__ import annotations

import numpy as np
import pydensecrf.densecrf as peer
import pytest
from agreement import NORMALIZATIONS, PRESETS, WORST, add_preset, assert_agree, compare, peer_filter
from photos import PHOTOS, photo, unary

import deeplab_fast.pydensecrf.densecrf as ours
from deeplab_fast.pydensecrf import utils


def image_features(image: np.ndarray, dims: int) -> np.ndarray:
    """The first `dims` of red/5, green/5, blue/5, x/20, y/20, red·x: near and far points in feature space."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    red, green, blue = np.moveaxis(image.astype(np.float32), 2, 0)
    features = [red / 5, green / 5, blue / 5, x / 20, y / 20, red * x / 2000]
    return np.stack(features[:dims]).reshape(dims, -1)


@pytest.mark.parametrize("points", [1, 3, 4, 97, 6000])
@pytest.mark.parametrize("dims", [1, 2, 3, 5, 6])
def test_one_filter(dims, points):
    features = np.ascontiguousarray(image_features(photo("coffee", 75, 80), dims)[:, :points])
    values = np.random.default_rng(dims).uniform(0.5, 1, (3, points)).astype(np.float32)
    result = ours.core().Lattice(features).filter(values)
    expected = peer_filter(features, values)
    relevant = expected > 0.1 * expected.max()  # see peer_filter
    assert np.abs(result / expected - 1)[relevant].max() <= 1e-5
    assert np.abs(result - expected).max() <= 1e-6 * expected.max()


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_on_photos(preset, name):
    image = photo(name, 142, 201)
    energy = unary(image, 21)

    def build(crf, module):
        crf.setUnaryEnergy(energy)
        add_preset(crf, image, preset)

    compare(build, (201, 142), 21, worst=WORST.get(preset, 1e-3))


@pytest.mark.parametrize(("name", "labels"), [("coffee", 21), ("rocket", 21), ("astronaut", 2), ("chelsea", 2)])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_at_full_size(preset, name, labels):
    image = photo(name)
    energy = unary(image, labels)

    def build(crf, module):
        crf.setUnaryEnergy(energy)
        add_preset(crf, image, preset)

    compare(build, (500, 375), labels, worst=WORST.get(preset, 1e-3))


@pytest.mark.parametrize("present", ["few", "all"])
@pytest.mark.parametrize("labels", [1, 2, 3, 4, 5, 8, 9, 21, 33, 91, 182])
def test_label_counts(labels, present):
    image = photo("chelsea", 71, 90)
    energy = unary(image, labels, min(labels, 20) if present == "few" else labels)

    def build(crf, module):
        crf.setUnaryEnergy(energy)
        add_preset(crf, image, "irn")

    compare(build, (90, 71), labels)


def compat_forms(labels: int) -> dict[str, object]:
    rng = np.random.default_rng(3)
    matrix = rng.normal(0, 2, (labels, labels)).astype(np.float32)
    return {
        "number": 4.0,
        "negative number": -2.0,
        "vector": -rng.uniform(0, 5, labels).astype(np.float32),
        "repelling vector": rng.uniform(0, 5, labels).astype(np.float32),
        "matrix": matrix - 4 * np.eye(labels, dtype=np.float32),
        "potts matrix": -3 * np.eye(labels, dtype=np.float32),
    }


@pytest.mark.parametrize("compat", compat_forms(1))
@pytest.mark.parametrize("normalization", NORMALIZATIONS, ids=lambda n: n.name)
def test_normalisations_and_compats(normalization, compat):
    labels = 5
    image = photo("astronaut", 61, 83)
    energy = unary(image, labels)
    weights = compat_forms(labels)[compat]
    # Unnormalised filters sum up to thousands: weights to match, or every softmax saturates.
    if normalization == ours.NO_NORMALIZATION:
        weights = weights * np.float32(1e-3)

    def build(crf, module):
        crf.setUnaryEnergy(energy)
        options = {"normalization": module.NormalizationType(normalization)}
        crf.addPairwiseGaussian(3, weights, **options)
        crf.addPairwiseBilateral(40, 8, image.copy(), weights, **options)

    compare(build, (83, 61), labels)


@pytest.mark.parametrize("kernel", ours.KernelType)
def test_the_kernel_type_changes_nothing(kernel):
    image = photo("coffee", 30, 40)

    def build(crf, module):
        crf.setUnaryEnergy(unary(image, 3))
        add_preset(crf, image, "irn", kernel=module.KernelType(kernel))

    compare(build, (40, 30), 3)


SIZES = [
    (1, 1),
    (1, 2),
    (2, 1),
    (1, 9),
    (9, 1),
    (1, 400),
    (3, 5),
    (2, 2),
    (4, 4),
    (17, 19),
    (64, 33),
    (101, 3),
]


@pytest.mark.parametrize("content", ["photo", "noise", "black", "flat"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_sizes_and_contents(size, content):
    width, height = size
    rng = np.random.default_rng(width)
    image = {
        "photo": lambda: photo("rocket", height, width),
        "noise": lambda: rng.integers(0, 256, (height, width, 3), np.uint8),
        "black": lambda: np.zeros((height, width, 3), np.uint8),
        "flat": lambda: np.full((height, width, 3), (200, 90, 17), np.uint8),
    }[content]()
    energy = rng.uniform(0, 4, (3, width * height)).astype(np.float32)

    def build(crf, module):
        crf.setUnaryEnergy(energy)
        add_preset(crf, image, "deeplab")

    # On a flat image a vertex sums thousands of points in pydensecrf's float32: 1.2e-6 off the float64
    # result.
    compare(build, size, 3, worst=WORST["deeplab"], mean=2e-6 if content in ("flat", "black") else 1e-6)


@pytest.mark.parametrize("preset", ["irn", "psa"])
@pytest.mark.parametrize("content", ["noise", "flat"])
def test_larger_hard_images(content, preset):
    rng = np.random.default_rng(0)
    image = (
        rng.integers(0, 256, (120, 131, 3), np.uint8) if content == "noise" else np.full((120, 131, 3), 99, np.uint8)
    )
    energy = unary(photo("coffee", 120, 131), 7)

    def build(crf, module):
        crf.setUnaryEnergy(energy)
        add_preset(crf, image, preset)

    compare(build, (131, 120), 7)


@pytest.mark.parametrize("dims", [1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_feature_dimensions(dims):
    points = 1501
    rng = np.random.default_rng(dims)
    features = rng.normal(0, 3, (dims, points)).astype(np.float32)
    energy = rng.uniform(0, 3, (4, points)).astype(np.float32)

    def build(crf, module):
        crf.setUnaryEnergy(energy)
        crf.addPairwiseEnergy(features, 3, normalization=module.NORMALIZE_SYMMETRIC)

    compare(build, (points,), 4)


@pytest.mark.parametrize("dims", [63, 64, 65, 102, 300])
def test_very_many_feature_dimensions(dims):
    """Hyperspectral images have some hundred bands."""
    points = 403
    rng = np.random.default_rng(dims)
    # Points around a few centres, so that they share vertices.
    features = rng.normal(0, 2, (dims, 5))[:, rng.integers(0, 5, points)] + rng.normal(0, 0.02, (dims, points))
    features = features.astype(np.float32)
    energy = rng.uniform(0, 3, (4, points)).astype(np.float32)
    lattice = ours.core().Lattice(features)
    assert lattice.vertex_count < points * (dims + 1)
    values = rng.uniform(0.5, 1, (3, points)).astype(np.float32)
    result, expected = lattice.filter(values), peer_filter(features, values)
    assert np.abs(result - expected).max() <= 1e-5 * expected.max()

    def build(crf, module):
        crf.setUnaryEnergy(energy)
        crf.addPairwiseEnergy(features, 3, normalization=module.NORMALIZE_SYMMETRIC)

    compare(build, (points,), 4)


def test_volume():
    shape = (11, 13, 17)
    rng = np.random.default_rng(0)
    volume = rng.normal(100, 30, shape).astype(np.float32)
    energy = rng.uniform(0, 3, (3, volume.size)).astype(np.float32)

    def build(crf, module):
        crf.setUnaryEnergy(energy)
        crf.addPairwiseEnergy(utils.create_pairwise_gaussian((2, 2, 2), shape), 2)
        crf.addPairwiseEnergy(utils.create_pairwise_bilateral((4, 4, 4), (20,), volume), 5)

    compare(build, (volume.size,), 3)


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_number_of_kernels(count):
    image = photo("astronaut", 40, 51)
    features = [image_features(image, d) for d in (2, 5, 3, 1)]

    def build(crf, module):
        crf.setUnaryEnergy(unary(image, 3))
        for weight, feature in enumerate(features[:count], start=1):
            crf.addPairwiseEnergy(feature, weight, normalization=module.NormalizationType(weight - 1))

    compare(build, (51 * 40,), 3)


@pytest.mark.parametrize("iterations", [0, 1, 2, 5, 25])
def test_iterations(iterations):
    image = photo("coffee", 50, 61)

    def build(crf, module):
        crf.setUnaryEnergy(unary(image, 4))
        add_preset(crf, image, "irn")

    compare(build, (61, 50), 4, iterations=iterations)


@pytest.fixture
def both():
    """The same small model on both sides: (ours, peer)."""
    image = photo("chelsea", 47, 58)
    crfs = []
    for module in (ours, peer):
        crf = module.DenseCRF2D(58, 47, 5)
        crf.setUnaryEnergy(unary(image, 5))
        add_preset(crf, image, "irn")
        crfs.append(crf)
    return crfs


def test_steps(both):
    states = [crf.startInference() for crf in both]
    for _ in range(4):
        before = states[0][0]
        for crf, state in zip(both, states, strict=True):
            crf.stepInference(*state)
        assert states[0][0] is before
        assert_agree(states[0][0], states[1][0])
    whole = both[0].inference(4)
    assert_agree(whole, states[0][0])


def test_kl_divergence(both):
    for iterations in (0, 1, 10):
        ours_kl, peer_kl = (crf.klDivergence(crf.inference(iterations)) for crf in both)
        assert ours_kl == pytest.approx(peer_kl, rel=1e-5)


def test_kl_divergence_of_any_beliefs(both):
    q = np.random.default_rng(0).dirichlet(np.ones(5), 58 * 47).T.astype(np.float32)
    state = both[1].startInference()[0]
    np.asarray(state)[...] = q
    assert both[0].klDivergence(q) == pytest.approx(both[1].klDivergence(state), rel=1e-5)


def test_without_unary():
    image = photo("coffee", 30, 41)

    def build(crf, module):
        add_preset(crf, image, "irn")

    compare(build, (41, 30), 3)
    states = []
    for module in (ours, peer):
        crf = module.DenseCRF2D(41, 30, 3)
        build(crf, module)
        states.append(crf.startInference())
        assert not np.asarray(states[-1][0]).any()
        crf.stepInference(*states[-1])
    assert_agree(states[0][0], states[1][0])


def test_unary_objects():
    image = photo("coffee", 30, 41)
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(4, 6)).astype(np.float32)
    features = rng.normal(size=(6, 30 * 41)).astype(np.float32)

    def const(crf, module):
        crf.setUnary(module.ConstUnary(unary(image, 4)))
        add_preset(crf, image, "irn")

    def logistic(crf, module):
        crf.setUnary(module.LogisticUnary(weights, features))
        add_preset(crf, image, "irn")

    compare(const, (41, 30), 4)
    compare(logistic, (41, 30), 4)
    one, other = ours.DenseCRF2D(41, 30, 4), ours.DenseCRF2D(41, 30, 4)
    logistic(one, ours)
    other.setUnaryEnergy(weights, features)
    add_preset(other, image, "irn")
    assert np.array_equal(one.inference(3), other.inference(3))


def test_changes_between_inferences(both):
    image = photo("chelsea", 47, 58)
    beliefs = []
    for crf in both:
        crf.inference(2)
        crf.setUnaryEnergy(unary(image, 5, seed=1))
        crf.inference(1)
        crf.addPairwiseGaussian((5, 9), 2)
        beliefs.append(np.array(crf.inference(5)))
    assert_agree(*beliefs)


def test_separate_sigmas():
    image = photo("coffee", 47, 58)

    def build(crf, module):
        crf.setUnaryEnergy(unary(image, 3))
        crf.addPairwiseGaussian((2.5, np.float32(7)), 3)
        crf.addPairwiseBilateral(sxy=(30, 60.5), srgb=(4, 9, 13), rgbim=image.copy(), compat=np.float32(7))

    compare(build, (58, 47), 3)


@pytest.mark.parametrize("labels", [2, 4, 21])
def test_forbidden_labels(labels):
    """An infinite energy forbids a label; the others are as if it were not there."""
    image = photo("coffee", 47, 58)
    energy = unary(image, labels)
    energy[1, 50:900] = np.inf

    def build(crf, module):
        crf.setUnaryEnergy(energy)
        add_preset(crf, image, "irn")

    compare(build, (58, 47), labels)
    crf = ours.DenseCRF2D(58, 47, labels)
    build(crf, ours)
    q = crf.inference(3)
    assert not q[1, 50:900].any()
    assert np.isfinite(crf.klDivergence(q))


def test_same_result_every_time(both):
    first = both[0].inference(5)
    for _ in range(3):
        assert np.array_equal(first, both[0].inference(5))


@pytest.mark.parametrize("labels", [21, 182])
def test_label_collapse(labels):
    """Merging labels that stay below eps everywhere is off by no more than eps."""
    image = photo("astronaut", 71, 90)
    energy = unary(image, labels, 20)
    beliefs = {}
    for eps in (None, 0, 1e-3):
        crf = ours.DenseCRF2D(90, 71, labels)
        crf.setUnaryEnergy(energy)
        add_preset(crf, image, "irn")
        if eps is not None:
            crf.setLabelCollapse(eps)
        beliefs[eps] = crf.inference(10)
    assert np.array_equal(beliefs[None], beliefs[0])
    assert np.abs(beliefs[1e-3] - beliefs[0]).max() <= 1e-3


def test_five_megapixels():
    """A large photo works; without the peer, which takes half a minute for it."""
    width, height, labels = 2448, 2048, 6
    image = photo("astronaut", height, width)
    crf = ours.DenseCRF2D(width, height, labels)
    crf.setUnaryEnergy(unary(image, labels))
    add_preset(crf, image, "psa")
    q = crf.inference(1)
    assert q.shape == (labels, width * height)
    assert np.abs(q.sum(axis=0) - 1).max() < 1e-4
