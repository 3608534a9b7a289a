"""Assertions about gates, for the tests of those who build on them."""

import math
from types import ModuleType

from moe_gates._array import Array, widen
from moe_gates._checks import check_axes, check_floating, check_k, resolve

__all__ = ["assert_on_simplex"]

# In units of rounding of the dtype: products along a path, and a sum over slots.
ROUNDINGS_BESIDE_THE_SUM = 16


def assert_on_simplex(
    weights: Array, /, *, k: int | None = None, xp: ModuleType | None = None
) -> None:
    """Fail unless every row of `weights` is a point of the simplex, `k`-sparse if asked.

    Parameters
    ----------
    weights : array, shape (*batch, num_experts), real floating
        Weights of a gate.
    k : int, optional
        Most non-zero weights per row; any number by default.
    xp : array namespace, optional
        Inferred from `weights` by default.

    Raises
    ------
    AssertionError
        If an entry is negative or NaN, a row does not sum to 1 within
        ``(num_experts + 16)`` roundings of the dtype, or has more than `k` non-zeros.
    TypeError
        If `weights` is not real floating or `k` is not an integer.
    ValueError
        If `weights` has no expert axis or `k` is outside ``[1, num_experts]``.

    Examples
    --------
    >>> import numpy as np
    >>> assert_on_simplex(np.asarray([[0.5, 0.5, 0.0]]), k=2)
    >>> assert_on_simplex(np.asarray([[0.5, 0.6, 0.0]]))
    Traceback (most recent call last):
    AssertionError: 1 of 1 rows do not sum to 1 within 4.2e-15.
    """
    xp = resolve(xp, weights=weights)
    check_floating("weights", weights, xp)
    check_axes("weights", weights, ("num_experts",))
    num_experts = weights.shape[-1]
    tolerance = (num_experts + ROUNDINGS_BESIDE_THE_SUM) * float(xp.finfo(weights.dtype).eps)
    wide = widen(weights, xp)
    _assert_rows(xp.all(wide >= 0, axis=-1), "have a negative or NaN weight", xp)
    sums = xp.sum(wide, axis=-1)
    _assert_rows(xp.abs(sums - 1) <= tolerance, f"do not sum to 1 within {tolerance:.2g}", xp)
    if k is not None:
        check_k(k, num_experts)
        num_selected = xp.sum(xp.astype(wide != 0, xp.int32), axis=-1)
        _assert_rows(num_selected <= k, f"have more than k={k} non-zero weights", xp)


def _assert_rows(holds: Array, otherwise: str, xp: ModuleType) -> None:
    num_rows = math.prod(holds.shape)
    num_failed = num_rows - int(xp.sum(xp.astype(holds, xp.int32)))
    if num_failed:
        msg = f"{num_failed} of {num_rows} rows {otherwise}."
        raise AssertionError(msg)
