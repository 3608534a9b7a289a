"""Checks at the public boundary: each message names the argument, what is allowed and what came."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
RealArray = NDArray[Any]


def check_count(name: str, value: int, *, minimum: int) -> int:
    """Return `value` as an int if it is a whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        msg = f"`{name}` must be an integer, got {value!r}."
        raise TypeError(msg)
    if value < minimum:
        msg = f"`{name}` must be >= {minimum}, got {value}."
        raise ValueError(msg)
    return int(value)


def check_seed(value: int) -> int:
    """Return a seed as an int >= 0: None would not repeat."""
    return check_count("seed", value, minimum=0)


def check_number(name: str, value: float) -> None:
    """Refuse anything but a real number; a bool is none."""
    if not isinstance(value, Real) or isinstance(value, bool):
        msg = f"`{name}` must be a real number, got {value!r}."
        raise TypeError(msg)


def check_nonnegative(name: str, value: float) -> None:
    """Refuse anything but a finite real number >= 0."""
    check_number(name, value)
    if not 0 <= value < np.inf:
        msg = f"`{name}` must be finite and >= 0, got {value}."
        raise ValueError(msg)


def check_callable(name: str, value: object) -> None:
    """Refuse what cannot be called."""
    if not callable(value):
        msg = f"`{name}` must be callable, got {type(value).__name__}."
        raise TypeError(msg)


def check_standard_errors(name: str, value: float) -> float:
    """Return a threshold in standard errors if it is finite and not negative."""
    check_nonnegative(name, value)
    return float(value)


def as_array(name: str, value: ArrayLike) -> RealArray:
    """Return `value` as an array of NumPy, whatever it holds, unless it is ragged."""
    try:
        return np.asarray(value)
    except ValueError as error:
        got = type(value).__name__
        msg = f"`{name}` must be an array or lists of equal lengths, got a ragged {got}."
        raise ValueError(msg) from error


def check_real(name: str, value: ArrayLike, axes: Sequence[str]) -> RealArray:
    """Return `value` as a real array with one axis for each name in `axes`."""
    array = as_array(name, value)
    if array.dtype.kind not in "iuf":
        msg = f"`{name}` must hold real numbers, got dtype {array.dtype}."
        raise TypeError(msg)
    if array.ndim != len(axes):
        msg = f"`{name}` must have shape ({', '.join(axes)}), got {array.shape}."
        raise ValueError(msg)
    return array


def check_integers(name: str, value: ArrayLike) -> RealArray:
    """Return `value` as an array of integers, of any shape and width."""
    array = as_array(name, value)
    if array.dtype.kind not in "iu":
        msg = f"`{name}` must hold integers, got dtype {array.dtype}."
        raise TypeError(msg)
    return array


def check_shape(name: str, array: RealArray, axes: Sequence[tuple[str, int]]) -> None:
    """Refuse `array` unless its shape is that of the named `axes`."""
    if array.shape != tuple(length for _, length in axes):
        allowed = ", ".join(f"{axis}={length}" for axis, length in axes)
        msg = f"`{name}` must have shape ({allowed}), got {array.shape}."
        raise ValueError(msg)


def check_finite(name: str, array: RealArray) -> None:
    """Refuse `array` if an entry is NaN or infinite, naming the first such entry."""
    finite = np.isfinite(array)
    if not finite.all():
        where = tuple(int(i) for i in np.argwhere(~finite)[0])
        msg = f"`{name}` must be finite, got {array[where]} at {list(where)}."
        raise ValueError(msg)


def check_square(name: str, array: RealArray) -> None:
    """Refuse `array` unless its last two axes have one length of at least 1."""
    if array.ndim < 2 or array.shape[-1] != array.shape[-2] or array.shape[-1] < 1:
        msg = f"`{name}` must be square, (..., n, n) with n >= 1, got shape {array.shape}."
        raise ValueError(msg)


def check_permutation(name: str, value: ArrayLike, *, size: int) -> IntArray:
    """Return a fresh int64 copy of `value` if it is one permutation of `size` entries."""
    array = check_permutations(name, value, size=size)
    check_shape(name, array, [("n", size)])
    return array


def check_permutations(name: str, value: ArrayLike, *, size: int | None = None) -> IntArray:
    """Return a fresh int64 copy of `value` if its last axis holds permutations."""
    array = check_integers(name, value)
    if array.ndim < 1 or array.shape[-1] != (array.shape[-1] if size is None else size):
        msg = f"`{name}` must have shape (..., n={size}), got {array.shape}."
        raise ValueError(msg)
    counted = np.arange(array.shape[-1])
    if not np.array_equal(np.sort(array, axis=-1), np.broadcast_to(counted, array.shape)):
        raise ValueError(_why_no_permutation(name, array))
    return array.astype(np.int64)


def check_choices(name: str, value: ArrayLike, *, size: int) -> IntArray:
    """Return `value`, shape (B, n), as int64 if it holds 0, ..., n - 1, in any number."""
    array = check_integers(name, value)
    if array.ndim != 2 or array.shape[1] != size:
        msg = f"`{name}` must have shape (B, n={size}), got {array.shape}."
        raise ValueError(msg)
    if array.size and not (array.min() >= 0 and array.max() < size):
        outside = array[(array < 0) | (array >= size)][0]
        msg = f"`{name}` must be in [0, n={size}), got {outside}."
        raise ValueError(msg)
    return array.astype(np.int64)


def _why_no_permutation(name: str, array: RealArray) -> str:
    """Name the first entry that keeps the last axis of `array` from being a permutation."""
    size = array.shape[-1]
    allowed = f"`{name}` must hold each of 0, ..., {size - 1} once (n={size})"
    outside = np.argwhere((array < 0) | (array >= size))
    if len(outside):
        where = [int(i) for i in outside[0]]
        return f"{allowed}, got {array[tuple(where)]} at {where}."
    for row in array.reshape(-1, size):
        counts = np.bincount(row, minlength=size)
        if counts.max() > 1:
            twice, missing = int(counts.argmax()), int(counts.argmin())
            where = [int(i) for i in np.flatnonzero(row == twice)]
            return f"{allowed}, got {twice} at positions {where} and no {missing}."
    msg = "called with a permutation"
    raise AssertionError(msg)


def starting_permutation(start: ArrayLike | None, size: int) -> IntArray:
    """Return `start` checked, or the identity where none is given."""
    if start is None:
        return np.arange(size, dtype=np.int64)
    return check_permutation("start", start, size=size)
