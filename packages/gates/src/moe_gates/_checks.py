"""Refuse a broken contract at the boundary, with a message that says what is allowed.

Only what is known before any value is: types, dtypes and shapes. Checks on the
values of arrays would stop compilers and wait for accelerators. A message is only
put together once it is needed: torch.compile cannot format a size that varies.
"""

import math
from numbers import Integral, Real
from types import ModuleType
from typing import Any

from array_api_compat import array_namespace, is_array_api_obj

from moe_gates._array import Array

# Between these both gamma and 1 / gamma, its gradient, are ordinary float32 numbers.
MIN_GAMMA = 1e-30
MAX_GAMMA = 1e30
GAMMA_RANGE = f"[{MIN_GAMMA}, {MAX_GAMMA}]"
MIN_EXPERTS = 2


def resolve(xp: ModuleType | None, **arrays: Array) -> Any:  # noqa: ANN401 a module
    """Return `xp`, or the array API namespace that the named `arrays` share."""
    if not all(hasattr(array, "dtype") for array in arrays.values()):
        raise TypeError(_why_no_namespace(arrays))
    if xp is not None:
        return xp
    try:
        return array_namespace(*arrays.values())
    except TypeError:
        raise TypeError(_why_no_namespace(arrays)) from None


def _why_no_namespace(arrays: dict[str, Array]) -> str:
    """Name the argument that is no array, or those that are of different libraries."""
    for name, array in arrays.items():
        if not is_array_api_obj(array):
            allowed = "an array of NumPy, PyTorch, JAX or another array-API library"
            return f"`{name}` must be {allowed}, got {type(array).__name__}."
    names = " and ".join(f"`{name}`" for name in arrays)
    types = " and ".join(type(array).__name__ for array in arrays.values())
    return f"{names} must be arrays of one library, got {types}."


def check_bool(name: str, value: bool) -> None:  # noqa: FBT001 the value under test
    """Refuse anything but True and False."""
    if not isinstance(value, bool):
        msg = f"`{name}` must be a bool, got {value!r}."
        raise TypeError(msg)


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse anything but one of the words that are `allowed`."""
    if value not in allowed:
        words = " or ".join(f'"{word}"' for word in allowed)
        msg = f"`{name}` must be {words}, got {value!r}."
        raise ValueError(msg)


def check_real(name: str, value: float, *, positive: bool = False) -> None:
    """Refuse anything but a finite real number, above 0 if `positive`."""
    allowed = "a finite number" + (" > 0" if positive else "")
    if not isinstance(value, Real) or isinstance(value, bool):
        msg = f"`{name}` must be {allowed}, got {value!r}."
        raise TypeError(msg)
    if not math.isfinite(value) or (positive and value <= 0):
        msg = f"`{name}` must be {allowed}, got {value}."
        raise ValueError(msg)


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_integer(
    name: str, value: int, low: int, high: float = math.inf, *, high_name: str = ""
) -> None:
    """Refuse anything but an integer in [low, high], of which `high` may have a name."""
    if _is_integer(value) and low <= value <= high:
        return
    limit = f"{high_name}={high}" if high_name else f"{high}"
    allowed = f"[{low}, {limit}" + (")" if high == math.inf else "]")
    if not _is_integer(value):
        msg = f"`{name}` must be an integer in {allowed}, got {value!r}."
        raise TypeError(msg)
    msg = f"`{name}` must be in {allowed}, got {value}."
    raise ValueError(msg)


def check_k(k: int, num_experts: int) -> None:
    """Refuse a number of experts per row that is not in [1, num_experts].

    Parameters
    ----------
    k : int
        Experts kept per row.
    num_experts : int
        Experts there are.

    Raises
    ------
    TypeError
        If `k` is not an integer; a bool is none.
    ValueError
        If `k` is outside ``[1, num_experts]``.

    Examples
    --------
    >>> check_k(2, 8)
    >>> check_k(9, 8)
    Traceback (most recent call last):
    ValueError: `k` must be in [1, num_experts=8], got 9.
    """
    check_integer("k", k, 1, num_experts, high_name="num_experts")


def check_num_experts(num_experts: int) -> None:
    """Refuse fewer than two experts: there is nothing to route."""
    check_integer("num_experts", num_experts, MIN_EXPERTS)


def check_gamma(gamma: float) -> None:
    """Refuse a width of the smooth-step that is not a number in [1e-30, 1e30].

    Parameters
    ----------
    gamma : float
        Width of the band in which a split is soft, in units of the score.

    Raises
    ------
    TypeError
        If `gamma` is not a real number; a bool is none.
    ValueError
        If `gamma` is not in range. NaN and infinity are not.

    Examples
    --------
    >>> check_gamma(0.1)
    >>> check_gamma(0)
    Traceback (most recent call last):
    ValueError: `gamma` must be in [1e-30, 1e+30], got 0.
    """
    if not isinstance(gamma, Real) or isinstance(gamma, bool):
        msg = f"`gamma` must be a real number in {GAMMA_RANGE}, got {gamma!r}."
        raise TypeError(msg)
    if not MIN_GAMMA <= gamma <= MAX_GAMMA:
        msg = f"`gamma` must be in {GAMMA_RANGE}, got {gamma}."
        raise ValueError(msg)


def check_floating(name: str, array: Array, xp: ModuleType) -> None:
    """Refuse an array that is not real floating."""
    check_floating_dtype(name, array.dtype, xp)


def check_floating_dtype(name: str, dtype: Any, xp: ModuleType) -> None:  # noqa: ANN401
    """Refuse a dtype that is not real floating."""
    if not xp.isdtype(dtype, "real floating"):
        msg = f"`{name}` must have a real floating dtype, got {dtype}."
        raise TypeError(msg)


def check_integral(name: str, array: Array, xp: ModuleType) -> None:
    """Refuse an array that is not of integers."""
    if not xp.isdtype(array.dtype, "integral"):
        msg = f"`{name}` must have an integer dtype, got {array.dtype}."
        raise TypeError(msg)


def check_axes(name: str, array: Array, axes: tuple[str, ...]) -> None:
    """Refuse an array without the trailing `axes`, or with one of them empty."""
    shape = tuple(array.shape)
    if len(shape) < len(axes) or 0 in shape[len(shape) - len(axes) :]:
        expected = ", ".join(("*batch", *axes))
        msg = f"`{name}` must have shape ({expected}) with {' and '.join(axes)} >= 1, got {shape}."
        raise ValueError(msg)


def check_one_axis(name: str, array: Array) -> None:
    """Refuse anything but a vector with entries."""
    shape = tuple(array.shape)
    if len(shape) != 1 or shape[0] == 0:
        msg = f"`{name}` must have one axis, of length >= 1, got shape {shape}."
        raise ValueError(msg)


def check_shape(name: str, array: Array, shape: tuple[int, ...], because: str) -> None:
    """Refuse any other shape than `shape`, which `because` explains."""
    if tuple(array.shape) != shape:
        msg = f"`{name}` must have shape {shape}, {because}, got {tuple(array.shape)}."
        raise ValueError(msg)


def check_broadcasts(
    name: str, array: Array, axes: tuple[str, ...], shape: tuple[int, ...]
) -> None:
    """Refuse an array that does not broadcast to `shape`, whose axes have names."""
    own = tuple(array.shape)
    fits = len(own) <= len(shape) and all(
        size in (1, full) for size, full in zip(own[::-1], shape[::-1], strict=False)
    )
    if not fits:
        msg = f"`{name}` must be broadcastable to ({', '.join(axes)}) = {shape}, got shape {own}."
        raise ValueError(msg)


def check_same_dtype(name: str, array: Array, other_name: str, other: Array) -> None:
    """Refuse two scores of one gate that differ in dtype."""
    if array.dtype != other.dtype:
        msg = f"`{name}` must have the dtype of `{other_name}`, {other.dtype}, got {array.dtype}."
        raise TypeError(msg)


def check_tree_scores(split_scores: Array, leaf_scores: Array, xp: ModuleType) -> None:
    """Refuse scores that are not those of trees with a leaf for each expert."""
    check_floating("split_scores", split_scores, xp)
    check_floating("leaf_scores", leaf_scores, xp)
    check_same_dtype("leaf_scores", leaf_scores, "split_scores", split_scores)
    check_axes("leaf_scores", leaf_scores, ("num_slots", "num_experts"))
    *batch_and_slots, num_experts = leaf_scores.shape
    check_num_experts(num_experts)
    because = "one split less than `leaf_scores` has experts"
    check_shape("split_scores", split_scores, (*batch_and_slots, num_experts - 1), because)


def check_relabelling(
    name: str, relabelling: Array, weights: Array, *, num_expert_axes: int
) -> None:
    """Refuse a permutation or matrix that fits neither the last axis nor the last two."""
    check_axes("weights", weights, ("num_experts",))
    *batch, num_experts = weights.shape
    shared = (num_experts,) * num_expert_axes
    one_a_slot = (*batch[-1:], *shared)
    shape = tuple(relabelling.shape)
    if shape not in (shared, one_a_slot):
        allowed = f"{shared} or {one_a_slot}" if batch else f"{shared}"
        msg = f"`{name}` must have shape {allowed}, got {shape}."
        raise ValueError(msg)
