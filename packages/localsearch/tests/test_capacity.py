"""One assignment with capacities, against the Hungarian method, a linear program and its dual."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment, linprog

from moe_localsearch import CapacityAssignment, assign, assign_with_capacity

TOLERANCE = 1e-12  # float64, some hundreds of additions of costs of size 1

KINDS: dict[str, Callable[[Any, int, int], Any]] = {
    "random": lambda rng, n, e: rng.normal(size=(n, e)),
    "float32": lambda rng, n, e: rng.normal(size=(n, e)).astype(np.float32),
    "integer ties": lambda rng, n, e: rng.integers(-3, 4, size=(n, e)),
    "two values": lambda rng, n, e: rng.integers(0, 2, size=(n, e)),
    "zeros": lambda _rng, n, e: np.zeros((n, e)),
    "zero rows": lambda rng, n, e: rng.normal(size=(n, e)) * rng.integers(0, 2, size=(n, 1)),
    "equal rows": lambda rng, n, e: np.tile(rng.normal(size=(1, e)), (n, 1)),
    "one wish": lambda rng, n, e: np.arange(e) + 0.1 * rng.normal(size=(n, e)),
    "rank one": lambda rng, n, e: np.outer(rng.normal(size=n), rng.normal(size=e)),
}


@st.composite
def problems(draw: st.DrawFn, *, few: int = 0, most: int = 24, num_columns: int = 6) -> Any:
    """Costs, and capacities that are sometimes 0, sometimes tight, sometimes above N."""
    n, e = draw(st.integers(few, most)), draw(st.integers(1, num_columns))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    costs = KINDS[draw(st.sampled_from(sorted(KINDS)))](rng, n, e)
    tight = rng.multinomial(n, rng.dirichlet(np.ones(e)))
    return costs, tight + rng.integers(0, draw(st.integers(1, 8)), size=e)


def lowest_cost(costs: Any, capacity: Any) -> float:
    """Assign rows to columns that are repeated as often as they have places."""
    repeated = np.repeat(np.asarray(costs, dtype=np.float64), capacity, axis=1)
    rows, columns = linear_sum_assignment(repeated)
    return float(repeated[rows, columns].sum())


def check_certificate(costs: Any, capacity: Any, answer: CapacityAssignment, tol: float) -> None:
    """Feasible, and by complementary slackness optimal; nothing but the inputs is believed."""
    costs = np.asarray(costs, dtype=np.float64)
    load = np.bincount(answer.columns, minlength=costs.shape[1])
    assert answer.columns.shape == (len(costs),)
    assert answer.columns.dtype == np.int64
    assert np.all(load <= capacity)
    assert np.all(answer.prices >= 0)
    assert np.all(answer.prices[load < capacity] <= tol)
    totals = costs + answer.prices
    paid = totals[np.arange(len(costs)), answer.columns]
    assert np.all(paid <= totals.min(axis=1) + tol)
    cost = costs[np.arange(len(costs)), answer.columns].sum()
    assert answer.cost == pytest.approx(cost, rel=TOLERANCE, abs=TOLERANCE)
    bound = totals.min(axis=1).sum() - answer.prices @ np.minimum(capacity, len(costs))
    assert answer.gap == pytest.approx(cost - bound, abs=tol * (1 + len(costs)))
    assert abs(answer.gap) <= tol * (1 + len(costs))


@given(problems())
def test_it_is_the_hungarian_method_on_repeated_columns(case: Any) -> None:
    costs, capacity = case
    answer = assign_with_capacity(costs, capacity=capacity)
    check_certificate(costs, capacity, answer, TOLERANCE)
    expected = lowest_cost(costs, capacity)
    assert answer.cost == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)


@given(problems(few=32, most=150, num_columns=4))
def test_prices_of_a_part_of_the_rows_lead_to_the_same_optimum(case: Any) -> None:
    costs, capacity = case  # 16 rows a column and more: begun from the prices of half of them
    answer = assign_with_capacity(costs, capacity=capacity)
    check_certificate(costs, capacity, answer, TOLERANCE)
    expected = lowest_cost(costs, capacity)
    assert answer.cost == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize("seed", range(4))
def test_cost_and_prices_solve_the_linear_program_and_its_dual(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs, capacity = rng.normal(size=(9, 4)), rng.permutation([1, 2, 3, 5])
    answer = assign_with_capacity(costs, capacity=capacity)
    once = np.kron(np.eye(9), np.ones(4))
    places = np.kron(np.ones(9), np.eye(4))
    program = linprog(costs.ravel(), A_ub=places, b_ub=capacity, A_eq=once, b_eq=np.ones(9))
    assert answer.cost == pytest.approx(program.fun, rel=1e-9)
    # Prices are not unique, but every optimal dual reaches the optimum of the primal.
    dual = (costs + answer.prices).min(axis=1).sum() - answer.prices @ capacity
    assert dual == pytest.approx(program.fun, rel=1e-9)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_twenty_thousand_rows_have_a_certificate_within_three_seconds(kind: str) -> None:
    rng = np.random.default_rng(0)
    costs = KINDS[kind](rng, 20_000, 32)
    capacity = np.full(32, 640)
    capacity[:5] = [0, 1, 500, 700, 1279]  # 20,000 in all, or 20,400
    capacity[5:] += 20
    began = time.perf_counter()
    answer = assign_with_capacity(costs, capacity=capacity)
    seconds = time.perf_counter() - began
    check_certificate(costs, capacity, answer, 1e-11)
    assert seconds < 3  # 0.2 to 0.6 s alone on a core


@given(size=st.integers(1, 8), seed=st.integers(0, 10_000))
def test_capacity_one_and_as_many_columns_is_the_linear_assignment(size: int, seed: int) -> None:
    costs = np.random.default_rng(seed).normal(size=(size, size))
    answer = assign_with_capacity(costs, capacity=1)
    np.testing.assert_array_equal(answer.columns, assign(costs))


def test_room_for_all_gives_each_row_its_best_column_at_no_price() -> None:
    costs = np.random.default_rng(0).normal(size=(50, 4))
    answer = assign_with_capacity(costs, capacity=50)
    np.testing.assert_array_equal(answer.columns, costs.argmin(axis=1))
    np.testing.assert_array_equal(answer.prices, 0)
    assert answer.gap == pytest.approx(0, abs=TOLERANCE)


def test_no_rows_one_column_and_fewer_rows_than_columns() -> None:
    none = assign_with_capacity(np.zeros((0, 3)), capacity=0)
    assert (none.columns.shape, none.cost, none.gap) == ((0,), 0.0, 0.0)
    np.testing.assert_array_equal(none.prices, np.zeros(3))
    one = assign_with_capacity([[2.0], [3.0]], capacity=2)
    np.testing.assert_array_equal(one.columns, [0, 0])
    assert one.cost == 5
    few = assign_with_capacity([[5.0, 1.0, 2.0], [5.0, 1.0, 4.0]], capacity=1)
    np.testing.assert_array_equal(few.columns, [2, 1])
    assert few.prices[1] == pytest.approx(1)


def test_a_column_without_places_stays_empty_however_cheap() -> None:
    answer = assign_with_capacity([[0.0, 9.0, 8.0]] * 4, capacity=[0, 1, 3])
    np.testing.assert_array_equal(np.bincount(answer.columns, minlength=3), [0, 1, 3])


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint32, np.uint64, np.int8, np.uint8])
def test_the_dtype_of_the_capacity_does_not_matter(dtype: Any) -> None:
    costs = np.random.default_rng(0).normal(size=(20, 3))
    expected = assign_with_capacity(costs, capacity=7)
    for capacity in (np.full(3, 7, dtype=dtype), dtype(7)):
        answer = assign_with_capacity(costs, capacity=capacity)
        np.testing.assert_array_equal(answer.columns, expected.columns)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_more_rows_than_the_dtype_of_the_capacity_can_count(dtype: Any) -> None:
    costs = np.random.default_rng(0).normal(size=(300, 3))
    answer = assign_with_capacity(costs, capacity=np.full(3, 120, dtype=dtype))
    check_certificate(costs, np.full(3, 120), answer, TOLERANCE)


@pytest.mark.parametrize("capacity", [2**62, np.full(2, 2**63 - 1), np.uint64(2**64 - 1)])
def test_a_capacity_may_be_as_good_as_infinite(capacity: Any) -> None:
    answer = assign_with_capacity([[1.0, 2.0], [4.0, 3.0]], capacity=capacity)
    np.testing.assert_array_equal(answer.columns, [0, 1])


@pytest.mark.parametrize("large", [1e14, 1e18])
def test_one_cost_that_means_never_does_not_hide_the_others(large: float) -> None:
    costs = np.random.default_rng(0).uniform(size=(12, 3))
    costs[0, 0] = large
    answer = assign_with_capacity(costs, capacity=4)
    assert answer.cost == pytest.approx(lowest_cost(costs, np.full(3, 4)), rel=1e-9)


@given(case=problems(num_columns=4), data=st.data())
def test_one_more_place_saves_its_price(case: Any, data: st.DataObject) -> None:
    costs, capacity = case
    num_rows, num_columns = costs.shape
    answer = assign_with_capacity(costs, capacity=capacity)
    column = data.draw(st.integers(0, num_columns - 1))
    more = capacity + (np.arange(num_columns) == column)
    saved = lowest_cost(costs, capacity) - lowest_cost(costs, more)
    assert saved <= answer.prices[column] + TOLERANCE * (1 + num_rows)
    if num_rows < 16 * num_columns:
        assert saved == pytest.approx(answer.prices[column], abs=TOLERANCE * (1 + num_rows))


def test_one_more_place_never_saves_more_than_its_price() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        costs, capacity = rng.normal(size=(60, 3)), rng.multinomial(61, np.ones(3) / 3)
        answer = assign_with_capacity(costs, capacity=capacity)
        for column in range(3):
            more = capacity + (np.arange(3) == column)
            saved = lowest_cost(costs, capacity) - lowest_cost(costs, more)
            assert saved <= answer.prices[column] + 1e-11


def test_runs_repeat_and_leave_the_inputs_alone() -> None:
    costs = np.random.default_rng(0).integers(0, 3, size=(200, 4)).astype(np.float64)
    capacity = np.array([50, 50, 60, 60])
    copies = costs.copy(), capacity.copy()
    first, second = (assign_with_capacity(costs, capacity=capacity) for _ in range(2))
    np.testing.assert_array_equal(first.columns, second.columns)
    np.testing.assert_array_equal(first.prices, second.prices)
    np.testing.assert_array_equal(costs, copies[0])
    np.testing.assert_array_equal(capacity, copies[1])


@pytest.mark.parametrize(
    ("costs", "capacity", "error", "message"),
    [
        (np.zeros((2, 0)), 1, ValueError, r"`costs` must have E >= 1 columns, got shape \(2, 0\)"),
        (np.zeros(3), 1, ValueError, r"`costs` must have shape \(N, E\), got \(3,\)"),
        ([[0.0, np.nan]], 1, ValueError, r"`costs` must be finite, got nan at \[0, 1\]"),
        ([[0.0], [-np.inf]], 2, ValueError, r"`costs` must be finite, got -inf at \[1, 0\]"),
        ([[1j]], 1, TypeError, "`costs` must hold real numbers, got dtype complex128"),
        ([[0.0, 1.0], [2.0]], 1, ValueError, "`costs` must be .* got a ragged list"),
        (np.zeros((2, 2)), 1.0, TypeError, "`capacity` must hold integers, got dtype float64"),
        (np.zeros((2, 2)), True, TypeError, "`capacity` must hold integers, got dtype bool"),
        (np.zeros((2, 2)), [1, 1, 1], ValueError, r"`capacity` must .* \(E=2\), got \(3,\)"),
        (np.zeros((2, 2)), [[1, 1]], ValueError, r"`capacity` must .* \(E=2\), got \(1, 2\)"),
        (np.zeros((2, 2)), [3, -1], ValueError, "`capacity` must be >= 0, got -1"),
        (np.zeros((3, 2)), 1, ValueError, "`capacity` must have room for all N=3 rows, got 2 in"),
    ],
)
def test_bad_arguments_are_named(
    costs: Any, capacity: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        assign_with_capacity(costs, capacity=capacity)


def test_costs_near_overflow_are_refused() -> None:
    message = r"`costs` must be in \[-1e\+100, 1e\+100\], got -1e\+308"
    with pytest.raises(ValueError, match=message):
        assign_with_capacity([[1e307, -1e308], [1.0, 1.0]], capacity=1)
    answer = assign_with_capacity([[1e100, -1e100], [1e100, -1e100]], capacity=1)
    assert answer.cost == 0
