"""One linear assignment."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_localsearch import assign, assign_with_capacity


@given(size=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_no_permutation_is_cheaper(size: int, seed: int) -> None:
    costs = np.random.default_rng(seed).integers(-5, 6, size=(size, size))
    found = assign(costs)
    cheapest = min(sum(costs[i, p[i]] for i in range(size)) for p in permutations(range(size)))
    assert costs[np.arange(size), found].sum() == cheapest
    assert found.dtype == np.int64


@pytest.mark.parametrize("size", [17, 256])
def test_prices_prove_that_no_permutation_is_cheaper(size: int) -> None:
    # Rows that choose by cost + price cost at least as much as any assignment does, less the
    # prices: a bound from below, which needs no second solver to be believed.
    costs = np.random.default_rng(size).normal(size=(size, size))
    prices = assign_with_capacity(costs, capacity=1).prices
    bound = (costs + prices).min(axis=1).sum() - prices.sum()
    assert costs[np.arange(size), assign(costs)].sum() == pytest.approx(bound, rel=1e-12)


def test_ties_are_decided_the_same_way_every_time() -> None:
    costs = np.zeros((7, 7))
    np.testing.assert_array_equal(assign(costs), assign(costs.copy()))


@pytest.mark.parametrize(
    ("costs", "error", "message"),
    [
        (np.zeros((2, 3)), ValueError, r"`costs` must be square.*\(2, 3\)"),
        (np.zeros((0, 0)), ValueError, r"`costs` must be square.*n >= 1"),
        (np.zeros(3), ValueError, r"`costs` must have shape \(n, n\), got \(3,\)"),
        ([[0.0, np.nan], [0.0, 0.0]], ValueError, r"`costs` must be finite, got nan at \[0, 1\]"),
        ([[0.0, 0.0], [np.inf, 0.0]], ValueError, r"`costs` must be finite, got inf at \[1, 0\]"),
        ([[1j]], TypeError, r"`costs` must hold real numbers, got dtype complex128"),
        (
            [[0.0, 1.0], [2.0]],
            ValueError,
            r"`costs` must be .* lists of equal lengths, got a",
        ),
        ([["a"]], TypeError, r"`costs` must hold real numbers"),
    ],
)
def test_bad_costs_are_named(costs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        assign(costs)
