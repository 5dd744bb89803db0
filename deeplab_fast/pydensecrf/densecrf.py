"""Fully connected CRFs by mean-field inference: names, arguments and results of `pydensecrf.densecrf`.

Method: Krähenbühl and Koltun, Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials
(2011); filtering on the permutohedral lattice. Numpy in, numpy out; torch is not needed. Computing releases
the GIL and uses several threads (`deeplab_fast.pydensecrf.get_num_threads`). Objects are independent of one
another, and each may be used from several Python threads: calls to one object wait for each other.

More lenient than the original: arrays of any real dtype and any strides are accepted and converted, a float64
`compat` too, and the classes can be subclassed. As there, sizes and counts may be floats, whose fraction is cut off.
Where the original crashes or reads outside its arrays, ValueError or TypeError; so too for negative sigmas and counts.
"""

from __future__ import annotations

import operator
import threading
import warnings
from enum import IntEnum
from numbers import Number, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import eigen as eigen
from ._backend import apply_num_threads, check_size, core
from ._errors import Refused

__all__ = [
    "CONST_KERNEL",
    "DIAG_KERNEL",
    "FULL_KERNEL",
    "NORMALIZE_AFTER",
    "NORMALIZE_BEFORE",
    "NORMALIZE_SYMMETRIC",
    "NO_NORMALIZATION",
    "ConstUnary",
    "DenseCRF",
    "DenseCRF2D",
    "KernelType",
    "LogisticUnary",
    "NormalizationType",
    "Unary",
]


class NormalizationType(IntEnum):
    """Where to divide by n = filter(1): nowhere, before or after the filter, or by sqrt(n) on both sides."""

    NO_NORMALIZATION = 0
    NORMALIZE_BEFORE = 1
    NORMALIZE_AFTER = 2
    NORMALIZE_SYMMETRIC = 3


class KernelType(IntEnum):
    """Accepted as in the original, where it changes the learning of kernels only, never inference."""

    CONST_KERNEL = 0
    DIAG_KERNEL = 1
    FULL_KERNEL = 2


NO_NORMALIZATION = NormalizationType.NO_NORMALIZATION
NORMALIZE_BEFORE = NormalizationType.NORMALIZE_BEFORE
NORMALIZE_AFTER = NormalizationType.NORMALIZE_AFTER
NORMALIZE_SYMMETRIC = NormalizationType.NORMALIZE_SYMMETRIC
CONST_KERNEL = KernelType.CONST_KERNEL
DIAG_KERNEL = KernelType.DIAG_KERNEL
FULL_KERNEL = KernelType.FULL_KERNEL

MOST = 2**31 - 1  # of labels and iterations

# Stands for an infinite energy, which forbids a label: the softmax is the same, and 0·energy is 0 in the KL.
FORBIDDEN = np.float32(1e30)

_moving = threading.Lock()  # of a unary object into a CRF


class Unary:
    """An energy (labels, points) for `DenseCRF.setUnary`, which moves it: each object serves once."""

    _energy: np.ndarray | None = None

    def __init__(self) -> None:
        raise TypeError("Unary is abstract; use ConstUnary or LogisticUnary")


class ConstUnary(Unary):
    """The energy itself: u (labels, points)."""

    def __init__(self, u: ArrayLike):
        self._energy = _energy("u", _matrix("u", u)).copy()


class LogisticUnary(Unary):
    """The energy L·f of linear classifiers L (labels, features) on features f (features, points)."""

    def __init__(self, L: ArrayLike, f: ArrayLike):
        self._energy = _logistic(_matrix("L", L), _matrix("f", f), "L")


class DenseCRF:
    """CRF over `nvar` points (pixels, voxels, ...) and `nlabels` labels, all points connected.

    Raises ValueError when either is less than one, or when the model cannot fit into this machine's memory.
    """

    _has_unary = False
    _w = 0  # of the image the points are, row by row; 0: no image

    def __init__(self, nvar: int, nlabels: int):
        self._nvar = _positive("nvar", nvar)
        self._nlabel = _positive("nlabels", nlabels)
        if self._nlabel > MOST:
            raise Refused("nlabels", self._nlabel, f"at most {MOST}")
        check_size(self._nvar, self._nlabel, [1])  # no model without a lattice is of use
        self._dimensions: list[int] = []  # of the lattices
        self._lock = threading.RLock()
        self._core = core().DenseCRF(self._nvar, self._nlabel, self._w)

    def __getattr__(self, name: str) -> Any:
        if name in ("_nvar", "_nlabel", "_core", "_w", "_h"):  # else they are found, and this is not called
            raise RuntimeError(f"{type(self).__name__}.__init__ must call super().__init__(...)")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def setUnaryEnergy(self, u: ArrayLike, f: ArrayLike | None = None) -> None:
        """Set the unary energy, negative log probabilities: u (labels, points).

        With f (features, points), u is (labels, features) and the energy is u·f (logistic regression). +Inf
        forbids a label. Raises ValueError for another shape, for NaN or -Inf, and for a point where all
        labels are forbidden.
        """
        u = _matrix("u", u)
        self._set_unary(u if f is None else _logistic(u, _matrix("f", f), "u"))

    def setUnary(self, u: Unary) -> None:
        """Set a unary object, and use it up: ValueError when it was set before, here or elsewhere."""
        if not isinstance(u, Unary):
            raise TypeError(f"u must be a ConstUnary or a LogisticUnary, got {type(u).__name__}")
        with _moving:
            if u._energy is None:
                raise Refused("u", u, "one that setUnary has not used before (it takes ownership)")
            self._set_unary(u._energy)
            u._energy = None

    def addPairwiseEnergy(
        self,
        features: ArrayLike,
        compat: Number | ArrayLike,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add a Gaussian kernel exp(-|f_i - f_j|²/2) on features (D, points), divided by their sigmas.

        compat: a number w contributes -w·filter(Q) to the energy (Potts: attracts equal labels); a vector v
        (labels,) +diag(v)·filter(Q), so positive values repel; a matrix m (labels, labels)
        +½(m + mᵀ)·filter(Q). kernel: no effect, see `KernelType`.
        Raises ValueError for other shapes, NaN or Inf, and features too large for 16-bit lattice keys.
        """
        features = _matrix("features", features)
        if features.shape[0] < 1 or features.shape[1] != self._nvar:
            raise Refused("features", features.shape, f"(D, {self._nvar}) with D at least 1", what="shape")
        dims = features.shape[0]
        self._add(dims, "add_pairwise", features, compat=compat, kernel=kernel, normalization=normalization)

    def inference(self, niter: int) -> np.ndarray:
        """Q after `niter` iterations from softmax(-unary): (labels, points) float32, memory pixel-major."""
        niter = _integer("niter", niter)
        if not 0 <= niter <= MOST:
            raise Refused("niter", niter, f"in 0..{MOST}")
        return self._run("inference", niter).T

    def startInference(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(Q, tmp1, tmp2) for `stepInference`: Q = softmax(-unary), or zero without a unary.

        The other two are placeholders, as the original has buffers there.
        """
        q = self._run("start") if self._has_unary else np.zeros((self._nvar, self._nlabel), np.float32)
        return q.T, np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)

    def stepInference(self, Q: np.ndarray, tmp1: Any = None, tmp2: Any = None) -> None:
        """One iteration, in place: Q (labels, points) is overwritten. tmp1 and tmp2 are not used."""
        if not isinstance(Q, np.ndarray) or not Q.flags.writeable or not np.issubdtype(Q.dtype, np.floating):
            raise TypeError("Q must be a writeable array of floats, as startInference returns: it is changed in place")
        rows = np.ascontiguousarray(self._beliefs(Q).T, np.float32)
        self._run("step", rows)
        if not np.may_share_memory(rows, Q):  # Q has other strides or another dtype: rows is a copy
            Q[...] = rows.T

    def klDivergence(self, Q: ArrayLike) -> float:
        """Σ Q·log Q + Σ U·Q + Σ_k Q·compat_k(filter_k(Q)) for Q (labels, points): KL up to a constant."""
        rows = np.ascontiguousarray(self._beliefs(_array("Q", Q)).T, np.float32)
        return self._run("kl_divergence", rows)

    def setLabelCollapse(self, eps: float) -> None:
        """Merge labels that provably stay below probability eps at every point (not in the original).

        0, the default, merges only labels that have one and the same unary, which changes nothing. Above 0 the
        result is off by at most eps. Many labels of which few are present then cost about what the few do.
        """
        eps = _number("eps", eps)
        if not 0 <= eps < 1:
            raise Refused("eps", eps, "at least 0 and below 1")
        self._run("set_collapse", eps)

    def _set_unary(self, energy: np.ndarray) -> None:
        need = (self._nlabel, self._nvar)
        if energy.shape != need:
            hint = "; reshape it to (labels, -1)" if energy.size == need[0] * need[1] else ""
            raise Refused("the unary energy", energy.shape, f"{need} (labels, points{hint})", what="shape")
        if not self._run("set_unary", energy):  # something is not finite: what, and may it be?
            self._run("set_unary", _energy("u", energy))
        self._has_unary = True

    def _beliefs(self, q: np.ndarray) -> np.ndarray:
        if q.shape != (self._nlabel, self._nvar):
            raise Refused("Q", q.shape, f"{(self._nlabel, self._nvar)} (labels, points)", what="shape")
        return q

    def _add(self, dims: int, method: str, *args: Any, compat: Any, kernel: int, normalization: int) -> None:
        compat = _compat(compat, self._nlabel)
        _enum("kernel", kernel, KernelType)
        normalization = _enum("normalization", normalization, NormalizationType)
        check_size(self._nvar, self._nlabel, [*self._dimensions, dims])
        self._run(method, *args, compat, int(normalization))
        self._dimensions.append(dims)

    def _run(self, method: str, *args: Any) -> Any:
        call = getattr(self._core, method)
        with self._lock:
            apply_num_threads()
            return call(*args)


class DenseCRF2D(DenseCRF):
    """CRF over the pixels of an image of width `w` and height `h` (in this order), row by row."""

    def __init__(self, w: int, h: int, nlabels: int):
        self._w = _positive("w", w)
        self._h = _positive("h", h)
        super().__init__(self._w * self._h, nlabels)

    def addPairwiseGaussian(
        self,
        sxy: float | tuple[float, float],
        compat: Number | ArrayLike,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add a kernel on positions, features (x/sx, y/sy). sxy: sigma in pixels, a number or (sx, sy)."""
        sigmas = _sigmas("sxy", sxy, 2)
        self._add(
            2,
            "add_gaussian",
            self._w,
            self._h,
            *sigmas,
            compat=compat,
            kernel=kernel,
            normalization=normalization,
        )

    def addPairwiseBilateral(
        self,
        sxy: float | tuple[float, float],
        srgb: float | tuple[float, ...],
        rgbim: np.ndarray,
        compat: Number | ArrayLike,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add a kernel on positions and colours, features (x/sx, y/sy, r/sr, g/sg, b/sb).

        rgbim: uint8 (h, w, 3). sxy in pixels and srgb in colour steps (0..255), each a number or one for each
        coordinate. For other images use `utils.create_pairwise_bilateral` and `addPairwiseEnergy`.
        """
        sigmas = (*_sigmas("sxy", sxy, 2), *_sigmas("srgb", srgb, 3))
        image = _array("rgbim", rgbim)
        if image.dtype == np.bool_:
            image = image.view(np.uint8)
        if image.dtype != np.uint8:
            raise Refused("rgbim", image.dtype, "uint8 with values 0..255")
        if image.shape != (self._h, self._w, 3):
            raise Refused("rgbim", image.shape, f"{(self._h, self._w, 3)} (height, width, RGB)", what="shape")
        image = np.ascontiguousarray(image)
        self._add(
            5, "add_bilateral", self._w, self._h, *sigmas, image,
            compat=compat, kernel=kernel, normalization=normalization,
        )  # fmt: skip


def _integer(name: str, value: Any) -> int:
    """`value` as C makes an int of it: the fraction of a float is cut off."""
    try:
        return int(value) if hasattr(value, "__int__") and not isinstance(value, str) else operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}") from None
    except (ValueError, OverflowError):  # NaN or infinite
        raise Refused(name, value, "an integer") from None


def _positive(name: str, value: Any) -> int:
    value = _integer(name, value)
    if value < 1:
        raise Refused(name, value, "at least 1")
    return value


def _number(name: str, value: Any) -> float:
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return float(value)


def _enum(name: str, value: Any, kind: type[IntEnum]) -> IntEnum:
    try:
        return kind(_integer(name, value))
    except (TypeError, ValueError):
        choices = ", ".join(f"{member.name} ({member.value})" for member in kind)
        raise Refused(name, value, f"one of {choices}") from None


def _array(name: str, value: Any) -> np.ndarray:
    """`value` as an array of real numbers, not converted."""
    if value is None:
        raise TypeError(f"{name} must not be None")
    try:
        array = np.asarray(value)
    except ValueError as error:  # a ragged list
        raise TypeError(f"{name} must be an array: {error}") from None
    if array.dtype.kind not in "biuf":
        raise Refused(name, f"{array.dtype} ({type(value).__name__})", "of real numbers", what="a dtype")
    return array


def _float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # becomes Inf, which every caller looks for
        return np.ascontiguousarray(array, np.float32)


def _matrix(name: str, value: Any) -> np.ndarray:
    array = _array(name, value)
    if array.ndim != 2:
        raise Refused(name, array.shape, "of 2 dimensions", what="a shape")
    return _float32(array)


def _energy(name: str, energy: np.ndarray) -> np.ndarray:
    """`energy` with +Inf replaced by FORBIDDEN; ValueError for NaN, -Inf and points without any label."""
    if np.isnan(energy).any() or np.isneginf(energy).any():
        raise Refused(name, "NaN or -Inf", "other than NaN and -Inf", what="values")
    energy = np.minimum(energy, FORBIDDEN)
    if (energy.min(axis=0) >= FORBIDDEN).any():
        raise Refused(
            name, "+Inf for all of them", "that are finite for at least one label at every point", what="values"
        )
    return energy


def _logistic(weights: np.ndarray, features: np.ndarray, name: str) -> np.ndarray:
    if weights.shape[1] != features.shape[0]:
        shapes = f"{weights.shape} and {features.shape}"
        raise Refused(f"{name} and f", shapes, "(labels, features) and (features, points)", what="shapes")
    with np.errstate(all="ignore"):  # NaN and Inf are reported by _energy
        return _energy(f"{name}·f", weights @ features)


def _compat(compat: Any, labels: int) -> np.ndarray:
    """Label compatibility as float32 with 0, 1 or 2 dimensions, a matrix made symmetric."""
    if isinstance(compat, Number):
        array = np.asarray(_number("compat", compat))
    else:
        array = _array("compat", compat)
        if array.ndim not in (1, 2) or set(array.shape) != {labels}:
            wanted = f"a number, a vector ({labels},) or a matrix ({labels}, {labels})"
            raise Refused("compat", array.shape, wanted)
    array = np.ascontiguousarray(array, np.float32).reshape(array.shape)
    if not np.isfinite(array).all():
        raise Refused("compat", "NaN or Inf", "that are finite", what="values")
    return np.float32(0.5) * (array + array.T) if array.ndim == 2 else array


def _sigmas(name: str, value: Any, count: int) -> list[float]:
    """`count` standard deviations from a number or a sequence; the core gets them as float32.

    Of a longer sequence the first ones count, as in the original, which does not look at the others.
    """
    if isinstance(value, str) or not (isinstance(value, Number) or hasattr(value, "__len__")):
        raise TypeError(f"{name} must be a number or a sequence of {count}, got {type(value).__name__}")
    array = _array(name, value)
    if array.ndim == 1 and len(array) > count:
        warnings.warn(f"{name} has {len(array)} values, only the first {count} count", RuntimeWarning, stacklevel=3)
        array = array[:count]
    if array.shape not in ((), (count,)):
        raise Refused(name, array.shape, f"() or ({count},), a number or a sequence", what="shape")
    sigmas = np.broadcast_to(_float32(array).reshape(array.shape), (count,))
    if not (np.isfinite(sigmas).all() and (sigmas > 0).all()):
        raise Refused(name, value, "positive and finite")
    return [float(sigma) for sigma in sigmas]
