"""The assertions that others rely on can fail."""

from typing import Any

import numpy as np
import pytest

from moe_gates import SparseWeights
from moe_gates.testing import assert_equals_dense, assert_k_sparse, assert_on_simplex


def test_accepts_points_of_the_simplex(lib: Any) -> None:
    assert_on_simplex(lib.asarray(np.eye(4)), k=1, xp=lib.xp)
    assert_on_simplex(lib.asarray(np.full((2, 3, 4), 0.25)), xp=lib.xp)
    assert_on_simplex(lib.asarray(np.zeros((0, 4))), k=1, xp=lib.xp)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1.5, -0.5, 0.0], "1 of 2 rows have a negative or NaN weight."),
        ([np.nan, 0.5, 0.5], "1 of 2 rows have a negative or NaN weight."),
        ([0.5, 0.499, 0.0], "1 of 2 rows do not sum to 1 within"),
        ([0.5, 0.25, 0.25], "1 of 2 rows have more than k=2 non-zero weights."),
    ],
)
def test_refuses_anything_else(lib: Any, row: list[float], message: str) -> None:
    weights = lib.asarray(np.asarray([[0.5, 0.5, 0.0], row]))
    with pytest.raises(AssertionError) as failure:
        assert_on_simplex(weights, k=2, xp=lib.xp)
    assert message in str(failure.value)


def test_counts_non_zeros_of_rows_that_need_no_sum(lib: Any) -> None:
    rows = lib.asarray(np.asarray([[0.5, 0.0, 0.0], [0.5, 0.25, 0.125]]))
    assert_k_sparse(rows, k=3, xp=lib.xp)
    with pytest.raises(AssertionError, match="1 of 2 rows have more than k=2 non-zero"):
        assert_k_sparse(rows, k=2, xp=lib.xp)


@pytest.mark.parametrize(
    ("experts", "weights", "message"),
    [
        ([2, 3], [0.25, 0.75], "name an expert outside [0, 3)"),
        ([-1, 0], [0.25, 0.75], "name an expert outside [0, 3)"),
        ([0, 0], [0.5, 0.25], "have two non-zero weights for one expert"),
        ([2, 0], [0.25, 0.76], "have other weights than the dense gate"),
        ([2, 1], [0.25, 0.75], "have other weights than the dense gate"),
        ([2, 0], [0.25, np.nan], "have other weights than the dense gate"),
    ],
)
def test_refuses_pairs_that_are_not_the_dense_weights(
    lib: Any, experts: list[int], weights: list[float], message: str
) -> None:
    dense = lib.asarray(np.asarray([[0.75, 0.0, 0.25]] * 2))
    right = SparseWeights(
        lib.asarray(np.asarray([[2, 0], [2, 0]])),
        lib.asarray(np.asarray([[0.25, 0.75], [0.25, 0.75 + 1e-9]])),
    )
    assert_equals_dense(right, dense, tolerance=1e-8, xp=lib.xp)
    pairs = SparseWeights(
        lib.asarray(np.asarray([[2, 0], experts])),
        lib.asarray(np.asarray([[0.25, 0.75], weights])),
    )
    with pytest.raises(AssertionError) as failure:
        assert_equals_dense(pairs, dense, xp=lib.xp)
    assert str(failure.value) == f"1 of 2 rows {message}."


@pytest.mark.parametrize("shape", [(3,), (1, 3), (3, 1, 3)])
def test_refuses_rows_that_would_be_broadcast(lib: Any, shape: tuple[int, ...]) -> None:
    pairs = SparseWeights(
        lib.asarray(np.asarray([[0, 1], [0, 1]])), lib.asarray(np.full((2, 2), 0.5))
    )
    weights = np.broadcast_to(np.asarray([0.5, 0.5, 0.0]), shape).copy()
    with pytest.raises(ValueError, match="`weights` must have shape"):
        assert_equals_dense(pairs, lib.asarray(weights), xp=lib.xp)
    with pytest.raises(TypeError, match="`weights` must have a real floating dtype"):
        assert_equals_dense(pairs, lib.asarray(np.asarray([[1, 0, 0]] * 2)), xp=lib.xp)
