"""Names of `pydensecrf.eigen`. There they wrap C++ matrices, the type of results; here results are numpy arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._errors import Refused

__all__ = ["MatrixXf", "VectorXf", "matrixXf", "vectorXf"]


class _FloatArray(type):
    """Type of classes whose instances are the float32 arrays of `dimensions`."""

    dimensions: int

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, np.ndarray) and instance.dtype == np.float32 and instance.ndim == cls.dimensions

    def __call__(cls, *_ignored: object, **_ignored_too: object) -> np.ndarray:
        return np.zeros((0,) * cls.dimensions, np.float32)


class MatrixXf(metaclass=_FloatArray):
    """Any float32 array with two dimensions. Calling it gives an empty one, whatever the arguments, as the original."""

    dimensions = 2


class VectorXf(metaclass=_FloatArray):
    """Any float32 array with one dimension. Calling it gives an empty one, whatever the arguments, as the original."""

    dimensions = 1


def matrixXf(arr: ArrayLike) -> np.ndarray:
    """A copy of `arr`, two dimensions, as float32, columns contiguous: laid out as Q, for `stepInference`."""
    return _copy(arr, 2)


def vectorXf(arr: ArrayLike) -> np.ndarray:
    """A copy of `arr`, one dimension, as float32."""
    return _copy(arr, 1)


def _copy(arr: ArrayLike, dimensions: int) -> np.ndarray:
    if arr is None:
        raise TypeError("arr must not be None")
    array = np.array(arr, np.float32, order="F")
    if array.ndim != dimensions:
        raise Refused("arr", array.shape, f"of {dimensions} dimension{'s' * (dimensions > 1)}", what="a shape")
    return array
