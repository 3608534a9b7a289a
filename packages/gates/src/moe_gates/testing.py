"""Assertions about gates, for the tests of those who build on them."""

import math
from types import ModuleType
from typing import Any

from moe_gates._array import Array, widen
from moe_gates._checks import check_axes, check_floating, check_k, check_shape, resolve
from moe_gates._sparse_weights import SparseWeights, to_dense

__all__ = ["assert_equals_dense", "assert_k_sparse", "assert_on_simplex"]

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
        assert_k_sparse(weights, k=k, xp=xp)


def assert_k_sparse(weights: Array, /, *, k: int, xp: ModuleType | None = None) -> None:
    """Fail unless every row of `weights` has at most `k` non-zero entries.

    Parameters
    ----------
    weights : array, shape (*batch, num_experts), real floating
        Weights of a gate, whose rows need not sum to 1.
    k : int
        Most non-zero weights per row.
    xp : array namespace, optional
        Inferred from `weights` by default.

    Raises
    ------
    AssertionError
        If a row has more than `k` non-zeros; NaN is one.
    TypeError
        If `weights` is not real floating or `k` is not an integer.
    ValueError
        If `weights` has no expert axis or `k` is outside ``[1, num_experts]``.

    Examples
    --------
    >>> import numpy as np
    >>> assert_k_sparse(np.asarray([[0.5, 0.0], [0.5, 0.5]]), k=1)
    Traceback (most recent call last):
    AssertionError: 1 of 2 rows have more than k=1 non-zero weights.
    """
    xp = resolve(xp, weights=weights)
    check_floating("weights", weights, xp)
    check_axes("weights", weights, ("num_experts",))
    check_k(k, weights.shape[-1])
    num_selected = xp.sum(xp.astype(weights != 0, xp.int32), axis=-1)
    _assert_rows(num_selected <= k, f"have more than k={k} non-zero weights", xp)


def assert_equals_dense(
    sparse: SparseWeights[Any],
    weights: Array,
    /,
    *,
    tolerance: float = 0.0,
    xp: ModuleType | None = None,
) -> None:
    """Fail unless pairs are the weights of a dense gate, none of them counted twice.

    Parameters
    ----------
    sparse : SparseWeights
        Pairs of each row.
    weights : array, shape (*batch, num_experts), real floating
        Weights of the dense gate.
    tolerance : float, default 0
        Largest difference of a weight, dimensionless; equal to the bit by default.
    xp : array namespace, optional
        Inferred from `weights` by default.

    Raises
    ------
    AssertionError
        If a pair names no expert, two pairs of a row with non-zero weight name one expert,
        or a weight differs by more than `tolerance`.
    TypeError
        If arrays have the wrong dtype.
    ValueError
        If shapes do not match.

    Examples
    --------
    >>> import numpy as np
    >>> pairs = SparseWeights(np.asarray([[2, 0]]), np.asarray([[0.25, 0.75]]))
    >>> assert_equals_dense(pairs, np.asarray([[0.75, 0.0, 0.25]]))
    >>> assert_equals_dense(pairs, np.asarray([[0.75, 0.25, 0.0]]))
    Traceback (most recent call last):
    AssertionError: 1 of 1 rows have other weights than the dense gate.
    """
    experts, pair_weights = sparse
    xp = resolve(xp, experts=experts, pair_weights=pair_weights, weights=weights)
    check_floating("weights", weights, xp)
    check_axes("weights", weights, ("num_experts",))
    num_experts = weights.shape[-1]
    expected = (*tuple(pair_weights.shape)[:-1], num_experts)
    check_shape("weights", weights, expected, "the rows of `sparse`")
    is_expert = xp.all((experts >= 0) & (experts < num_experts), axis=-1)
    _assert_rows(is_expert, f"name an expert outside [0, {num_experts})", xp)
    ones = xp.astype(pair_weights != 0, pair_weights.dtype)
    counts = to_dense(SparseWeights(experts, ones), num_experts=num_experts, xp=xp)
    _assert_rows(xp.all(counts <= 1, axis=-1), "have two non-zero weights for one expert", xp)
    dense = to_dense(sparse, num_experts=num_experts, xp=xp)
    difference = xp.abs(widen(dense, xp) - widen(weights, xp))
    is_equal = xp.all(difference <= tolerance, axis=-1)
    _assert_rows(is_equal, "have other weights than the dense gate", xp)


def _assert_rows(holds: Array, otherwise: str, xp: ModuleType) -> None:
    num_rows = math.prod(holds.shape)
    num_failed = num_rows - int(xp.sum(xp.astype(holds, xp.int32)))
    if num_failed:
        msg = f"{num_failed} of {num_rows} rows {otherwise}."
        raise AssertionError(msg)
